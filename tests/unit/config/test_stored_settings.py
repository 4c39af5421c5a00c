"""Global settings that the databroker holds: nobody takes them up, and somebody is told."""

from __future__ import annotations

from pathlib import Path

from gatehouse.common.config.route_records import CONFIG, SETTINGS, VERSIONED_CONFIG
from gatehouse.pb import config_pb2
from tests.unit.config.test_route_records import record, route_message, settings_of, told


def test_stored_settings_are_left_out_with_a_word(tmp_path: Path) -> None:
    """Also those whose names are not known here: field 1 of Pomerium's `Settings`, for one."""
    unknown = config_pb2.Settings.FromString(b"\x0a\x03all")
    with_settings = config_pb2.Config(name="x", routes=[route_message()], settings=unknown)
    settings = settings_of(
        tmp_path,
        record(CONFIG, "a", with_settings),
        record(CONFIG, "b", config_pb2.Config(settings=config_pb2.Settings())),
        record(VERSIONED_CONFIG, "c", config_pb2.VersionedConfig(config=with_settings)),
        record(SETTINGS, "d", unknown),
    )
    told_of = [line for line in told(settings) if "settings" in line or "Settings" in line]
    left_out = (
        "are left out: of what the databroker holds, routes alone are taken up "
        "(the same keys in the file)"
    )
    assert told_of == [
        f"warning: Config a settings: {left_out}",
        f"warning: VersionedConfig c settings: {left_out}",
        f"warning: Settings d: {left_out}",
    ]
    assert len(settings.routes) == 1
