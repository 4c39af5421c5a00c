"""`gatehouse demo application`: the sample application alone, to try deployments with."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gatehouse.cli.demo.assertion import AssertionVerifier, keys_from
from gatehouse.cli.demo.loopback import open_listener, serve_listener
from gatehouse.cli.demo.upstream import SampleApplication
from gatehouse.common.errors import FailedPreconditionError
from gatehouse.common.runtime.process import EXIT_CONFIG, EXIT_OK

_WHAT: Final = "the sample application"


def application(listen: str, *, keys_url: str, authority: Path, hosts: Sequence[str]) -> int:
    """Serve until SIGTERM or Ctrl-C; 2 when it cannot listen there."""
    address, colon, port = listen.rpartition(":")
    try:
        if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
            print(f"--listen {listen!r} should be ADDRESS:PORT or :PORT", file=sys.stderr)
            return EXIT_CONFIG
        listener = open_listener(address.strip("[]") or "0.0.0.0", int(port), what=_WHAT)  # noqa: S104 - asked for
    except FailedPreconditionError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    verifier = AssertionVerifier(keys_from(keys_url, authority, here=False), hosts)

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        print(f"{_WHAT} listens on {listen}", flush=True)
        await serve_listener(SampleApplication(verifier).app(), listener, stop)

    asyncio.run(main())
    return EXIT_OK
