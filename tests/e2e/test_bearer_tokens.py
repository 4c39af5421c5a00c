"""Programs that show a provider's token instead of signing in: through Envoy, both topologies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import jwt
import pytest

from tests.support.bearer_world import signed_in_program
from tests.support.identity import id_token_of
from tests.support.stack import Stack
from tests.support.upstream import EchoUpstream, headers_of

pytestmark = pytest.mark.e2e

FORMATS = {
    "app.localhost": "idp_access_token",
    "admin.localhost": "idp_identity_token",
    "public.localhost": "jwt",
}
MakeStack = Callable[..., tuple[Stack, EchoUpstream]]


def bearer_routes(upstream: str) -> list[dict[str, Any]]:
    return [
        {
            "from": f"https://{host}",
            "to": upstream,
            "bearer_token_format": token_format,
            "allow_any_authenticated_user": True,
            "pass_identity_headers": True,
        }
        for host, token_format in FORMATS.items()
    ]


@pytest.mark.parametrize("split", [False, True], ids=["all_in_one", "four_processes"])
def test_each_format_through_envoy(fresh_stack: MakeStack, provider: str, split: bool) -> None:
    stack, upstream = fresh_stack(split=split)
    stack.routes = bearer_routes(upstream.url)
    stack.extra = {
        "log_level": "debug",
        "certificate_authority_file": str(stack.certificates.authority),
        "identity_providers": {"ci": {"issuer": provider, "audiences": [stack.client_id]}},
    }
    stack.write_config()
    stack.start()
    program = asyncio.run(signed_in_program(provider, "ada@example.com", client_id=stack.client_id))
    tokens = {
        "app.localhost": (program.tokens.access_token, program.user_id),
        "admin.localhost": (id_token_of(program).raw, program.user_id),
        "public.localhost": (id_token_of(program).raw, f"ci/{program.subject}"),
    }
    with stack.client() as http:
        for host, (token, user_id) in tokens.items():
            url = stack.url(host, "/data")
            header = f"Bearer {token}"
            answer = http.get(url, headers={"authorization": header})
            assert answer.status_code == 200, (host, answer.text)
            seen = headers_of(answer.json())
            assert seen["authorization"] == header  # still the upstream's to read
            assertion = jwt.decode(
                seen["x-pomerium-jwt-assertion"], options={"verify_signature": False}
            )
            assert assertion["sub"] == user_id, host
            before = len(upstream.requests)
            refused = http.get(url, headers={"authorization": f"Bearer {token[:-6]}"})
            assert refused.status_code == 403, (host, refused.text)
            assert token[:-6] not in refused.text
            without = http.get(url, headers={"accept": "application/json"})
            assert without.status_code == 401
            assert len(upstream.requests) == before
        both = http.get(
            stack.url("public.localhost"),
            headers={
                "authorization": f"Bearer {id_token_of(program).raw}",
                "cookie": "_pomerium=x",
            },
        )
        assert both.status_code == 400
        # Questions about tokens are for services alone.
        question = {"accessToken": program.tokens.access_token, "identityProviderId": ""}
        asked = http.post(f"{stack.authenticate_url}/.pomerium/verify-access-token", json=question)
        assert asked.status_code == 401
    for process in stack.processes.values():
        log = process.log() + process.access_log()
        assert program.tokens.access_token not in log
        assert id_token_of(program).raw not in log


def test_authenticate_is_not_believed_without_its_certificate(
    fresh_stack: MakeStack, provider: str
) -> None:
    """The local authority is not trusted here, so no token is ever sent."""
    stack, upstream = fresh_stack(split=True)
    stack.routes = bearer_routes(upstream.url)[:1]
    stack.write_config()
    stack.start()
    program = asyncio.run(signed_in_program(provider, "ada@example.com", client_id=stack.client_id))
    with stack.client() as http:
        header = {"authorization": f"Bearer {program.tokens.access_token}"}
        answer = http.get(stack.url("app.localhost"), headers=header)
        assert answer.status_code == 503
    assert upstream.requests == []
