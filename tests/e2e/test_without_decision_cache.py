"""The one setting that switches remembered decisions off: everything is asked, all else as before.

`make e2e-checked` runs all the end-to-end tests so; this is what shows in few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gatehouse.common.ids import SESSION
from tests.e2e.conftest import GRACE, standard_routes
from tests.e2e.test_decision_cache import is_remembered, line_of, with_databroker
from tests.e2e.test_open_connections import PATIENCE_S, both_end, open_connections, routes
from tests.support.open_upstreams import echoing_websockets, event_stream
from tests.support.sign_in import sign_in
from tests.support.stack import Stack
from tests.support.upstream import headers_of

pytestmark = pytest.mark.e2e

Fresh = Callable[..., tuple[Stack, Any]]


@pytest.fixture(scope="module")
def talker() -> Iterator[str]:
    with echoing_websockets() as url:
        yield url


@pytest.fixture(scope="module")
def events() -> Iterator[str]:
    with event_stream() as url:
        yield url


def test_without_it_every_request_is_asked_about(
    fresh_stack: Fresh, talker: str, events: str
) -> None:
    stack, upstream = fresh_stack(extra={"decision_cache": False})
    own = routes(talker, events)
    own[1]["from"] = "https://new.localhost"
    stack.routes = [*standard_routes(upstream.url), *own]
    stack.write_config()
    stack.start()
    url = stack.url("app.localhost")
    with stack.client() as client:
        assert sign_in(client, url, GRACE)[-1].status_code == 200
        for _ in range(3):
            answer = client.get(url)
            assert answer.status_code == 200
            assert not is_remembered(stack, answer)
        seen = headers_of(answer.json())
        assert seen["x-set"] == "by-gatehouse"
        assert "x-pomerium-jwt-assertion" in seen
        assert "_pomerium" not in seen.get("cookie", "")
        line = line_of(stack, answer)
        assert line["user"] == GRACE
        with open_connections(stack, client, events_host="new.localhost") as (talk, listener):
            with_databroker(stack, lambda broker: broker.delete(SESSION, line["session-id"]))
            deadline = time.monotonic() + 2.0
            while client.get(url, follow_redirects=False).status_code == 200:
                assert time.monotonic() < deadline
            # These say nothing of what they rest on: they are asked about with every change.
            both_end(talk, listener, PATIENCE_S)
