from __future__ import annotations

import json

import httpx
import pytest
import structlog

from gatehouse.common.errors import InvalidTokenError
from gatehouse.common.pages.endpoints import (
    Call,
    Endpoint,
    EndpointApp,
    Guard,
    html,
    parse_parameters,
    plain,
    redirect,
)
from gatehouse.common.pages.refusal import RefusedRequestError, storage_unavailable
from tests.support.clock import SeededRng

HOST = "app.example.com"


class World:
    """An application with one endpoint of each kind, and what they saw."""

    def __init__(self) -> None:
        self.seen: list[Call] = []
        self.verified: list[str] = []

        async def answer(call):
            self.seen.append(call)
            return plain("fine")

        async def form(call):
            return plain(json.dumps(await call.form()))

        async def refuse(_call):
            error = storage_unavailable("the log only")
            error.add_cookies(("a=1; Secure", "b=2; Secure"))
            raise error

        async def crash(_call):
            raise RuntimeError("secret-in-a-traceback")

        async def page(_call):
            return html("<!DOCTYPE html><title>x</title>")

        async def away(_call):
            return redirect("https://other.example.com/", set_cookies=["a=1", "b=2"])

        unsafe = ("GET", "POST")
        self.app = EndpointApp(
            endpoints=(
                Endpoint("/signed", answer),
                Endpoint("/maybe", answer, guard=Guard.SIGNED_IF_MARKED, why="test"),
                Endpoint("/open", answer, methods=unsafe, guard=Guard.OPEN, why="test"),
                Endpoint(
                    "/anyone", form, methods=unsafe, guard=Guard.OPEN, why="t", any_origin=True
                ),
                Endpoint("/probe", answer, guard=Guard.OPEN, why="t", any_host=True),
                Endpoint("/refuse", refuse, guard=Guard.OPEN, why="test"),
                Endpoint("/crash", crash, guard=Guard.OPEN, why="test"),
                Endpoint("/page", page, guard=Guard.OPEN, why="test"),
                Endpoint("/away", away, guard=Guard.OPEN, why="test"),
            ),
            verify=self.verify,
            canonical_host=lambda host: host if host.startswith(HOST) else None,
            rng=SeededRng(),
            log=structlog.get_logger(),
        )

    def verify(self, url):
        self.verified.append(url)
        if "pomerium_signature=good" not in url:
            raise InvalidTokenError("bad signature: internal detail")

    async def send(self, method, path, **options):
        transport = httpx.ASGITransport(self.app.asgi)
        async with httpx.AsyncClient(transport=transport, base_url=f"https://{HOST}") as client:
            return await client.request(method, path, **options)

    async def get(self, path, **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.send("GET", path, headers=named)


@pytest.fixture
def world():
    return World()


async def test_a_signed_endpoint_verifies_the_url_as_it_was_sent(world):
    response = await world.get("/signed?b=%20x&a=1+2&pomerium_signature=good")
    assert response.status_code == 200
    assert world.verified == [f"https://{HOST}/signed?b=%20x&a=1+2&pomerium_signature=good"]
    assert world.seen[0].params == {"b": " x", "a": "1 2", "pomerium_signature": "good"}
    assert world.seen[0].signed


async def test_r27_an_unsigned_url_never_reaches_a_signed_endpoint(world):
    for path in ("/signed", "/signed?a=b", "/signed?pomerium_signature=bad"):
        response = await world.get(path)
        assert response.status_code == 400
        assert "internal detail" not in response.text
    assert world.seen == []


async def test_r27_half_a_signature_counts_as_one(world):
    assert (await world.get("/maybe?x=1")).status_code == 200
    assert not world.seen[0].signed
    for mark in ("pomerium_signature", "pomerium_issued", "pomerium_expiry"):
        assert (await world.get(f"/maybe?{mark}=")).status_code == 400
    assert len(world.seen) == 1


@pytest.mark.parametrize(
    "query",
    ["a=1&a=2", "a=1&%61=2", "a&a", "a=%ff", "a=%C3", "&".join(f"k{n}=1" for n in range(65))],
)
async def test_ambiguous_queries_are_refused(world, query):
    assert (await world.get(f"/open?{query}")).status_code == 400
    assert world.seen == []


async def test_a_query_may_hold_16_kib(world):
    assert (await world.get("/open?a=" + "x" * (16 * 1024 - 2))).status_code == 200
    assert (await world.get("/open?a=" + "x" * (16 * 1024 - 1))).status_code == 400


def test_parameters_are_parsed_strictly():
    assert parse_parameters(b"a=1&b=&c") == {"a": "1", "b": "", "c": ""}
    for raw in (b"a=1&a=1", b"\xff", b"a=%ff"):
        with pytest.raises(RefusedRequestError):
            parse_parameters(raw)


async def test_other_methods_are_refused_with_the_ones_that_work(world):
    response = await world.send("DELETE", "/open")
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, POST"
    assert (await world.send("HEAD", "/signed?pomerium_signature=good")).status_code == 405
    assert world.seen == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": f"https://{HOST}"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site"}, 400),
        ({"sec-fetch-site": "same-site"}, 400),
        ({"sec-fetch-site": "cross-site", "origin": f"https://{HOST}"}, 400),
        ({"origin": "https://evil.example.net"}, 400),
        ({"origin": f"http://{HOST}"}, 400),
        ({"origin": "null"}, 400),
    ],
)
async def test_r34_unsafe_methods_of_other_sites_are_refused(world, headers, status):
    assert (await world.send("POST", "/open", headers=headers)).status_code == status
    assert (await world.send("GET", "/open", headers=headers)).status_code == 200
    assert (
        await world.send("POST", "/anyone", data={"a": "b"}, headers=headers)
    ).status_code == 200


