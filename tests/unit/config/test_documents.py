"""Values and lines of each file format."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.config.documents import (
    DocumentError,
    parse_document,
    parse_yaml_value,
)
from gatehouse.common.config.numerals import text_of


def read(text: str, file_format: str = "yaml"):
    return parse_document(text, file_format, lower_keys=True)


def test_yaml_lines_and_lower_case_keys() -> None:
    document = read("A: 1\nb:\n  - C: x\n    d: [1, 2]\n  - {E: f,\n     g: h}\n")
    assert document.data == {"a": 1, "b": [{"c": "x", "d": [1, 2]}, {"e": "f", "g": "h"}]}
    assert document.lines["a",] == 1
    assert document.lines["b", 0, "c"] == 3
    assert document.lines["b", 0, "d", 1] == 4
    assert document.lines["b", 1, "g"] == 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", "yes"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("012", "012"),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", 1000),
        ("-3", -3),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.2.3", "1.2.3"),
        ("-", "-"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        (":443", ":443"),
    ],
)
def test_yaml_scalars_are_those_of_go(text: str, expected: object) -> None:
    got = read(f"k: {text}\n").data["k"] if text != "-" else read("k: '-'\n").data["k"]
    assert got == expected
    assert isinstance(got, type(expected))
    assert isinstance(got, bool) is isinstance(expected, bool)


@pytest.mark.parametrize("text", ["0o17", "0x1F", "1_000", "1e3", ".5", "50494E47", "1.10", "+1"])
@pytest.mark.parametrize("file_format", ["yaml", "json", "toml"])
def test_numbers_know_how_they_were_written(text: str, file_format: str) -> None:
    written = {"yaml": f"k: {text}", "json": f'{{"k": {text}}}', "toml": f"k = {text}"}
    try:
        got = read(written[file_format], file_format).data["k"]
    except DocumentError:
        assert file_format != "yaml"  # neither JSON nor TOML has all of these
        return
    if isinstance(got, float) or file_format == "yaml":
        assert text_of(got) == text
    assert json.loads(json.dumps({"k": got})) == {"k": got}


@pytest.mark.parametrize("text", ["0", "15", "-3", "1.5", "100.25"])
def test_numbers_in_their_usual_form_are_plain(text: str) -> None:
    got = read(f"k: {text}").data["k"]
    assert type(got) in {int, float}
    assert text_of(got) == text


@pytest.mark.parametrize(
    ("text", "file_format"),
    [
        ("Routes:\n- Claim/Team: a\n  from: b\n", "yaml"),
        ('{"Routes": [{"Claim/Team": "a", "from": "b"}]}', "json"),
        ('[[Routes]]\n"Claim/Team" = "a"\nfrom = "b"\n', "toml"),
    ],
)
def test_keys_that_lost_their_capitals_are_remembered(text: str, file_format: str) -> None:
    document = read(text, file_format)
    assert document.data == {"routes": [{"claim/team": "a", "from": "b"}]}
    assert document.lowered == {("routes",): "Routes", ("routes", 0, "claim/team"): "Claim/Team"}
    assert parse_document("A: 1", "yaml", lower_keys=False).lowered == {}


def test_yaml_merges_keep_own_keys() -> None:
    document = read(
        "base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  x: 3\nmore:\n  x: 4\n  <<: [*b, {z: 5}]\n"
    )
    assert document.data["use"] == {"x": 3, "y": 2}
    assert document.data["more"] == {"x": 4, "y": 2, "z": 5}
    assert document.lines["use", "x"] == 4
    assert document.lines["more", "x"] == 6


def test_yaml_duplicate_keys_are_all_reported() -> None:
    document = read("a: 1\nA: 2\nb:\n  c: 1\n  c: 2\n")
    assert [(path, line) for path, line, _, _ in document.problems] == [
        (("a",), 2),
        (("b", "c"), 5),
    ]
    assert "first on line 1" in document.problems[0][2]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1\nb: 2\n", 2),
        ("a: b: c\n", 1),
        ("\ta: 1\n", 1),
        ("a: 1\n---\nb: 2\n", 2),
        ("- a\n", 1),
        ("a: &x [*x]\n", 1),
    ],
)
def test_yaml_that_cannot_be_read(text: str, line: int) -> None:
    with pytest.raises(DocumentError) as caught:
        read(text)
    assert caught.value.line == line


def test_yaml_custom_tags_are_refused() -> None:
    document = read("a: !secret x\n")
    assert document.problems[0][1] == 1
    assert "!secret" in document.problems[0][2]


def test_yaml_expansion_is_bounded() -> None:
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 12))
    with pytest.raises(DocumentError, match="too many values"):
        parse_document(f"l0: &l0 x\n{levels}", "yaml", lower_keys=True, max_nodes=10_000)


def test_yaml_depth_is_bounded() -> None:
    with pytest.raises(DocumentError, match="nested too deeply"):
        read("a: " + "[" * 200 + "]" * 200)


def test_an_empty_file_is_an_empty_map() -> None:
    assert read("").data == {}
    assert read("# only a comment\n").data == {}


def test_yaml_value_keeps_the_case_of_keys() -> None:
    value, lines = parse_yaml_value("- From: x\n  To: y\n")
    assert value == [{"From": "x", "To": "y"}]
    assert lines[0, "To"] == 2


def test_json_lines() -> None:
    document = read('{\n "A": 1,\n "b": [\n  {"C": "}"},\n  [true, null]\n ]\n}\n', "json")
    assert document.data == {"a": 1, "b": [{"c": "}"}, [True, None]]}
    assert document.lines["b",] == 3
    assert document.lines["b", 0, "c"] == 4
    assert document.lines["b", 1] == 5


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", 1),
        ('{"a" 1}', 1),
        ('{"a": 1,\n}', 2),
        ('{"a": 1}\nx', 2),
        ("[1]", 1),
        ('{"a":\n tru}', 2),
        ('{"a": [1 2]}', 1),
        ("", 1),
    ],
)
def test_json_that_cannot_be_read(text: str, line: int) -> None:
    with pytest.raises(DocumentError) as caught:
        read(text, "json")
    assert caught.value.line == line


def test_json_duplicates_and_numbers_that_are_none() -> None:
    document = read('{"a": 1,\n "A": 2}', "json")
    assert document.problems[0][:2] == (("a",), 2)
    with pytest.raises(DocumentError):
        read('{"a": NaN}', "json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values), st.sampled_from([None, 1]))
def test_json_reader_agrees_with_the_standard_one(value: object, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    document = parse_document(text, "json", lower_keys=False)
    assert document.data == json.loads(text)
    assert document.problems == []


def test_toml_lines() -> None:
    document = read(
        'Address = ":8443"\n[downstream_mtls]\nca_file = "x"\n\n'
        '[[routes]]\nfrom = "https://a"\n[routes.response]\nstatus = 200\n'
        '[[routes]]\nfrom = "https://b"\nwhen = 2024-01-01\n',
        "toml",
    )
    assert document.data["routes"][0] == {"from": "https://a", "response": {"status": 200}}
    assert document.data["routes"][1]["when"] == "2024-01-01"
    assert document.lines["address",] == 1
    assert document.lines["downstream_mtls", "ca_file"] == 3
    assert document.lines["routes", 0, "from"] == 6
    assert document.lines["routes", 0, "response", "status"] == 8
    assert document.lines["routes", 1, "from"] == 10


def test_toml_that_cannot_be_read() -> None:
    with pytest.raises(DocumentError) as caught:
        read("a = 1\nb = \n", "toml")
    assert caught.value.line == 2


def test_env_files() -> None:
    document = read("# x\nexport ADDRESS=':1'\nIDP_CLIENT_ID=a=b\n\n", "env")
    assert document.data == {"address": ":1", "idp_client_id": "a=b"}
    assert document.lines["idp_client_id",] == 3
    with pytest.raises(DocumentError) as caught:
        read("A=1\nwhat\n", "env")
    assert caught.value.line == 2
