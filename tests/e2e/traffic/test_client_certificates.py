"""Client certificates through a real Envoy: who gets in, who is told what, and when it changes."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from tests.support.client_pki import CLIENT, DAY, SERVER, Issued, principal
from tests.support.traffic import (
    DOMAIN,
    Connection,
    Http2Connection,
    Product,
    Reply,
    eventually,
    https,
)
from tests.support.traffic_http3 import http3_bridge
from tests.support.traffic_upstreams import Application

pytestmark = pytest.mark.e2e

ROOT = Issued.root()
OTHER = Issued.root("other authority")
MIDDLE = ROOT.authority("middle")
ADA = ROOT.issue("ada", names=[x509.RFC822Name("ada@example.com")], purposes=CLIENT)
EVE = ROOT.issue("eve", names=[x509.RFC822Name("eve@example.com")], purposes=CLIENT)
# Looks whether new settings are in force.
OPERATOR = ROOT.issue("operator", names=[x509.RFC822Name("operator@example.com")])

REFUSED = 0  # the connection, not the request


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def routes(up: str) -> list[dict[str, Any]]:
    closed = {"allow_public_unauthenticated_access": False}
    public = {"accept": True}
    return [
        https("public", to=up),
        https("signed-in", to=up, allow_any_authenticated_user=True, **closed),
        https("own", to=up, tls_downstream_client_ca=b64(OTHER.pem)),
        https(
            "rules",
            to=up,
            policy=[
                {"allow": {"or": [public]}},
                {"deny": {"or": [{"invalid_client_certificate": 1}]}},
            ],
            **closed,
        ),
        https(
            "ada",
            to=up,
            policy=[
                {
                    "allow": {
                        "and": [{"client_certificate": {"san_email": {"is": "ada@example.com"}}}]
                    }
                }
            ],
            **closed,
        ),
        https(
            "told",
            to=up,
            set_request_headers={
                "X-Fingerprint": "${pomerium.client_cert_fingerprint}",
                "X-Email": "$pomerium.client_cert_san_email",
            },
        ),
    ]


@pytest.fixture(scope="module")
def made(application: Application) -> list[dict[str, Any]]:
    return routes(application.url)


def mtls(**changes: Any) -> dict[str, Any]:
    return {"downstream_mtls": {"ca": b64(ROOT.pem), **changes}}


def client(product: Product, who: Issued | None, *above: Issued, alpn: str = "http/1.1") -> Any:
    context = product.client_tls(alpn)
    if who is not None:
        who.load_into(context, *above)
    return context


@pytest.fixture(scope="module")
def world(
    product: Product, made: list[dict[str, Any]], application: Application
) -> Iterator[Product]:
    product.guarded = application
    # Requests without a certificate would be refused, the one that waits for a reload among them.
    with product.serving(made):
        yield product


@pytest.fixture(scope="module")
def use(world: Product, made: list[dict[str, Any]]) -> Callable[..., None]:
    """Put a `downstream_mtls` in force."""

    def reload(by: Issued = OPERATOR, **changes: Any) -> None:
        world.reload(made, dial={"tls": client(world, by)}, **mtls(**changes))

    return reload


@pytest.fixture(scope="module")
def default(use: Callable[..., None]) -> None:
    use()


def session_of(connection: Connection) -> tuple[ssl.SSLSession | None, bool | None]:
    """The TLS session, and whether it is an earlier one taken up again."""
    assert isinstance(connection.socket, ssl.SSLSocket)
    return connection.socket.session, connection.socket.session_reused


def ask(product: Product, host: str, tls: Any, path: str = "/", **options: Any) -> Reply:
    """One request; unless it is the upstream's own answer, the upstream has received nothing."""
    assert product.guarded is not None
    before = product.guarded.received
    with Connection(product.port, tls) as connection:
        reply = connection.request(path, host=f"{host}.{DOMAIN}", **options)
    product.guarded.check_refusal(reply.headers, before)
    return reply


def status(product: Product, host: str, who: Issued | None, *above: Issued) -> int:
    """Of HTTP/1.1 and HTTP/2, which must agree; REFUSED when there is no connection.

    Unless it is 200, the upstream has received nothing.
    """
    assert product.guarded is not None
    before = product.guarded.received
    found = set()
    for alpn in ("http/1.1", "h2"):
        tls = client(product, who, *above, alpn=alpn)
        try:
            if alpn == "h2":
                with Http2Connection(product.port, tls) as connection:
                    found.add(connection.request(host=f"{host}.{DOMAIN}"))
            else:
                found.add(ask(product, host, tls).status)
        except (OSError, AssertionError):  # TLS 1.3 tells a client only when it reads
            found.add(REFUSED)
    (only,) = found
    assert only == 200 or product.guarded.received == before
    return only


