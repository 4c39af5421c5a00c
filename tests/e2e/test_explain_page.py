"""Administrators ask why somebody is let in or not, through Envoy, in both topologies."""

from __future__ import annotations

import json
import time

import pytest

from tests.e2e.conftest import ADA, GRACE, World
from tests.support.sign_in import sign_in

pytestmark = pytest.mark.e2e

HTML = {"accept": "text/html"}
JSON = {"accept": "application/json"}


def test_r47_an_administrator_asks_about_a_real_session_and_nobody_else(world: World) -> None:
    stack = world.stack
    page = stack.url("app.localhost", "/.pomerium/explain")
    about_grace = f"{page}?route=https://admin.localhost&who={GRACE}"
    with stack.client() as ada, stack.client() as grace, stack.client() as nobody:
        assert sign_in(ada, page, ADA)[-1].status_code == 200
        assert sign_in(grace, page, GRACE)[-1].status_code == 403
        handle = grace.cookies.get("_pomerium", domain="app.localhost")
        assert handle
        deadline = time.monotonic() + 15
        answer = ada.get(about_grace, headers=JSON)
        while "problem" in answer.json():  # until authorize's copy has heard of her session
            assert time.monotonic() < deadline, answer.text
            answer = ada.get(about_grace, headers=JSON)
        assert answer.headers["cache-control"] == "no-store"
        found = answer.json()
        assert found["explanation"]["outcome"] == "denied 403"
        assert found["explanation"]["email"] == GRACE
        (change,) = found["explanation"]["changes"]
        assert change["needs"][0]["instead"] == "email-ok"
        # And it is what the session meets.
        assert sign_in(grace, stack.url("admin.localhost"), GRACE)[-1].status_code == 403
        shown = ada.get(about_grace, headers=HTML)
        assert "Refused with 403" in shown.text
        for text in (shown.text, json.dumps(found)):
            assert handle not in text
            assert "eyJ" not in text  # no token of any kind

        for client, html, json_ in ((grace, 403, 403), (nobody, 302, 401)):
            for url in (page, about_grace):
                assert client.get(url, headers=HTML).status_code == html
                refused = client.get(url, headers=JSON)
                assert refused.status_code == json_
                assert ADA not in refused.text
    log = "".join(process.log() for process in stack.processes.values())
    assert "decision explained" in log
    assert "explanation refused" in log