async def test_forms_are_small_and_unambiguous(world):
    assert (await world.send("POST", "/anyone", data={"a": "b"})).json() == {"a": "b"}
    kind = {"content-type": "application/x-www-form-urlencoded"}
    big = await world.send("POST", "/anyone", content="a=" + "x" * 66_000, headers=kind)
    assert big.status_code == 413
    twice = await world.send("POST", "/anyone", content="a=1&a=2", headers=kind)
    assert twice.status_code == 400
    other = await world.send("POST", "/anyone", json={"a": "b"})
    assert other.status_code == 400


@pytest.mark.parametrize("host", ["evil.example.net", "", "x" * 300])
async def test_unknown_hosts_are_not_served(world, host):
    response = await world.get("/open", host=host)
    assert response.status_code == 404
    assert (await world.get("/probe", host=host)).status_code == 200


async def test_two_hosts_are_none(world):
    headers = [("host", HOST), ("host", HOST)]
    assert (await world.send("GET", "/open", headers=headers)).status_code == 404


async def test_a_refusal_is_a_page_or_json(world):
    page = await world.get("/refuse", accept="text/html,application/json", x_request_id="req-7")
    assert page.status_code == 503
    assert page.headers["retry-after"] == "5"
    assert page.headers["x-pomerium-intercepted-response"] == "true"
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers.get_list("set-cookie") == ["a=1; Secure", "b=2; Secure"]
    assert "req-7" in page.text
    assert "the log only" not in page.text
    document = await world.get("/refuse", accept="application/json", x_request_id="<x>")
    assert document.headers["content-type"] == "application/json"
    assert document.json()["Status"] == 503
    assert document.json()["RequestID"] == document.headers["x-request-id"]
    assert "<x>" not in document.text


async def test_a_crash_is_a_page_without_its_reason(world):
    response = await world.get("/crash")
    assert response.status_code == 500
    assert "secret-in-a-traceback" not in response.text
    assert "RuntimeError" not in response.text


async def test_unknown_paths_are_a_page(world):
    for path in ("/", "/missing", "/signed/", "/SIGNED", "/open/../open/x"):
        response = await world.get(path)
        assert response.status_code == 404, path
        assert "There is no such page" in response.text
    assert world.seen == []


async def test_every_answer_forbids_storing_and_referrers(world):
    for path in ("/page", "/away", "/open", "/missing", "/crash"):
        headers = (await world.get(path)).headers
        assert headers["cache-control"] == "no-store", path
        assert headers["referrer-policy"] == "no-referrer", path
        assert headers["x-content-type-options"] == "nosniff", path


async def test_cookies_of_a_redirect_are_lines_of_their_own(world):
    response = await world.get("/away")
    assert response.status_code == 302
    assert response.headers["location"] == "https://other.example.com/"
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]


def test_an_endpoint_without_a_signature_must_say_why():
    async def handler(_call):
        return plain("")

    with pytest.raises(AssertionError):
        Endpoint("/x", handler, guard=Guard.OPEN)
