from __future__ import annotations

import pytest

from gatehouse.common.pages import negotiate, prefers_json, wants_exact_json


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, "html"),
        ("", "html"),
        ("*/*", "html"),
        ("garbage", "html"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "html"),
        ("application/json", "json"),
        ("application/*", "json"),
        ("text/plain", "plain"),
        ("text/*", "html"),
        ("application/json, text/plain, */*", "json"),
        ("text/plain;q=0.5, application/json;q=0.9", "json"),
        ("text/html;q=0.5, application/json", "json"),
        ("application/json;q=0, text/plain;q=0.1", "plain"),
        ("application/json;q=nonsense, text/plain;q=0.1", "plain"),
        ("APPLICATION/JSON ; Q=1.0", "json"),
        ("text/plain;" + "x" * 5000, "html"),
        # Of equal q the more exact range counts, wherever it stands.
        ("*/*, application/json", "json"),
        ("text/*, application/json", "json"),
        ("*/*, text/html, application/json", "html"),
        ("application/json, text/html", "json"),
        ("application/*, text/plain", "plain"),
        ("*/*;q=0.9, application/json;q=0.8", "html"),
        ("text/html;q=0, */*", "html"),  # XHTML is left
        ("text/html;q=0, application/xhtml+xml;q=0, */*", "json"),
        ("application/xml", "html"),
        ("application/xhtml+xml", "html"),
        ("application/grpc-web-text", "grpc"),
        ("application/grpc+proto", "grpc"),
        ("text/html;q=0.4, application/grpc-web+proto;q=0.5", "grpc"),
        ("application/grpc;q=0.4, text/html;q=0.5", "html"),
    ],
)
def test_the_form_is_the_one_that_is_preferred(accept, form):
    assert negotiate(accept) == form


@pytest.mark.parametrize(
    ("accept", "json"),
    [
        (None, False),
        ("text/plain, application/json;q=0.1", True),
        ("application/grpc+proto, application/json;q=0.5, text/html;q=0.4", True),
        ("text/plain, text/html;q=0.2, application/json;q=0.1", False),
        ("text/plain", False),
        ("application/json;q=0", False),
    ],
)
def test_json_is_weighed_against_pages_alone(accept, json):
    assert prefers_json(accept) is json


@pytest.mark.parametrize(
    ("accept", "exact"),
    [
        ("application/json", True),
        (" Application/JSON ", True),
        ("application/json, */*", False),
        ("text/html", False),
        (None, False),
    ],
)
def test_json_pages_need_the_exact_type(accept, exact):
    assert wants_exact_json(accept) is exact
