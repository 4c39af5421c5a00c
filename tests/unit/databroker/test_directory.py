"""What a directory document says, and what is wrong with one that says nothing."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.databroker.core import directory
from gatehouse.databroker.core.directory import (
    DirectoryError,
    DirectoryGroup,
    DirectoryUser,
    parse_directory,
)

JSON = """
{
  "groups": [{"id": "g1", "name": "Engineering"}, {"id": "g2"}],
  "users": [
    {"id": "u1", "email": "ann@example.com", "name": "Ann", "groups": ["g1", "g2", "g1"]},
    {"id": "u2", "groups": []}
  ]
}
"""
CSV = """\ufeffid,email,name,groups
u1,ann@example.com,"Ann, the first",g1; g2
u2,,,

u3,bob@example.com,Bob,g2
"""


def test_json() -> None:
    found = parse_directory(JSON.encode())
    assert found.users == {
        "u1": DirectoryUser("u1", "ann@example.com", "Ann", ("g1", "g2")),
        "u2": DirectoryUser("u2", None, "", ()),
    }
    assert found.groups == {
        "g1": DirectoryGroup("g1", "Engineering"),
        "g2": DirectoryGroup("g2", "g2"),
    }


def test_csv() -> None:
    found = parse_directory(CSV.encode())
    assert found.users == {
        "u1": DirectoryUser("u1", "ann@example.com", "Ann, the first", ("g1", "g2")),
        "u2": DirectoryUser("u2", None, "", ()),
        "u3": DirectoryUser("u3", "bob@example.com", "Bob", ("g2",)),
    }
    assert found.groups.keys() == {"g1", "g2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"users": [\n{"id": 1', "line 2: not JSON"),
        ("[]", "line 1: the header must name id and groups"),
        ("", "line 1: the header must name id and groups"),
        ("<html>\nSign in</html>", "line 1: the header"),
        ("{}", "document: users is missing"),
        ('{"users": [], "people": []}', "document: unknown key 'people'"),
        ('{"users": {}}', "users: is no list"),
        ('{"users": [1]}', "users[0]: is no object"),
        ('{"users": [{"id": "u"}]}', "users[0]: groups is missing"),
        ('{"users": [{"id": "u", "groups": "g1"}]}', "users[0]: groups is no list"),
        ('{"users": [{"id": "u", "groups": [null]}]}', "users[0]: a group id is missing"),
        ('{"users": [{"id": "u", "groups": [["g"]]}]}', "users[0]: a group id is missing"),
        ('{"users": [{"id": 7, "groups": []}]}', "users[0]: id is missing or no text"),
        ('{"users": [{"id": " u", "groups": []}]}', "users[0]: id holds blanks"),
        ('{"users": [{"id": "u", "groups": [], "mail": "x"}]}', "unknown key 'mail'"),
        ('{"users": [{"id": "u", "groups": [], "email": "a\\nb"}]}', "email is no line of text"),
        ('{"users": [], "users": []}', "the key 'users' is there twice"),
        ('{"users": [], "groups": [{"id": "g"}, {"id": "g"}]}', "group 'g' is there twice: gr"),
        ("id,groups\nu1,g1\nu2,g1\nu1,g2\n", "line 4: user 'u1' is there twice: line 2"),
        ("id,groups\nu1,g1,more\n", "line 2: 3 fields, the header has 2"),
        ("id,groups\n,g1\n", "line 2: id is missing"),
        ("id\nu1\n", "line 1: the header must name id and groups"),
        ("id,groups,groups\nu1,a,b\n", "each once"),
        ('id,groups\nu1,"g1\n', "line 2: not CSV"),
        ("[" * 100_000, "line 1"),
        ('{"users":' + "[" * 100_000, "not JSON"),
    ],
)
def test_r42_mistakes_are_named_and_nothing_is_guessed(text: str, message: str) -> None:
    with pytest.raises(DirectoryError) as caught:
        parse_directory(text.encode())
    assert message in str(caught.value)


def test_every_mistake_up_to_ten_is_named() -> None:
    text = "id,groups\n" + "".join(f"u{number},g,x\n" for number in range(25))
    with pytest.raises(DirectoryError) as caught:
        parse_directory(text.encode())
    assert "line 2: " in str(caught.value)
    assert "line 11: " in str(caught.value)
    assert "and 15 more mistakes" in str(caught.value)


def test_bytes_that_are_no_text_and_documents_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DirectoryError, match="line 2: not UTF-8"):
        parse_directory(b"id,groups\nu\xff,g\n")
    monkeypatch.setattr(directory, "MAX_DOCUMENT_BYTES", 20)
    with pytest.raises(DirectoryError, match="MiB"):
        parse_directory(b"id,groups\n" + b"u" * 20)
    monkeypatch.undo()
    monkeypatch.setattr(directory, "MAX_ENTRIES", 2)
    for text in (
        "id,groups\na,\nb,\nc,\n",
        json.dumps({"users": [{"id": str(number), "groups": []} for number in range(3)]}),
    ):
        with pytest.raises(DirectoryError, match="more than 2"):
            parse_directory(text.encode())


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8")))
def test_anything_else_is_an_error_of_its_own_kind(data: bytes) -> None:
    with contextlib.suppress(DirectoryError):
        parse_directory(data)
