"""A configuration read with the memory of an earlier one is the one read without."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.load import load_outcome
from gatehouse.common.config.memory import RouteMemory
from gatehouse.common.config.resolve import load_and_resolve
from gatehouse.common.config.route_texts import split_routes

ENVIRON = {"HOME": "/home/gatehouse"}
GLOBALS = (
    "shared_secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n"
    "authenticate_service_url: https://authenticate.example.com\n"
    "idp_provider: oidc\nidp_provider_url: https://idp.example.com\n"
    "idp_client_id: a\nidp_client_secret: b\n"
)
# Items of a list, each line after the first indented by two; `{n}` tells equal ones apart.
_TEXTS = r"""
- from: https://a{n}.example.com
  to: http://app
  allow_any_authenticated_user: true
====
- {{from: 'https://b{n}.example.com', to: [http://app, http://app2],
  allow_public_unauthenticated_access: true}}
====
- from: https://c{n}.example.com
  # a remark

  to: http://app
  policy:
    - allow:
        or:
        - email: {{is: me@example.com}}
====
- from: "https://d{n}\
    .example.com"
  response:
    status: 200
    body: |
      - not an item
      routes:

  allow_public_unauthenticated_access: true
====
- from: https://*.e{n}.example.com
  to: http://app
  prefix: /x
  allowed_users: [a@b.c]
====
- from: https://f{n}.example.com
  to: http://app
====
- from: https://g{n}.example.com
  to: http://app
  allowed_users: [a@b.c]
  colour: red
====
- From: https://h{n}.example.com
  to: http://app
  allowed_users: [a@b.c]
  allowed_idp_claims:
    Groups: [x]
====
- from: https://i{n}.example.com
  to: http://app
  lb_policy: RANDOM
  allowed_users: [a@b.c]
====
- from: http://j{n}.example.com
  to: http://app
  allowed_users: [a@b.c]
====
- from: https://k{n}.example.com
  to: http://app
  timeout: soon
====
- from: https://l{n}.example.com
  to: http://app
  to: http://twice
====
- from: https://m{n}.example.com
  to: http://app
  tls_custom_ca_file: /nowhere/ca.pem
  allowed_users: [a@b.c]
====
- &shared
  from: https://n{n}.example.com
  to: http://app
  allowed_users: [a@b.c]
====
- <<: *shared
  from: https://o{n}.example.com
====
- from: 'https://p{n}.example.com
- '
====
- text
"""
ITEMS = tuple(item.strip("\n") + "\n" for item in _TEXTS.split("====\n"))
TAILS = (
    *("", "timeout_read: 10s\n", "# the end\n", "...\n", "---\n- a: 1\n"),
    "policy:\n- from: https://z.example.com\n",
)
WRITTEN = st.tuples(st.sampled_from(ITEMS), st.integers(0, 3)).map(
    lambda pair: pair[0].format(n=pair[1])
)
EDIT = st.tuples(
    st.sampled_from(("insert", "remove", "replace", "swap")), st.integers(0, 20), WRITTEN
)
LAYOUT = st.tuples(
    st.sampled_from(("", "  ")),  # where the list stands
    st.sampled_from(("", "log_level: warn\n", "timeout_idle: 2m\n", "note: 'open\n  '\n")),
    st.sampled_from(TAILS),
    st.sampled_from(("\n", "\r\n")),
)


def edited(routes: Sequence[str], edit: tuple[str, int, str]) -> list[str]:
    what, where, text = edit
    found = list(routes)
    at = where % (len(found) + 1)
    if what == "insert":
        found.insert(at, text)
    elif at < len(found):
        if what == "remove":
            del found[at]
        elif what == "replace":
            found[at] = text
        else:
            found[0], found[at] = found[at], found[0]
    return found


def file_of(routes: Sequence[str], layout: tuple[str, str, str, str]) -> bytes:
    indent, more, tail, line_end = layout
    lines = [
        indent + line if line.strip() else line for text in routes for line in text.split("\n")
    ]
    body = "\n".join(line for line in lines if line.strip() or line == "")
    text = f"{GLOBALS}{more}routes:\n{body}\n{tail}"
    return text.replace("\n", line_end).encode()


def read(path: Path, environ: Mapping[str, str], memory: RouteMemory | None) -> Any:
    """Everything that comes of a file. Private keys are new each time."""
    try:
        found, warnings = load_and_resolve(
            path, environ, random_secret=lambda: b"r" * 32, memory=memory
        )
    except ConfigError as error:
        return error.everything
    return replace(found, signing_keys=()), warnings


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(st.lists(WRITTEN, max_size=5), st.lists(st.tuples(EDIT, LAYOUT), min_size=1, max_size=6))
def test_memory_changes_no_result(
    routes: list[str], steps: list[tuple[tuple[str, int, str], tuple[str, str, str, str]]]
) -> None:
    memory, most = RouteMemory(), len(routes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        for edit, layout in steps:
            routes = edited(routes, edit)
            path.write_bytes(file_of(routes, layout))
            assert read(path, ENVIRON, memory) == read(path, ENVIRON, None)
            most = max(most, len(routes))
            assert len(memory.written) <= most
            assert len(memory.resolved) <= most


SOUND = [ITEMS[0].format(n=n) for n in range(5)]
PLAIN = ("", "", "", "\n")


def test_routes_that_did_not_change_are_the_same_objects(tmp_path: Path) -> None:
    path, memory = tmp_path / "config.yaml", RouteMemory()
    path.write_bytes(file_of(SOUND, PLAIN))
    first, _ = read(path, ENVIRON, memory)
    other = SOUND[2].replace("http://app", "http://other")
    path.write_bytes(file_of([*SOUND[:2], other, *SOUND[3:]], PLAIN))
    second, _ = read(path, ENVIRON, memory)
    same = [one is two for one, two in zip(first.routes, second.routes, strict=True)]
    assert same == [True, True, False, True, True]
    path.write_bytes(file_of(SOUND, ("", "pass_identity_headers: true\n", "", "\n")))
    third, _ = read(path, ENVIRON, memory)
    assert not any(one is two for one, two in zip(first.routes, third.routes, strict=True))
    assert first.generation != second.generation != third.generation


def test_paths_are_expanded_with_the_environment_of_each_reading(tmp_path: Path) -> None:
    path, memory = tmp_path / "config.yaml", RouteMemory()
    path.write_text(
        "routes:\n- from: https://a.example.com\n  to: http://b\n  tls_custom_ca_file: $X/ca.pem\n"
    )
    for where in ("/one", "/two"):
        found = load_outcome(path, {"X": where}, memory).settings
        assert found is not None
        assert found.routes[0].tls_custom_ca_file == f"{where}/ca.pem"


def test_a_file_that_a_route_names_is_read_each_time(tmp_path: Path) -> None:
    path, memory = tmp_path / "config.yaml", RouteMemory()
    token = tmp_path / "token"
    item = f"{SOUND[0]}  kubernetes_service_account_token_file: {token}\n"
    path.write_bytes(file_of([item], PLAIN))
    for text in ("one", "two"):
        token.write_text(text)
        found, _ = read(path, ENVIRON, memory)
        assert found.routes[0].kubernetes_service_account_token == text


@pytest.mark.parametrize("number", ["1.10", "0x1F"])
def test_a_wrong_route_with_a_number_of_its_own_form_is_reported(
    tmp_path: Path, number: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(
        file_of(
            [*SOUND, f"- from: https://a.example.com\n  to: {number}\n  timeout: soon\n"], PLAIN
        )
    )
    errors = load_outcome(path, {}, RouteMemory()).errors
    assert ["timeout" in str(error) for error in errors] == [True], errors


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\n",
        "routes: []\n",
        "routes:\n",
        "routes: &x\n- a: 1\n",
        "routes:\n- a: 1\nroutes:\n- a: 2\n",
        "routes:\n- a: 1\u2028- a: 2\n",
        "routes:\n  a: 1\n",
    ],
)
def test_what_cannot_be_cut_is_left_whole(text: str) -> None:
    assert split_routes(text) is None


def test_pieces_and_rest_are_the_whole() -> None:
    text = (
        "a: 1\nroutes: # ours\n\n# first\n  - b: 1\n    c:\n    - d\n\n  - e: |\n      - f\ng: 2\n"
    )
    split = split_routes(text)
    assert split is not None
    assert [each.line for each in split.routes] == [4, 8]
    assert [each.text for each in split.routes] == [
        "  - b: 1\n    c:\n    - d\n\n",
        "  - e: |\n      - f\n",
    ]
    assert split.rest == "a: 1\nroutes: # ours\n\n# first\n\n\n\n\n\n\ng: 2\n"
    assert split.line == 2
