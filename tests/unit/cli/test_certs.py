"""`gatehouse certs`: what a deployment's own certificates are good for, and what is left alone."""

from __future__ import annotations

import base64
import socket
import ssl
import stat
import threading

import pytest
from cryptography import x509

from gatehouse.cli.certs import SERVICES, certs

DOMAIN = "apps.example.test"


def make(directory, **options) -> int:
    values = {"domain": DOMAIN, "services": SERVICES, "with_secrets": True, "owner": ""}
    return certs(directory, **{**values, **options})


def contents(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def handshake(directory, host: str, *, server: str, client: str = "") -> str:
    """Try mutual TLS as `host`; what either side complains of, or nothing."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(directory / f"{server}.pem", directory / f"{server}-key.pem")
    asking = ssl.create_default_context(cafile=str(directory / "authority.pem"))
    asking.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    if client:
        serving.verify_mode = ssl.CERT_REQUIRED
        serving.load_verify_locations(directory / "authority.pem")
        asking.load_cert_chain(directory / f"{client}.pem", directory / f"{client}-key.pem")
    ours, theirs = socket.socketpair()
    complaints: list[str] = []

    def serve() -> None:
        try:
            serving.wrap_socket(theirs, server_side=True).close()
        except ssl.SSLError as error:
            complaints.append(str(error))
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        asking.wrap_socket(ours, server_hostname=host).close()
    except (ssl.SSLError, OSError) as error:
        complaints.append(str(error))
    finally:
        ours.close()
        thread.join(5)
    return "; ".join(complaints)


def test_made_once_and_left_alone(tmp_path, capsys):
    assert make(tmp_path / "certs") == 0
    printed = capsys.readouterr().out
    before = contents(tmp_path / "certs")
    assert make(tmp_path / "certs") == 0
    assert contents(tmp_path / "certs") == before
    for name in before:
        assert name in printed
        mode = stat.S_IMODE((tmp_path / "certs" / name).stat().st_mode)
        secret = "key" in name or "secret" in name
        assert mode == (0o600 if secret else 0o644)
    assert "mkcert" in printed
    assert "until 20" in printed


def test_secrets_are_never_printed_and_have_32_bytes(tmp_path, capsys):
    make(tmp_path)
    printed = capsys.readouterr().out
    found = [(tmp_path / name).read_text() for name in ("shared_secret", "cookie_secret")]
    assert found[0] != found[1]
    for text in found:
        assert len(base64.b64decode(text)) == 32
        assert text not in printed


def test_the_wildcard_serves_applications_and_proves_no_client(tmp_path):
    make(tmp_path)
    assert handshake(tmp_path, f"wiki.{DOMAIN}", server="external") == ""
    assert handshake(tmp_path, "databroker", server="external") != ""
    complaint = handshake(tmp_path, "databroker", server="services", client="external")
    assert "purpose" in complaint


@pytest.mark.parametrize("service", SERVICES)
def test_services_know_each_other_by_name_both_ways(tmp_path, service):
    make(tmp_path)
    assert handshake(tmp_path, service, server="services", client="services") == ""


def test_the_authority_vouches_for_nothing_else(tmp_path):
    make(tmp_path)
    authority = x509.load_pem_x509_certificate((tmp_path / "authority.pem").read_bytes())
    found = authority.extensions.get_extension_for_class(x509.NameConstraints)
    assert found.critical
    names = [one.value for one in found.value.permitted_subtrees or ()]
    assert names == [DOMAIN, *SERVICES]


def test_a_new_service_name_is_added(tmp_path):
    make(tmp_path)
    assert make(tmp_path, services=(*SERVICES, "databroker.internal")) == 0
    assert handshake(tmp_path, "databroker.internal", server="services") == ""


def test_a_certificate_from_elsewhere_is_never_overwritten(tmp_path, capsys):
    make(tmp_path / "ours")
    make(tmp_path / "theirs", domain="other.test")
    for name in ("external.pem", "external-key.pem"):
        (tmp_path / "ours" / name).write_bytes((tmp_path / "theirs" / name).read_bytes())
    before = contents(tmp_path / "ours")
    assert make(tmp_path / "ours") == 2
    assert contents(tmp_path / "ours") == before
    complaint = capsys.readouterr().err
    assert "external.pem was issued by CN=Gatehouse local authority for other.test" in complaint
    assert "Traceback" not in complaint


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"domain": "https://apps.example.test"}, "no DNS name"),
        ({"domain": "*.example.test"}, "no DNS name"),
        ({"domain": ""}, "no DNS name"),
        ({"services": ("data broker",)}, "no DNS name"),
        ({"owner": "root"}, "UID:GID"),
    ],
)
def test_mistakes_are_named_and_make_nothing(tmp_path, capsys, options, expected):
    assert make(tmp_path / "certs", **options) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "certs").exists()
