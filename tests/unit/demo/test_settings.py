from __future__ import annotations

import base64
import stat

import pytest
import yaml

from gatehouse.cli.demo.settings import Ports, ports_from, prepare, render
from gatehouse.common.config.load import load_settings
from gatehouse.common.errors import FailedPreconditionError, InvalidArgumentError


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def demo(tmp_path):
    return prepare(tmp_path / "state", Ports())


def test_the_file_is_what_gatehouse_reads_without_a_complaint(demo):
    loaded = load_settings(demo.config, {})
    assert loaded.warnings == ()
    settings = loaded.settings
    assert [route.from_ for route in settings.routes] == [
        "https://app.localhost",
        "https://admin.localhost",
        "https://public.localhost",
    ]


def test_the_routes_are_one_of_each_kind(demo):
    app, admin, public = yaml.safe_load(demo.config.read_text())["routes"]
    assert app["allow_any_authenticated_user"] is True
    assert app["pass_identity_headers"] is True
    assert admin["policy"] == [{"allow": {"or": [{"email": {"is": "ada@example.com"}}]}}]
    assert public["allow_public_unauthenticated_access"] is True
    assert not public.get("pass_identity_headers")


def test_everything_listens_on_loopback(demo):
    document = yaml.safe_load(demo.config.read_text())
    for key in ("address", "grpc_address", "health_check_addr"):
        assert document[key].startswith("127.0.0.1:"), key


def test_every_setting_has_a_comment_above_its_group(demo):
    groups = demo.config.read_text().split("\n\n")
    assert all(group.lstrip().startswith(("#", "routes:")) for group in groups)


def test_secrets_stay_out_of_the_file_and_are_their_owners_only(demo):
    text = demo.config.read_text()
    for name in ("shared_secret", "cookie_secret", "client_secret"):
        path = demo.state / name
        secret = path.read_text().strip()
        assert len(base64.b64decode(secret)) == 32
        assert secret not in text
        assert mode(path) == 0o600
    assert demo.client_secret not in repr(demo)
    assert mode(demo.state) == 0o700
    assert mode(demo.config) == 0o600


def test_a_second_start_changes_nothing(demo):
    before = {path: path.read_bytes() for path in demo.state.rglob("*") if path.is_file()}
    written = demo.config.stat().st_mtime_ns
    assert prepare(demo.state, Ports()).client == demo.client
    assert {path: path.read_bytes() for path in before} == before
    assert demo.config.stat().st_mtime_ns == written


def test_other_ports_show_everywhere(tmp_path):
    demo = prepare(tmp_path, Ports(1001, 1002, 1003, 1004, 1005))
    text = render(demo)
    assert not any(str(port) in text for port in range(8443, 8448))
    assert demo.authenticate_url == "https://authenticate.localhost:1001"
    assert demo.provider_url == "http://localhost:1002"
    assert demo.application_url("app.localhost") == "https://app.localhost:1001"
    assert demo.client.redirect_uris == {"https://authenticate.localhost:1001/oauth2/callback"}


def test_a_path_with_odd_characters_survives(tmp_path):
    demo = prepare(tmp_path / 'it\'s "odd": #1', Ports())
    document = yaml.safe_load(demo.config.read_text())
    assert document["certificate_file"] == str(demo.certificates.certificate)


@pytest.mark.parametrize("content", ["", "short", "x" * 44, base64.b64encode(bytes(31)).decode()])
def test_a_broken_secret_is_named_without_showing_it(demo, content):
    (demo.state / "cookie_secret").write_text(content)
    with pytest.raises(FailedPreconditionError, match="cookie_secret should hold 32 bytes") as got:
        prepare(demo.state, Ports())
    assert not content or content not in str(got.value).replace(str(demo.state), "")


def test_ports_come_from_the_environment():
    assert ports_from({"GATEHOUSE_DEMO_PORT": ""}).port == 8443
    assert ports_from({"GATEHOUSE_DEMO_PORT": "9443"}) == Ports(port=9443)


@pytest.mark.parametrize("value", ["0", "65536", "-1", "http", " 80", "1e3", "٨٠"])
def test_what_is_no_port_is_named(value):
    with pytest.raises(InvalidArgumentError, match=r"GATEHOUSE_DEMO_GRPC_PORT=.* is no port"):
        ports_from({"GATEHOUSE_DEMO_GRPC_PORT": value})


def test_two_parts_cannot_share_a_port():
    with pytest.raises(InvalidArgumentError, match="port 8444 is given to two parts"):
        ports_from({"GATEHOUSE_DEMO_PORT": "8444"})
