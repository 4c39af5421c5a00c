"""Every key of the model, by its kind: file form, environment form, and what is refused.

What single keys refuse beyond their kind is in `test_every_error.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, SecretStr

from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.load import load_settings
from gatehouse.common.config.model import Settings
from gatehouse.common.config.reference import key_references
from gatehouse.common.config.shape import Key, Kind, Shape, keys_of
from tests.support.configuration import load, shown, write

# Kind -> file form, environment form, what becomes of both
GOOD: dict[Kind, tuple[Any, str, Any]] = {
    Kind.TEXT: ("v", "v", "v"),
    Kind.FLAG: (True, "true", True),
    Kind.NUMBER: (0.5, "0.5", 0.5),
    Kind.WHOLE: (7, "7", 7),
    Kind.DURATION: ("1h30m", "90m", 5400.0),
    Kind.SECONDS: ("1.5s", "1.5s", 1.5),
    Kind.LIST: (["a", "b"], "a,b", ("a", "b")),
    Kind.TEXT_OR_LIST: (["a", "b"], "", ("a", "b")),
    Kind.MAP: ({"k": "v"}, '{"k": "v"}', {"k": "v"}),
    Kind.HEADERS: ({"x-a": "v"}, '{"x-a": "v"}', {"x-a": "v"}),
    Kind.HEADER_NAMES: (["x-a"], "x-a", ("x-a",)),
    Kind.CLAIMS_HEADERS: (["email"], "email", {"x-pomerium-claim-email": "email"}),
    Kind.CLAIMS: ({"group": ["a"]}, "", {"group": ["a"]}),
    Kind.PATH: ("$DIR/file", "$DIR/file", "/d/file"),
    Kind.PATHS: (["${DIR}/a", "~/b"], "${DIR}/a,~/b", ("/d/a,/h/b",)),
    Kind.URL: ("https://a.example.com", "https://a.example.com", "https://a.example.com"),
    Kind.HTTP_URL: ("http://a:8080", "http://a:8080", "http://a:8080"),
    Kind.ADDRESS: ("[::1]:9", "[::1]:9", "[::1]:9"),
    Kind.SECRET: ("s", "s", SecretStr("s")),
    Kind.SECRETS: (["s"], "s", (SecretStr("s"),)),
    Kind.MAPS: ([{"dns": "a"}], '[{"dns": "a"}]', ({"dns": "a"},)),
    Kind.ANY: ({"a": 1}, '{"a": 1}', {"a": 1}),
}
# Kind -> refused file form, part of the message
BAD: dict[Kind, list[tuple[Any, str]]] = {
    Kind.TEXT: [({}, "is a map (a string)"), (["a"], "is a list (a string)")],
    Kind.FLAG: [("maybe", "'maybe' is not a boolean (true or false)"), (2, "is a number")],
    Kind.NUMBER: [("x", "'x' is not a number"), ("nan", "is not a number")],
    Kind.WHOLE: [("x", "is not a whole number"), (1.5, "is a number"), (10**20, "out of range")],
    Kind.DURATION: [
        (30, '30 has no unit (write "30s" for seconds'),
        ("30", "'30' has no unit"),
        ("5 minutes", "is not a duration"),
        ("2d", 'is not a duration: days are no unit (write "48h"; a duration'),
        ("-1s", "is negative"),
    ],
    Kind.SECONDS: [
        ("1m", 'is not a duration in seconds (write "60s"; '),
        (5, '5 has no unit (write "5s"; '),
    ],
    Kind.LIST: [({}, "is a map (a list of strings)"), ([{}], "is a map")],
    Kind.TEXT_OR_LIST: [({}, "is a map"), ([[]], "is a list")],
    Kind.MAP: [("x", "is a string ("), ({"k": []}, "the value of 'k' is a list")],
    Kind.HEADERS: [({"a b": "v"}, "'a b' is not a header name"), ({"a": "b\nc"}, "control char")],
    Kind.HEADER_NAMES: [(["a b"], "'a b' is not a header name")],
    Kind.CLAIMS_HEADERS: [({"a b": "c"}, "is not a header name"), (5, "is a number")],
    Kind.CLAIMS: [([], "is a list")],
    Kind.FLAGS: [({"mcp": "maybe"}, "is not a boolean"), ([], "is a list")],
    Kind.PATH: [("$NOWHERE/x", "the environment variable NOWHERE is not set (set NOWHERE or")],
    Kind.PATHS: [(["$NOWHERE"], "the environment variable NOWHERE is not set")],
    Kind.URL: [("a.example.com", "has no scheme"), ("https://", "has no host")],
    Kind.HTTP_URL: [
        ("a.example.com", "'a.example.com' has no scheme (https://a.example.com or http://a.ex"),
        ("ftp://a", "has the scheme ftp (http:// or https://)"),
        ("https://u:hunter2@a", "the URL holds a user name or password"),
    ],
    Kind.ADDRESS: [
        ("9902", "'9902' is not an address (\":9902\" for all addresses of this machine, or"),
        ("a:0", "is not an address"),
        ("a:99999", "is not an address"),
    ],
    Kind.SECRET: [({}, "is a map"), (["a"], "is a list")],
    Kind.SECRETS: [([{}], "is a map")],
    Kind.CHOICE: [("hunter1", "'hunter1'"), ({}, "")],
    Kind.MAPS: [("x", "is a string ("), ([5], "is not a map")],
    Kind.MODEL: [("x", "is a string ("), (5, "is a number")],
    Kind.MODELS: [(5, "is not a list"), (["x"], "is a string (")],
    Kind.MODEL_MAP: [([], "is not a map"), ({"a": 5}, "is a number")],
    Kind.ANY: [],
}
ENVIRON = {"DIR": "/d", "HOME": "/h"}
GLOBAL = [key for key in keys_of(Settings) if key.name not in {"policy", "routes"}]
SIMPLE = [key for key in GLOBAL if key.shape.kind in GOOD]
CHOICES = [key for key in GLOBAL if key.shape.kind is Kind.CHOICE]


def nested(model: type[BaseModel], path: tuple[str | int, ...]) -> Iterator[tuple[Any, Key]]:
    """Each key below `path`, with the path of what holds it."""
    for key in keys_of(model):
        yield path, key
        below: tuple[str | int, ...] = (*path, key.name)
        if key.shape.kind is Kind.MODELS:
            below = (*below, 0)
        elif key.shape.kind is Kind.MODEL_MAP:
            below = (*below, "name")
        if key.shape.model is not None and key.name != "policy":
            yield from nested(key.shape.model, below)


INNER = [
    (path, key) for path, key in nested(Settings, ()) if path and key.shape.kind is not Kind.ANY
]


def built(path: tuple[str | int, ...], value: Any) -> Any:
    for step in reversed(path):
        value = [value] if isinstance(step, int) else {step: value}
    return value


def found(settings: BaseModel, path: tuple[str | int, ...]) -> Any:
    value: Any = settings
    for step in path:
        if isinstance(step, int) or isinstance(value, dict):
            value = value[step]
        else:
            value = getattr(value, "from_" if step == "from" else step)
    return value


def name_of(item: Any) -> str:
    return item.name if isinstance(item, Key) else ".".join(map(str, item))


def expected(shape: Shape, value: Any) -> Any:
    return ("/d/a", "/h/b") if shape.kind is Kind.PATHS else value


@pytest.mark.parametrize("key", SIMPLE, ids=name_of)
def test_file_and_environment(tmp_path: Path, key: Key) -> None:
    in_file, in_environment, value = GOOD[key.shape.kind]
    text = yaml.safe_dump({key.name: in_file})
    value = expected(key.shape, value)
    assert getattr(load(tmp_path, text, ENVIRON).settings, key.name) == value
    environ = {**ENVIRON, key.name.upper(): in_environment}
    assert getattr(load_settings(None, environ).settings, key.name) == value
    other = yaml.safe_dump({key.name: key.info.default if in_file is True else None})
    loaded = load(tmp_path, other, environ)
    assert getattr(loaded.settings, key.name) == value
    assert loaded.origins[key.name,].key == key.name.upper()


@pytest.mark.parametrize("key", CHOICES, ids=name_of)
def test_choices(tmp_path: Path, key: Key) -> None:
    for choice in key.shape.choices:
        spellings = {choice}
        if key.shape.any_case:
            spellings |= {choice.upper(), choice.lower()}
        if key.shape.prefix:
            spellings.add(f"{key.shape.prefix}_{choice}".upper())
        for spelling in spellings:
            from_file = load(tmp_path, f"{key.name}: '{spelling}'\n").settings
            from_environment = load_settings(None, {key.name.upper(): spelling}).settings
            assert str(getattr(from_file, key.name)) == choice
            assert from_file == from_environment


@pytest.mark.parametrize("key", CHOICES, ids=name_of)
def test_choices_in_other_letters_are_refused_where_case_counts(tmp_path: Path, key: Key) -> None:
    if not key.shape.any_case:
        with pytest.raises(ConfigError, match="unknown"):
            load(tmp_path, f"{key.name}: {key.shape.choices[0].swapcase()}\n")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [(key, value, message) for key in GLOBAL for value, message in BAD[key.shape.kind]],
    ids=lambda item: item.name if isinstance(item, Key) else "",
)
def test_refused(tmp_path: Path, key: Key, value: Any, message: str) -> None:
    text = json.dumps(value)
    path = write(tmp_path, f"# a comment\n{key.name}: {text}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(path, ENVIRON)
    (issue,) = caught.value.issues
    assert (issue.file, issue.line) == (str(path), 2)
    assert issue.key.startswith(key.name)
    assert message in shown(issue)
    assert issue.fix
    assert "hunter2" not in str(issue)


@pytest.mark.parametrize(("path", "key"), INNER, ids=name_of)
def test_inner_keys(tmp_path: Path, path: tuple[str | int, ...], key: Key) -> None:
    here = (*path, key.name)
    if key.shape.kind is Kind.CHOICE:
        good: Any = key.shape.choices[-1]
        assert str(found(load(tmp_path, json.dumps(built(here, good))).settings, here)) == good
    elif key.shape.kind in GOOD:
        value, _, result = GOOD[key.shape.kind]
        loaded = load(tmp_path, json.dumps(built(here, value)), ENVIRON)
        got = found(loaded.settings, here)
        if key.name == "hash_function":  # in any letters' case
            got = got.lower()
        assert got == expected(key.shape, result)
    for value, message in BAD[key.shape.kind]:
        text = json.dumps(built(here, value))
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, text, ENVIRON)
        (issue,) = caught.value.issues
        assert message in shown(issue)
        assert issue.key.replace("[0]", "").startswith(
            ".".join(step for step in here if isinstance(step, str))
        )


@pytest.mark.parametrize(
    "reference",
    [item for item in key_references() if item.path.startswith("downstream_mtls.")],
    ids=lambda item: item.path,
)
def test_nested_variables(reference: Any) -> None:
    (key,) = (
        key for path, key in INNER if f"downstream_mtls.{key.name}" == reference.path and path
    )
    if key.shape.kind is Kind.CHOICE:
        environ, value = {reference.variable: "POLICY"}, "policy"
    else:
        environ, value = {reference.variable: GOOD[key.shape.kind][1]}, GOOD[key.shape.kind][2]
    settings = load_settings(None, {**ENVIRON, **environ}).settings
    assert found(settings, ("downstream_mtls", key.name)) == value


def test_null_means_not_set(tmp_path: Path) -> None:
    names = [key.name for key in keys_of(Settings)]
    text = "".join(f"{name}:\n" for name in names)
    assert load(tmp_path, text).settings == Settings()
