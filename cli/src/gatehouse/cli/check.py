"""`gatehouse check`: what is wrong with a configuration, without starting anything."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.runtime.process import EXIT_CONFIG, EXIT_OK, report_issues


def check(config: Path | None, environ: Mapping[str, str]) -> int:
    """Print every error and warning; return 0 when there is no error, else 2."""
    throwaway = secrets.token_bytes(32)
    try:
        settings, warnings = load_and_resolve(config, environ, random_secret=lambda: throwaway)
    except ConfigError as error:
        report_issues(error.everything)
        return EXIT_CONFIG
    report_issues(warnings)
    services = "all" if settings.is_all_in_one else ", ".join(sorted(settings.services))
    print(f"good: services {services}, {len(settings.routes)} routes, {len(warnings)} warnings")
    return EXIT_OK
