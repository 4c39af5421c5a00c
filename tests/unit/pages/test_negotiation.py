from __future__ import annotations

import pytest

from gatehouse.common.pages import negotiate, wants_exact_json


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
    ],
)
def test_the_form_is_the_one_that_is_preferred(accept, form):
    assert negotiate(accept) == form


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
