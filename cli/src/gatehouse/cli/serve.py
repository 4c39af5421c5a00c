"""`gatehouse serve`: the composition root. It knows how each service is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gatehouse.authenticate.service
import gatehouse.authorize.service
import gatehouse.databroker.service
import gatehouse.proxy.service
from gatehouse.common.config.resolved import ServiceName
from gatehouse.common.runtime.process import ProcessOptions, ServiceBuilder, run_process

BUILDERS: Mapping[ServiceName, ServiceBuilder] = {
    ServiceName.DATABROKER: gatehouse.databroker.service.build,
    ServiceName.AUTHORIZE: gatehouse.authorize.service.build,
    ServiceName.AUTHENTICATE: gatehouse.authenticate.service.build,
    ServiceName.PROXY: gatehouse.proxy.service.build,
}


def serve(config: Path | None, environ: Mapping[str, str]) -> int:
    """Run until a signal; return the exit status: 0 after a stop, 1 a crash, 2 bad settings."""
    return run_process(ProcessOptions(config, environ, BUILDERS))
