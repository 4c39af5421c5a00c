"""Sign-ins that reach several hosts and sign-outs that reach several browsers, through Envoy."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import ADA, GRACE, World
from tests.support.sign_in import follow, sign_in
from tests.support.stack import Stack
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

HTML = {"accept": "text/html"}
Make = Callable[..., tuple[Stack, EchoUpstream]]


def test_one_sign_in_covers_the_hosts_that_a_route_depends_on(fresh_stack: Make) -> None:
    stack, upstream = fresh_stack(routes=[], extra={"cookie_audience": True})
    others = ("admin.localhost", "methods.localhost")
    hosts = ("app.localhost", *others)
    stack.routes = [
        {
            "from": f"https://{host}",
            "to": upstream.url,
            "policy": [{"allow": {"or": [{"authenticated_user": True}]}}],
            **(
                {"depends_on": [f"{one}:{stack.port}" for one in others]}
                if host == "app.localhost"
                else {}
            ),
        }
        for host in (*hosts, "new.localhost")
    ]
    stack.write_config()
    stack.start()
    with stack.client() as client:
        hops = sign_in(client, stack.url("app.localhost", "/page?x=1"), ADA)
        assert hops[-1].status_code == 200
        assert str(hops[-1].url) == stack.url("app.localhost", "/page?x=1")
        callbacks = [
            urlsplit(str(hop.url)).hostname
            for hop in hops
            if urlsplit(str(hop.url)).path == "/.pomerium/callback/"
        ]
        assert callbacks == ["app.localhost", *others, *hosts]
        for host in hosts:
            answer = client.get(stack.url(host), headers=HTML)
            assert answer.status_code == 200, host  # at once: nobody was sent away
        cookie = client.cookies.get("_pomerium", domain="app.localhost")
        seen = len(upstream.requests)
    # R28: what is taken from one host is worth nothing on a host that the sign-in did not name.
    headers = {**HTML, "cookie": f"_pomerium={cookie}"}
    with stack.client() as thief:
        assert thief.get(stack.url(hosts[1]), headers=headers).status_code == 200
        assert thief.get(stack.url("new.localhost"), headers=headers).status_code == 302
        page = thief.get(stack.url("new.localhost", "/.pomerium/"), headers=headers)
        assert "You are not signed in" in page.text
    assert len(upstream.requests) == seen + 1


def test_a_person_signs_out_on_all_devices(world: World) -> None:
    app = world.stack.url("app.localhost")
    with world.stack.client() as first, world.stack.client() as second, world.stack.client() as o:
        for client, user in ((first, ADA), (second, ADA), (o, GRACE)):
            assert sign_in(client, app, user)[-1].status_code == 200
        page = first.get(f"{world.stack.authenticate_url}/.pomerium/sign_out", headers=HTML)
        link = re.search(r'href="([^"]+)">Sign out on all devices<', page.text)
        assert link is not None
        assert first.get(html.unescape(link[1])).status_code == 302
        deadline = time.monotonic() + 5
        while second.get(app, headers=HTML).status_code != 302:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert first.get(app, headers=HTML).status_code == 302
        assert o.get(app, headers=HTML).status_code == 200


def test_the_provider_reaches_the_back_channel_without_a_session(world: World) -> None:
    with world.stack.client() as client:
        known = client.get(world.stack.url("app.localhost", "/.well-known/pomerium")).json()
        assert known["backchannel_logout_uri"].startswith(world.stack.authenticate_url)
        answer = client.post(known["backchannel_logout_uri"], data={"logout_token": "a.b.c"})
        assert answer.status_code == 400
        assert answer.json()["error"] == "invalid_request"
        assert follow(client, answer) == [answer]