# -- policy_with_default_deny


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("host", ["public", "signed-in", "rules", "ada", "told"])
def test_without_certificate_nothing_is_reached(world: Product, host: str) -> None:
    assert status(world, host, None) == 495


@pytest.mark.usefixtures("default")
def test_a_good_certificate_opens_public_routes_and_is_no_sign_in(world: Product) -> None:
    assert status(world, "public", ADA) == 200
    assert status(world, "rules", ADA) == 200
    assert status(world, "signed-in", ADA) == 302


@pytest.mark.usefixtures("default")
def test_a_policy_names_whom_it_lets_in(world: Product) -> None:
    assert status(world, "ada", ADA) == 200
    assert status(world, "ada", EVE) == 403


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize(
    ("who", "above"),
    [
        (OTHER.issue("other"), ()),
        (Issued.root().issue("same name"), ()),
        (ROOT.issue("old", begins=-2 * DAY, ends=-DAY), ()),
        (ROOT.issue("new", begins=DAY, ends=2 * DAY), ()),
        (MIDDLE.issue("deep"), (MIDDLE,)),
        (MIDDLE.issue("deep"), ()),
        (ADA.issue("by ada"), (ADA,)),
    ],
)
def test_bad_certificates_are_as_good_as_none(
    world: Product, who: Issued, above: tuple[Issued, ...]
) -> None:
    assert status(world, "public", who, *above) == 495


@pytest.mark.usefixtures("default")
def test_r57_a_server_certificate_is_no_client_certificate(world: Product) -> None:
    assert status(world, "public", ROOT.issue("server", purposes=SERVER)) == 495
    assert status(world, "public", ROOT.issue("both", purposes=(*SERVER, *CLIENT))) == 200


@pytest.mark.usefixtures("default")
def test_r57_a_nul_does_not_end_a_name(world: Product) -> None:
    nul = ROOT.issue("nul", names=[x509.RFC822Name("ada@example.com\0.evil.test")])
    assert status(world, "ada", nul) in {REFUSED, 495}
    assert status(world, "public", nul) in {REFUSED, 495}


@pytest.mark.usefixtures("default")
def test_a_route_may_have_authorities_of_its_own_instead(world: Product) -> None:
    other = OTHER.issue("other")
    assert status(world, "own", other) == 200
    assert status(world, "own", ADA) == 495
    assert status(world, "own", None) == 495
    assert status(world, "public", other) == 495


@pytest.mark.usefixtures("default")
def test_one_connection_may_ask_for_routes_of_different_authorities(world: Product) -> None:
    with Http2Connection(world.port, client(world, OTHER.issue("other"), alpn="h2")) as connection:
        assert connection.request(host=f"own.{DOMAIN}") == 200
        assert connection.request(host=f"public.{DOMAIN}") == 495
        assert connection.request(host=f"own.{DOMAIN}") == 200


@pytest.mark.usefixtures("default")
def test_upstreams_learn_the_certificate(world: Product) -> None:
    reply = ask(world, "told", client(world, ADA), headers=[("X-Email", "forged")])
    assert reply.arrived("x-fingerprint") == [ADA.certificate.fingerprint(SHA256()).hex()]
    assert reply.arrived("x-email") == ["ada@example.com"]


@pytest.mark.usefixtures("default")
def test_what_the_refused_are_told(world: Product) -> None:
    nobody = client(world, None)
    page = ask(world, "public", nobody, headers=[("Accept", "text/html")])
    assert page.status == 495
    assert b"A client certificate is required" in page.body
    reply = ask(world, "public", nobody, headers=[("Accept", "application/json")])
    assert reply.status == 495
    said = json.loads(reply.body)
    assert said["error"] == "a valid client certificate is required to access this page"
    reply = ask(world, "public", nobody, headers=[("Content-Type", "application/grpc")])
    assert (reply.status, reply.value("grpc-status")) == (200, "2")  # as gRPC has it
    reply = ask(world, "public", nobody, headers=[("User-Agent", "kubectl kubernetes/1")])
    assert (reply.status, json.loads(reply.body)["reason"]) == (495, "Unauthorized")


