"""How a failure to listen is told: what, where, why, and what to change."""

from __future__ import annotations

import os


def listen_error(what: str, where: str, error: OSError | str) -> OSError:
    """An OSError to raise: its text is for people, its `errno` (where known) for programs."""
    if isinstance(error, OSError):
        number = error.errno
        why = os.strerror(number) if number else str(error)
    else:
        number, why = None, error
    told = OSError(
        f"cannot listen for {what} on {where}: {why}; choose another address or end what uses it"
    )
    told.errno = number
    return told
