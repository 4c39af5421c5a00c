"""With which secret a command may speak to running services."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gatehouse.cli.operator import operator_settings

SECRET = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U="
SITE = """
authenticate_service_url: https://authenticate.example.com
idp_provider: oidc
idp_provider_url: https://idp.example.com
idp_client_id: client
idp_client_secret: secret
"""


def test_a_missing_cookie_secret_is_no_missing_shared_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"{SITE}shared_secret: {SECRET}\n")
    settings = operator_settings(config, {})
    assert settings is not None
    assert settings.shared_secrets == (b"secret" * 5 + b"se",)
    assert "shared_secret" not in capsys.readouterr().err


def test_without_a_shared_secret_there_is_nothing_to_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"{SITE}cookie_secret: {SECRET}\n")
    assert operator_settings(config, {}) is None
    assert "shared_secret is not set" in capsys.readouterr().err


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert operator_settings(tmp_path / "none.yaml", {}) is None
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "urls"),
    [
        ("", ("http://127.0.0.1:5443",)),
        ("grpc_address: 127.0.0.1:8446", ("http://127.0.0.1:8446",)),
        ("grpc_address: ':8446'", ("http://127.0.0.1:8446",)),
        ("grpc_address: '[::1]:8446'", ("http://[::1]:8446",)),
        ("{services: databroker, grpc_address: '10.0.0.1:7000'}", ("https://10.0.0.1:7000",)),
        (
            "{grpc_address: ':8446', databroker_service_url: 'http://broker:1'}",
            ("http://broker:1",),
        ),
        (  # behind Envoy it has a host, no address
            "{address: ':8446', grpc_address: ':8446', authorize_service_url: 'http://z:8446'}",
            ("http://z:8446",),
        ),
        (
            "{services: authorize, databroker_service_url: 'http://broker:1'}",
            ("http://broker:1",),
        ),
    ],
)
def test_the_databroker_is_looked_for_where_it_listens(
    tmp_path: Path, keys: str, urls: tuple[str, ...]
) -> None:
    more = yaml.safe_load(keys) or {}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(SITE), "shared_secret": SECRET, **more}))
    settings = operator_settings(config, {})
    assert settings is not None
    assert settings.databroker_urls == urls