@pytest.mark.usefixtures("default")
def test_our_own_pages_need_no_certificate(world: Product) -> None:
    nobody = client(world, None)
    assert ask(world, "public", nobody, "/ping").status == 200
    assert ask(world, "public", nobody, "/.well-known/pomerium").status == 200
    assert ask(world, "unknown", nobody).status == 404


# -- constraints


def test_a_certificate_ends_while_its_connection_goes_on(
    world: Product, use: Callable[..., None]
) -> None:
    use()
    short = ROOT.issue("short", ends=dt.timedelta(seconds=2))
    ends_s = short.certificate.not_valid_after_utc.timestamp()
    with Connection(world.port, client(world, short)) as connection:
        seen = []
        while dt.datetime.now(dt.UTC).timestamp() < ends_s + 1.1:
            seen.append(connection.request(host=f"public.{DOMAIN}").status)
        last = connection.request(host=f"public.{DOMAIN}").status
    assert seen[0] == 200
    assert last == 495


def test_names(world: Product, use: Callable[..., None]) -> None:
    use(match_subject_alt_names=[{"email": r".*@example\.com"}, {"user_principal_name": "bob@.*"}])
    assert status(world, "public", ADA) == 200
    bob = ROOT.issue("bob", names=[principal("bob@corp.test")])
    assert status(world, "public", bob) == 200
    for name in (x509.RFC822Name("ada@example.com.evil.test"), x509.DNSName("a.example.com")):
        assert status(world, "public", ROOT.issue("x", names=[name])) == 495
    assert status(world, "public", ROOT.issue("ada@example.com")) == 495


def test_depth(world: Product, use: Callable[..., None]) -> None:
    deep = MIDDLE.issue("deep")
    low = MIDDLE.authority("low")
    use(max_verify_depth=2)
    assert status(world, "public", deep, MIDDLE) == 200
    assert status(world, "public", low.issue("lower"), low, MIDDLE) == 495
    use(max_verify_depth=0)
    assert status(world, "public", low.issue("lower"), low, MIDDLE) == 200


def test_revocation_reaches_connections_that_are_open(
    world: Product, use: Callable[..., None]
) -> None:
    use()
    with Http2Connection(world.port, client(world, EVE, alpn="h2")) as connection:
        assert connection.request(host=f"public.{DOMAIN}") == 200
        use(crl=b64(ROOT.revoke(EVE)))
        with contextlib.suppress(AssertionError, OSError):  # closed would do as well
            assert connection.request(host=f"public.{DOMAIN}") == 495
    assert status(world, "public", EVE) == 495
    assert status(world, "public", ADA) == 200


# -- policy


def test_with_policy_enforcement_only_rules_decide(
    world: Product, use: Callable[..., None]
) -> None:
    use(enforcement="policy")
    stranger = OTHER.issue("other")
    for who, public, rules in ((None, 200, 495), (stranger, 200, 495), (ADA, 200, 200)):
        assert status(world, "public", who) == public
        assert status(world, "rules", who) == rules
    assert status(world, "signed-in", None) == 302


# -- reject_connection


def test_reject_connection(world: Product, use: Callable[..., None]) -> None:
    use(
        enforcement="reject_connection",
        crl=b64(ROOT.revoke(EVE) + OTHER.revoke()),  # Envoy wants one of every authority
        match_subject_alt_names=[{"email": r".*@example\.com"}],
    )
    assert status(world, "public", ADA) == 200
    strangers = (
        None,
        EVE,  # revoked
        OTHER.issue("x", names=[x509.RFC822Name("x@other.test")]),
        ROOT.issue("x", names=[x509.RFC822Name("x@other.test")]),
        ROOT.issue("x", names=[x509.RFC822Name("x@example.com")], begins=-2 * DAY, ends=-DAY),
        ROOT.issue("x", names=[x509.RFC822Name("x@example.com")], purposes=SERVER),
    )
    for who in strangers:
        assert status(world, "public", who) == REFUSED
    with pytest.raises(OSError):
        ask(world, "public", client(world, None), "/ping")
    # In the handshake every authority counts; then it is the route's that does.
    other = OTHER.issue("y", names=[x509.RFC822Name("y@example.com")])
    assert status(world, "own", other) == 200
    assert status(world, "public", other) == 495


