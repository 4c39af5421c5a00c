"""`python -m tests.compose`: start the scaled deployment, hurt it, print what people noticed.

Exit status 0 also where no Docker engine runs: it says so, and the tests on loopback addresses
cover the same there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from tests.compose import deployment
from tests.compose.changes import Changes
from tests.compose.deployment import COMPOSE, Deployment
from tests.compose.people import Site, people
from tests.compose.private import Private
from tests.compose.scenarios import Row
from tests.support.load import Load
from tests.support.ports import free_ports

HEAD = ("fault", "requests", "wrong", "failed", "recovered", "")
WIDTHS = (40, 9, 6, 7, 10, 0)


def line(cells: tuple[str, ...]) -> str:
    first, *rest = cells
    parts = [first.ljust(WIDTHS[0])]
    parts += [cell.rjust(width) for cell, width in zip(rest[:-1], WIDTHS[1:-1], strict=True)]
    return f"{' '.join(parts)}  {rest[-1]}".rstrip()


def shown(row: Row) -> str:
    if row.requests == 0:
        return line((row.fault, "-", "-", "-", "-", "; ".join(row.notes)))
    limit = "" if row.may_fail is None else f"at most {row.may_fail} may fail"
    verdict = "" if row.good else f"NOT AS IT SHOULD BE ({row.problem or limit})"
    notes = "; ".join([*row.notes, *([verdict] if verdict else [])])
    counts = (str(row.requests), str(row.wrong), str(row.failed), f"{row.recovered_s:.1f} s")
    return line((row.fault, *counts, notes))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compose", description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="a scenario; repeatable")
    parser.add_argument("--json", type=Path, default=Path("bench-results/compose.json"))
    parser.add_argument("--project", default=f"gatehouse-test-{os.getpid()}")
    parser.add_argument("--file", action="append", default=[], help="a further compose file")
    parser.add_argument("--older", default="", help="an older image: upgrade from it and back")
    parser.add_argument("--keep", action="store_true", help="leave the deployment running")
    parser.add_argument("--verbose", action="store_true", help="what failed, for each fault")
    options = parser.parse_args()

    if why := deployment.missing():
        print(f"SKIPPED: {why}; nothing was tested in containers.")
        return 0
    port, idp_port = free_ports(2)
    private = Private(COMPOSE / "certs", COMPOSE / "compose.yaml")
    files = ("compose.yaml", "compose.scale.yaml", *options.file, str(private.compose_file))
    environment = {"GATEHOUSE_PORT": f"127.0.0.1:{port}", "IDP_PORT": str(idp_port)}
    if options.older:
        environment["GATEHOUSE_IMAGE"] = options.older
    one = Deployment(options.project, files, environment)
    site = Site(private.path("authority.pem"), port, idp_port)

    def tell(row: Row) -> None:
        print(shown(row), flush=True)
        if options.verbose or not row.good:
            for detail, count in sorted(row.details.items(), key=lambda item: -item[1])[:6]:
                print(f"      {count} x {detail}", flush=True)

    begun_s = time.monotonic()
    try:
        print(f"starting {options.project}", flush=True)
        one.up()
        one.wait_healthy()
        print(f"healthy after {time.monotonic() - begun_s:.0f} s; signing in", flush=True)
        site.wait_reached()
        load = Load(site.client, people(site))
        scenarios = Changes(one, site, load, tell, private, options.older)
        print(line(HEAD), flush=True)
        with load:
            scenarios.run(options.only)
    finally:
        if not options.keep:
            print("removing it", flush=True)
            one.down()
            private.close()
    rows = scenarios.rows
    options.json.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"rows": [row.as_json() for row in rows]}, indent=2)
    options.json.write_text(text + "\n")
    bad = sum(not row.good for row in rows)
    wrong = sum(row.wrong for row in rows)
    requests = sum(row.requests for row in rows)
    print(
        f"{len(rows)} faults, {requests} requests, {wrong} wrong answers, {bad} not as they should"
    )
    return 1 if bad or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
