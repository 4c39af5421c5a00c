from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography import x509

from gatehouse.cli.demo.certificates import DEMO_HOSTS, ensure_certificates
from gatehouse.common.clock import SystemClock
from gatehouse.common.errors import FailedPreconditionError

DAY_S = 86400.0


class ShiftedClock(SystemClock):
    """The machine's clock, some days on."""

    def __init__(self, days: float) -> None:
        self.days = days

    def now_s(self) -> float:
        return super().now_s() + self.days * DAY_S


def contents(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_made_once_and_left_alone(tmp_path):
    directory = tmp_path / "deep" / "ca"
    first = ensure_certificates(directory)
    before = contents(directory)
    second = ensure_certificates(directory)
    assert contents(directory) == before
    assert (first.authority_made, second.authority_made) == (True, False)
    assert len(before) == 4


def test_keys_are_for_their_owner_only(tmp_path):
    made = ensure_certificates(tmp_path / "ca")
    assert mode(tmp_path / "ca") == 0o700
    assert mode(made.key) == mode(made.authority.with_name("authority-key.pem")) == 0o600
    made.key.chmod(0o644)
    ensure_certificates(tmp_path / "ca")
    assert mode(made.key) == 0o600


def test_a_leaf_near_its_end_is_renewed_under_the_same_authority(tmp_path):
    made = ensure_certificates(tmp_path)
    before = contents(tmp_path)
    ensure_certificates(tmp_path, clock=ShiftedClock(149))
    assert contents(tmp_path) == before
    again = ensure_certificates(tmp_path, clock=ShiftedClock(151))
    after = contents(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {made.certificate.name}
    assert not again.authority_made


def test_an_old_authority_is_replaced_with_its_leaf(tmp_path):
    ensure_certificates(tmp_path)
    again = ensure_certificates(tmp_path, clock=ShiftedClock(3300))
    assert again.authority_made
    leaf = x509.load_pem_x509_certificate(again.certificate.read_bytes())
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(again.authority.read_bytes()))


def test_a_new_host_gets_a_new_leaf(tmp_path):
    ensure_certificates(tmp_path)
    made = ensure_certificates(tmp_path, hosts=(*DEMO_HOSTS, "new.localhost"))
    leaf = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "new.localhost" in names.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize("host", ["example.com", "localhost.example.com", "notlocalhost", ""])
def test_names_outside_localhost_are_refused(tmp_path, host):
    with pytest.raises(FailedPreconditionError, match="names below it"):
        ensure_certificates(tmp_path, hosts=(host,))


@pytest.mark.parametrize("name", ["authority.pem", "authority-key.pem", "localhost-key.pem"])
def test_a_broken_file_is_named_with_the_way_out(tmp_path, name):
    ensure_certificates(tmp_path)
    (tmp_path / name).write_text("garbage")
    with pytest.raises(FailedPreconditionError, match=rf"{name} should be .* remove"):
        ensure_certificates(tmp_path)


def test_the_authority_is_constrained_to_this_machine(tmp_path):
    made = ensure_certificates(tmp_path)
    authority = x509.load_pem_x509_certificate(made.authority.read_bytes())
    found = authority.extensions.get_extension_for_class(x509.NameConstraints)
    assert found.critical
    assert found.value.permitted_subtrees == [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_network("127.0.0.0/8")),
        x509.IPAddress(ipaddress.ip_network("::1/128")),
    ]
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert constraints == x509.BasicConstraints(ca=True, path_length=0)
    life = authority.not_valid_after_utc - authority.not_valid_before_utc
    assert life < dt.timedelta(days=3652)


def test_many_at_once_agree(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: ensure_certificates(tmp_path), range(16)))
    assert len({one.key for one in made}) == 1
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made[0].certificate, made[0].key)  # certificate and key fit


@pytest.mark.parametrize(
    "host", ["app.localhost", "admin.localhost", "authenticate.localhost", "localhost"]
)
def test_a_strict_client_accepts_it_for_the_demo_hosts(tmp_path, host):
    made = ensure_certificates(tmp_path)
    assert handshake(made, host) == ""


def test_a_strict_client_refuses_it_for_anything_else(tmp_path):
    made = ensure_certificates(tmp_path)
    assert "certificate is not valid for 'app.example.com'" in handshake(made, "app.example.com")


def handshake(made, host: str) -> str:
    """Try TLS as `host`; the client's complaint, or nothing."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.certificate, made.key)
    client = ssl.create_default_context(cafile=str(made.authority))
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except ssl.SSLError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    else:
        return ""
    finally:
        ours.close()
        thread.join(5)
