"""What must not show or be reached from outside: credentials in logs, the inside of Envoy."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import GRACE, World
from tests.e2e.test_security_failing import wait_for
from tests.e2e.test_security_paths import handle_of, http1, http2, pseudo
from tests.support.envoy_processes import envoy_of
from tests.support.ports import free_ports
from tests.support.stack import Stack
from tests.support.upstream import EchoUpstream, headers_of

pytestmark = pytest.mark.e2e

APP = "app.localhost"
Make = Callable[..., tuple[Stack, EchoUpstream]]


def test_r25_no_log_level_shows_a_credential(fresh_stack: Make, provider: str) -> None:
    """At these levels Envoy tells of each header of each request, in words of its own."""
    injected = secrets.token_hex(16)
    stack, upstream = fresh_stack(routes=[])
    stack.routes = [
        {
            "from": f"https://{APP}",
            "to": upstream.url,
            "allow_any_authenticated_user": True,
            "pass_identity_headers": True,
            "set_request_headers": {"X-Upstream-Token": injected},
        }
    ]
    stack.write_config()
    stack.start()
    world = World(stack, upstream, provider)
    process = stack.processes["proxy"]
    handle = handle_of(world, GRACE)
    hidden = {
        "handle": handle,
        "its signature": handle.rsplit(".", 1)[1],
        "set for the upstream": injected,
        "a cookie of the application": secrets.token_hex(16),
        "basic": base64.b64encode(b"ada:" + secrets.token_bytes(9)).decode(),
        "bearer": secrets.token_hex(16),
        "a key": secrets.token_hex(16),
        "shared secret": stack.shared_secret,
        "cookie secret": stack.cookie_secret,
        "client secret": stack.client_secret,
    }
    for level, sign in (("debug", "request headers complete"), ("trace", "completed header")):
        stack.extra = {"log_level": level}
        stack.write_config()

        def in_force(sign: str = sign) -> bool:
            return http1(world, "/ping", host=APP).status == 200 and sign in process.log()

        wait_for(in_force, 60)
        for scheme in ("basic", "bearer"):
            fields = [
                ("cookie", f"_pomerium={handle}; sid={hidden['a cookie of the application']}"),
                ("authorization", f"{scheme} {hidden[scheme]}"),
                ("x-api-key", hidden["a key"]),
            ]
            path = f"/{level}-{scheme}?pomerium_session={handle}"
            for answer in (
                http1(world, path, host=APP, lines=[": ".join(field) for field in fields]),
                http2(world, [*pseudo(path, host=APP), *fields]),
            ):
                seen = headers_of(answer.arrived)
                assert seen["x-upstream-token"] == injected
                hidden[f"assertion {level}"] = seen["x-pomerium-jwt-assertion"].rsplit(".", 1)[1]
    for where in (process.log, process.access_log):
        wait_for(lambda where=where: where().count("/trace-bearer") >= 2, 60)  # type: ignore[misc]
    told = process.log() + process.access_log()
    assert {name for name, secret in hidden.items() if secret in told} == set()


def test_r25_an_error_page_fetches_nothing_and_sends_no_address(
    fresh_stack: Make, provider: str
) -> None:
    """What was sent with the request goes neither to another upstream nor along with a picture."""
    stack, upstream = fresh_stack(routes=[])
    (gone,) = free_ports(1)
    public = {"allow_public_unauthenticated_access": True}
    stack.routes = [
        {"from": f"https://{APP}", "to": f"http://127.0.0.1:{gone}", **public},
        {"from": "https://public.localhost", "to": upstream.url, **public},
    ]
    stack.extra = {"logo_url": "https://pictures.example/logo.svg"}
    stack.write_config()
    stack.start()
    world = World(stack, upstream, provider)
    secret = secrets.token_hex(16)
    lines = [f"Cookie: sid={secret}", f"Authorization: Bearer {secret}"]
    for host, status in ((APP, 503), ("nobody.localhost", 404)):
        page = http1(world, f"/x?pomerium_session={secret}", host=host, lines=lines)
        assert page.status == status
        assert secret.encode() not in page.body
        assert dict(page.headers)["referrer-policy"] == "no-referrer"
    assert upstream.received == 0


def test_r60_configured_text_never_becomes_code_in_envoy(
    fresh_stack: Make, provider: str, tmp_path: Path
) -> None:
    owned = tmp_path / "owned"
    code = f"x' .. os.execute([[touch {owned}]]) .. ' \") os.execute([[touch {owned}]]) --]] end"
    pattern = "a.b-c+d^%w$"  # means much to a search in Lua, nothing in a cookie's name
    stack, upstream = fresh_stack(routes=[])
    stack.extra = {
        "cookie_name": pattern,
        "jwt_claims_headers": {"X-Claim": code, "X.%w+": "email"},
        "set_response_headers": {"X-Global": code},
        "access_log_fields": ["path", "query", "headers.X%w+"],
        "error_message_first_paragraph": code,
    }
    stack.routes = [
        {
            "from": f"https://{APP}",
            "to": upstream.url,
            "name": code,
            "allow_public_unauthenticated_access": True,
            "set_request_headers": {"X-Set": code},
            "remove_request_headers": ["X-Remove.%w"],
            "rewrite_response_headers": [{"header": "X-Upstream", "prefix": "e.h", "value": code}],
        }
    ]
    stack.write_config()
    stack.start()
    world = World(stack, upstream, provider)
    envoy = envoy_of(stack)
    cookies = f"Cookie: {pattern}=ours; aXb-c+d^%w$=theirs; a.b-c+d^xw$=theirs"
    for lines in ([cookies], [cookies, "X-Remove.%w: 1", "X-Removed: kept"]):
        answer = http1(world, "/a?b=%w", host=APP, lines=lines)
        seen = headers_of(answer.arrived)
        assert seen["x-set"] == code
        assert seen["cookie"] == "aXb-c+d^%w$=theirs; a.b-c+d^xw$=theirs"
        assert "x-remove.%w" not in seen
        assert dict(answer.headers)["x-global"] == code
        assert dict(answer.headers)["x-upstream"] == "echo"
    assert not owned.exists()
    assert envoy_of(stack) == envoy
