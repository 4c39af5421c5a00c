"""What a real Envoy says to the snapshot of a configuration, without running it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.config.route_model import Route
from gatehouse.proxy.core.xds.snapshot import build_snapshot
from gatehouse.proxy.edge.secret_files import SecretFiles
from gatehouse.proxy.errors import SnapshotError
from tests.support.envoy import environment, resolved, static_bootstrap, validate
from tests.support.golden_settings import CERTIFICATE, KEY

TLS: Mapping[str, Any] = {
    "certificate_file": str(CERTIFICATE),
    "certificate_key_file": str(KEY),
    "address": "127.0.0.1:443",
}
SOUND: Mapping[str, Any] = {
    "from": "https://app.example.com",
    "to": "http://127.0.0.1:8001",
    "allow_public_unauthenticated_access": True,
}


def route(**keys: Any) -> dict[str, Any]:
    """A sound route with some keys of its own; None takes one away."""
    answers = {"redirect", "response"} & keys.keys()
    merged = {**SOUND, **({"to": None} if answers else {}), **keys}
    return {key: value for key, value in merged.items() if value is not None}


def settings_of(*routes: Mapping[str, Any], **keys: Any) -> ResolvedSettings:
    """What the loader makes of them. ConfigError when it refuses them."""
    return resolved({**TLS, **keys, "routes": list(routes)})


def unchecked(raw: Mapping[str, Any]) -> ResolvedSettings:
    """Settings with one route that the loader would refuse for what its keys say together."""
    return altered(lambda _: Route.model_validate(dict(raw)))


def altered(change: Callable[[Route], Route]) -> ResolvedSettings:
    """Settings whose only route became another after all checks."""
    settings = settings_of(route())
    (one,) = settings.routes
    return replace(settings, routes=(replace(one, settings=change(one.settings)),))


def verdict(settings: ResolvedSettings) -> str:
    """Why nothing comes of these settings; empty when Envoy takes them.

    What the builder itself refuses never reaches Envoy and counts as refused too.
    """
    with tempfile.TemporaryDirectory(prefix="gh-") as folder:
        directory = Path(folder)
        system = CERTIFICATE.read_bytes()
        try:
            snapshot = build_snapshot(settings, environment(folder, system_ca_pem=system))
        except (SnapshotError, ValueError) as error:
            return f"not built: {error}"
        files = SecretFiles(directory / "envoy-files")
        files.prepare()
        files.write(snapshot.files)
        return validate(static_bootstrap(snapshot), directory)