def test_r24_a_server_name_makes_no_second_record(world: Product, use: Callable[..., None]) -> None:
    """Handshakes that fail are logged with the name asked for (CVE-2024-45808)."""
    use(enforcement="reject_connection")
    assert world.guarded is not None
    before = world.guarded.received
    forged = b'x"}\n{"user":"root","y":"\x1b[2J'
    stand_in = "a" * len(forged)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client(world, None).wrap_bio(incoming, outgoing, server_hostname=stand_in)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    assert hello.count(stand_in.encode()) == 1

    def failures() -> list[dict[str, Any]]:
        lines = world.stack.processes["proxy"].access_log().splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        assert "root" not in [record.get("user") for record in records]
        return [each for each in records if each["message"] == "listener connection failure"]

    known = len(failures())
    with socket.create_connection(("127.0.0.1", world.port), 15) as raw:
        raw.sendall(hello.replace(stand_in.encode(), forged))
        with contextlib.suppress(OSError):
            assert raw.recv(65536)
            raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))  # what nobody could decrypt
            while raw.recv(65536):
                pass
    eventually(lambda: len(failures()) > known)  # whatever else fails meanwhile
    assert "\x1b" not in world.stack.processes["proxy"].access_log()
    assert world.guarded.received == before


# -- resumption (R57: CVE-2022-21654)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_r57_a_resumed_session_is_judged_like_a_new_one(
    world: Product, use: Callable[..., None], version: ssl.TLSVersion
) -> None:
    use()
    context = client(world, ADA)
    context.maximum_version = version
    first = Connection(world.port, context)
    assert first.request(host=f"told.{DOMAIN}").arrived("x-email") == ["ada@example.com"]
    session, _ = session_of(first)
    first.close()

    def again(host: str) -> tuple[bool, int, Reply | None]:
        assert world.guarded is not None
        before = world.guarded.received
        try:
            with Connection(world.port, context, session=session) as connection:
                reply = connection.request(host=f"{host}.{DOMAIN}")
                world.guarded.check_refusal(reply.headers, before)
                return bool(session_of(connection)[1]), reply.status, reply
        except OSError:
            assert world.guarded.received == before
            return False, REFUSED, None

    reused, code, reply = again("told")
    assert (reused, code) == (True, 200)
    assert reply is not None
    assert reply.arrived("x-email") == ["ada@example.com"]
    use(crl=b64(ROOT.revoke(ADA)))
    assert again("told")[1] == 495
    other = OTHER.issue("other")
    use(by=other, ca=b64(OTHER.pem))
    reused, code, _ = again("told")
    assert (reused, code) == (False, 495)
    use(by=other, ca=b64(OTHER.pem), enforcement="reject_connection")
    assert again("told")[:2] == (False, REFUSED)


def test_r57_no_session_outlives_the_list_that_revokes_it(
    world: Product, use: Callable[..., None]
) -> None:
    use(enforcement="reject_connection", crl=b64(ROOT.revoke()))
    context = client(world, ADA)
    with Connection(world.port, context) as first:
        assert first.request(host=f"public.{DOMAIN}").status == 200
        session, _ = session_of(first)
    with Connection(world.port, context, session=session) as second:
        assert second.request(host=f"public.{DOMAIN}").status == 200
        assert session_of(second)[1]
    use(enforcement="reject_connection", crl=b64(ROOT.revoke(ADA)))
    assert world.guarded is not None
    before = world.guarded.received
    with pytest.raises(OSError), Connection(world.port, context, session=session) as third:
        third.request(host=f"public.{DOMAIN}")
    assert world.guarded.received == before


# -- HTTP/3


def test_r57_http3_is_no_way_around(
    world: Product, made: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Another Envoy speaks HTTP/3 to ours."""
    pem = tmp_path / "ada.pem"
    pem.write_text(ADA.pem + ADA.key_pem)
    stranger = tmp_path / "stranger.pem"
    foreign = OTHER.issue("other")
    stranger.write_text(foreign.pem + foreign.key_pem)
    ada = {"tls": client(world, ADA)}

    def over_http3(file: Path | None) -> int:
        name = f"public.{DOMAIN}"
        assert world.guarded is not None
        before = world.guarded.received
        with (
            http3_bridge(world.port, world.authority.path, name, file) as port,
            Connection(port, None) as bridge,
        ):
            reply = bridge.request(host=name)
        world.guarded.check_refusal(reply.headers, before)
        return reply.status

    world.reload(made, dial=ada, codec_type="http3", **mtls())
    assert [over_http3(file) for file in (None, stranger, pem)] == [495, 495, 200]
    world.reload(made, dial=ada, codec_type="http3", **mtls(enforcement="reject_connection"))
    assert [over_http3(file) for file in (None, pem)] == [503, 200]
