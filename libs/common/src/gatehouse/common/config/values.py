"""How the text of one setting becomes a typed value.

Annotated types for the models. Each decoder takes what YAML, JSON, TOML or an environment variable
gives, and either returns the value or raises a `problem` whose message and fix name no secret.
Decoders that need the environment (paths) find it in the validation context.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import enum
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    GetCoreSchemaHandler,
    SecretStr,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError, core_schema

from gatehouse.common.config.numerals import text_of

ENVIRON: Final = "environ"  # validation context key: Mapping[str, str]

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_GO_DURATION: Final = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h)")
_DURATION_IN_WORDS: Final = re.compile(
    r"(?P<n>\d{1,9}) *(?:(?P<ms>ms|msecs?|milli(?:second)?s?)|(?P<s>s|secs?|seconds?)"
    r"|(?P<m>m|mins?|minutes?)|(?P<h>h|hrs?|hours?))"
)
_UNIT_S: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_USERINFO: Final = re.compile(r"//[^/?#]*@")
_VARIABLE: Final = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_MEANT: Final = {
    **dict.fromkeys(("yes", "y", "on", "enabled"), "true"),
    **dict.fromkeys(("no", "n", "off", "disabled"), "false"),
}
MAX_DURATION_S: Final = 100 * 365 * 86400.0


def problem(message: str, fix: str = "") -> PydanticCustomError:
    """A validation error with a message and what would be right."""
    return PydanticCustomError("config", "{message}", {"message": message, "fix": fix})


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that `name` was probably meant to be; empty when none is near."""
    names, text = list(known), name.lower()
    begun = [
        candidate
        for candidate in names
        if (len(text) > 1 and candidate.lower().startswith(text))
        or (len(candidate) > 3 and text.startswith(candidate.lower()))
    ]
    if len(begun) == 1:
        return begun[0]
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return matches[0] if matches else ""


def one_of(name: str, known: Iterable[str]) -> str:
    """What would be right instead of `name`: the nearest of `known`, and all of them."""
    names = list(known)
    guess = next((word for word in names if word.lower() == name.lower()), nearest(name, names))
    return f"{f'did you mean {guess}? ' if guess else ''}one of {', '.join(names)}"


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return text_of(value)
    if isinstance(value, str):
        return value
    raise problem(f"is a {kind(value)}", "a string")


def kind(value: object) -> str:
    """What a decoded value is, in the words of a configuration file."""
    if isinstance(value, Mapping):
        return "map"
    if isinstance(value, list | tuple):
        return "list"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string"


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in {0, 1}:
        return bool(value)
    if isinstance(value, str):
        if value.strip() in _TRUE:
            return True
        if value.strip() in _FALSE:
            return False
        meant = _MEANT.get(value.strip().lower())
        fix = f"did you mean {meant}? " if meant else ""
        raise problem(f"{shorten(value)} is not a boolean", f"{fix}true or false")
    raise problem(f"is a {kind(value)}", "true or false")


def _int(value: Any) -> int:
    if isinstance(value, bool):
        raise problem("is a boolean", "a whole number")
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,19}", value.strip()):
        return int(value.strip())
    if isinstance(value, str):
        raise problem(f"{shorten(value)} is not a whole number", "a whole number")
    raise problem(f"is a {kind(value)}", "a whole number")


def _between(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        number = _int(value)
        if not low <= number <= high:
            raise problem(f"{number} is out of range", f"a whole number from {low} to {high}")
        return number

    return check


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise problem("is a boolean", "a number")
    if not isinstance(value, int | float | str):
        raise problem(f"is a {kind(value)}", "a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise problem(f"{shorten(str(value))} is not a number", "a number")
    return number


def shorten(value: str) -> str:
    """A value as it may be shown: quoted, printable, at most 60 characters, no URL password."""
    value = _USERINFO.sub("//", value)
    return repr(value if len(value) <= 60 else value[:57] + "...")


def parse_go_duration(text: str) -> float | None:
    """Seconds of a Go duration (`300ms`, `1h30m`); None when it is not one.

    Source: https://pkg.go.dev/time#ParseDuration.
    """
    text = text.strip()
    if text in {"0", "+0", "-0"}:
        return 0.0
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text[1:] if text[:1] in {"+", "-"} else text
    if not rest:
        return None
    total, position = 0.0, 0
    while position < len(rest):
        match = _GO_DURATION.match(rest, position)
        if match is None or match.group()[0] in "+-":
            return None
        number, unit = re.split(r"(?<=[\d.])(?=[a-zµμ])", match.group(), maxsplit=1)
        total += float(number) * _UNIT_S[unit]
        position = match.end()
    return sign * total


def _duration(value: Any) -> float:
    fix = 'a duration with its unit, such as "300ms", "30s", "5m" or "1h30m"'
    if isinstance(value, bool):
        raise problem("is a boolean", fix)
    if isinstance(value, int | float):
        if value == 0:
            return 0.0
        raise problem(f"{value} has no unit", f'write "{value}s" for seconds; {fix}')
    if not isinstance(value, str):
        raise problem(f"is a {kind(value)}", fix)
    seconds = parse_go_duration(value)
    if seconds is None:
        if re.fullmatch(r"\d+(\.\d+)?", value.strip()):
            raise problem(
                f"{shorten(value)} has no unit", f'write "{value.strip()}s" for seconds; {fix}'
            )
        days = re.fullmatch(r"(\d{1,4}) *d(?:ays?)?", value.strip())
        if days is not None:
            raise problem(
                f"{shorten(value)} is not a duration: days are no unit",
                f'write "{int(days.group(1)) * 24}h"; {fix}',
            )
        words = _DURATION_IN_WORDS.fullmatch(value.strip().lower())
        if words is not None:
            unit = next(unit for unit, part in words.groupdict().items() if part and unit != "n")
            fix = f'write "{words["n"]}{unit}"; {fix}'
        raise problem(f"{shorten(value)} is not a duration", fix)
    if seconds < 0:
        raise problem(f"{shorten(value)} is negative", f"0s or more: {fix}")
    if seconds > MAX_DURATION_S:
        raise problem(f"{shorten(value)} is longer than a century", fix)
    return seconds


def _proto_duration(value: Any) -> float:
    fix = 'seconds with the unit s, such as "10s" or "0.5s"'
    if value == 0 and not isinstance(value, bool | str):
        return 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise problem(f"{value} has no unit", f'write "{value}s"; {fix}')
    if not isinstance(value, str):
        raise problem(f"is a {kind(value)}", fix)
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)s", value.strip())
    if match is None:
        seconds = parse_go_duration(value) or 0.0
        if 0 < seconds <= MAX_DURATION_S:
            fix = f'write "{seconds:.9f}'.rstrip("0").rstrip(".") + f's"; {fix}'
        raise problem(f"{shorten(value)} is not a duration in seconds", fix)
    if float(match.group(1)) > MAX_DURATION_S:
        raise problem(f"{shorten(value)} is longer than a century", fix)
    return float(match.group(1))


def _list(value: Any) -> Any:
    if isinstance(value, str):
        return [] if value == "" else value.split(",")
    if isinstance(value, list | tuple):
        return [_text(item) for item in value]
    if isinstance(value, Mapping):
        raise problem("is a map", "a list of strings")
    return [_text(value)]


def _one_or_list(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_text(item) for item in value]
    return [_text(value)]


def decode_json(value: Any, want: str) -> Any:
    """Parse text as JSON where a structure is expected; other values pass through."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        what = " that is not JSON" if value.lstrip().startswith(("{", "[")) else ""
        raise problem(f"is a string{what}", f"{want}, or the same as JSON") from None


def _from_json(want: str) -> Callable[[Any], Any]:
    def decode(value: Any) -> Any:
        return decode_json(value, want)

    return decode


def _string_map(value: Any) -> dict[str, str]:
    value = decode_json(value, "a map of strings")
    if not isinstance(value, Mapping):
        raise problem(f"is a {kind(value)}", "a map of strings")
    out: dict[str, str] = {}
    for key in sorted(value, key=str):
        item = value[key]
        if isinstance(item, Mapping | list | tuple) or item is None:
            raise problem(f"the value of {shorten(str(key))} is a {kind(item)}", "a string")
        out[str(key)] = _text(item)
    return out


def check_header_name(name: str) -> str:
    """A header name as RFC 9110 section 5.1 allows it; pseudo-headers are refused."""
    if not _TOKEN.fullmatch(name):
        raise problem(
            f"{shorten(name)} is not a header name", "letters, digits and !#$%&'*+-.^_`|~"
        )
    return name


def check_header_value(value: str) -> str:
    """A header value without control characters."""
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
        raise problem("a header value holds a control character", "one line of text")
    return value


def _headers(value: Any) -> dict[str, str]:
    headers = _string_map(value)
    for name, text in headers.items():
        check_header_name(name)
        check_header_value(text)
    return headers


def _header_list(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        check_header_name(name)
    return value


def _claims_headers(value: Any) -> dict[str, str]:
    """Header to claim: from a map, a list of claims, or text split on commas and blanks."""
    if isinstance(value, str):
        if value.lstrip().startswith("{"):
            return _headers(value)
        value = [part for part in re.split(r"[,\s]+", value) if part]
    if isinstance(value, list | tuple):
        value = {f"x-pomerium-claim-{_text(claim)}": _text(claim) for claim in value}
    return _headers(value)


def _flags(value: Any) -> dict[str, bool]:
    value = decode_json(value, "a map of flag names to true or false")
    if not isinstance(value, Mapping):
        raise problem(f"is a {kind(value)}", "a map of flag names to true or false")
    return {str(name): _bool(on) for name, on in value.items()}


def expand_path(text: str, environ: Mapping[str, str]) -> str:
    """Replace `$VAR`, `${VAR}` and a leading `~`; an unset variable is a problem."""

    def variable(name: str) -> str:
        if name not in environ:
            raise problem(
                f"the environment variable {name} is not set", f"set {name} or write the path out"
            )
        return environ[name]

    if text == "~" or text.startswith("~/"):
        text = variable("HOME") + text[1:]
    return _VARIABLE.sub(lambda match: variable(match.group(1) or match.group(2)), text)


def _path(value: Any, info: ValidationInfo) -> str:
    text: str = _text(value)
    if "\x00" in text:
        raise problem("the path holds a NUL character", "a file path")
    environ = (info.context or {}).get(ENVIRON)
    return text if environ is None else expand_path(text, environ)


def _path_list(value: Any, info: ValidationInfo) -> list[str]:
    return [_path(item, info) for item in _list(value)]


def _url(value: str) -> str:
    if value == "":
        return value
    fix = "an absolute URL such as https://authenticate.example.com"
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise problem(f"{shorten(value)} is not a URL", fix) from None
    if not parts.scheme:
        if re.fullmatch(r"[A-Za-z0-9.\-]+", value):
            fix = f"https://{value} or http://{value}"
        raise problem(f"{shorten(value)} has no scheme", fix)
    if re.fullmatch(r"[A-Za-z0-9.\-]+:\d{1,5}", value):  # a host, read as a scheme
        raise problem(f"{shorten(value)} has no scheme", f"https://{value} or http://{value}")
    if not parts.hostname:
        raise problem(f"{shorten(value)} has no host", fix)
    if re.search(r"[\x00-\x20\\]", value) or port == 0:
        raise problem(f"{shorten(value)} is not a URL", fix)
    if parts.username is not None or parts.password is not None:
        raise problem("the URL holds a user name or password", fix)
    return value


def _http_url(value: str) -> str:
    value = _url(value)
    if value and urlsplit(value).scheme.lower() not in {"http", "https"}:
        raise problem(
            f"{shorten(value)} has the scheme {urlsplit(value).scheme}", "http:// or https://"
        )
    return value


def decode_base64(text: str) -> bytes | None:
    """Standard alphabet with padding, line breaks ignored; None when it is not base64."""
    try:
        return base64.b64decode(re.sub(r"[\r\n]", "", text), validate=True)
    except (binascii.Error, ValueError):
        return None


def parse_host_port(text: str) -> tuple[str, int] | None:
    """The host and port of `host:port`, `:port`, `[v6]:port`; None when it is not one."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:\[\]\s/]*)):(\d{1,5})", text.strip())
    if match is None or int(match.group(3)) > 65535:
        return None
    return match.group(1) or match.group(2) or "", int(match.group(3))


def _host_port(value: str) -> str:
    if value == "":
        return value
    parsed = parse_host_port(value)
    if parsed is None or parsed[1] == 0:
        fix = "host:port with a port above 0"
        if re.fullmatch(r"[1-9]\d{0,4}", value):
            fix = f'":{value}" for all addresses of this machine, or {fix}'
        raise problem(f"{shorten(value)} is not an address", fix)
    return value


E = TypeVar("E", bound=enum.StrEnum)


class EnumOf:
    """Marks an enum field: any letters' case, the full proto name, or any suffix of it."""

    def __init__(self, proto_prefix: str = "") -> None:
        self.prefix = proto_prefix

    def _spellings(self, name: str) -> tuple[str, ...]:
        """`CODEC_TYPE_AUTO`, `AUTO`, and `ISSUERURI` for a prefix without underscore."""
        if not self.prefix:
            return (name,)
        return (f"{self.prefix}_{name}".upper(), name, f"{self.prefix}{name}".upper())

    def __get_pydantic_core_schema__(
        self, source: type[enum.StrEnum], handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        schema = handler(source)
        members = list(source)

        def decode(value: Any) -> enum.StrEnum:
            if isinstance(value, source):
                return value
            text = _text(value).strip().upper()
            if not text:
                return members[0]
            spelled = {member: self._spellings(str(member.value).upper()) for member in members}
            exact = [member for member, names in spelled.items() if text in names]
            ends = [member for member, names in spelled.items() if names[0].endswith(f"_{text}")]
            if exact or len(ends) == 1:
                return (exact or ends)[0]
            allowed = [str(member.value) for member in members if member.value]
            raise problem(
                f"unsupported value {shorten(_text(value))}", one_of(_text(value), allowed)
            )

        return core_schema.no_info_before_validator_function(decode, schema)


def _secret(value: Any) -> Any:
    return value if isinstance(value, SecretStr) else _text(value)


def _secret_list(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else [_secret(value)]


Text = Annotated[str, BeforeValidator(_text)]
Flag = Annotated[bool, BeforeValidator(_bool)]
Number = Annotated[float, BeforeValidator(_float)]
Int32 = Annotated[int, BeforeValidator(_between(-(2**31), 2**31 - 1))]
UInt32 = Annotated[int, BeforeValidator(_between(0, 2**32 - 1))]
UInt64 = Annotated[int, BeforeValidator(_between(0, 2**63 - 1))]
Port = Annotated[int, BeforeValidator(_between(0, 65535))]
Percent = Annotated[int, BeforeValidator(_between(0, 100))]
Duration = Annotated[float, BeforeValidator(_duration)]
ProtoDuration = Annotated[float, BeforeValidator(_proto_duration)]
TextList = Annotated[tuple[str, ...], BeforeValidator(_list)]
TextOrList = Annotated[tuple[str, ...], BeforeValidator(_one_or_list)]
TextMap = Annotated[dict[str, str], BeforeValidator(_string_map)]
Headers = Annotated[dict[str, str], BeforeValidator(_headers)]
HeaderNames = Annotated[tuple[str, ...], BeforeValidator(_list), AfterValidator(_header_list)]
ClaimsHeaders = Annotated[dict[str, str], BeforeValidator(_claims_headers)]
FlagMap = Annotated[dict[str, bool], BeforeValidator(_flags)]
FilePath = Annotated[str, BeforeValidator(_path)]
FilePathList = Annotated[tuple[str, ...], BeforeValidator(_path_list)]
URL = Annotated[str, BeforeValidator(_text), AfterValidator(_url)]
HttpURL = Annotated[str, BeforeValidator(_text), AfterValidator(_http_url)]
HostPort = Annotated[str, BeforeValidator(_text), AfterValidator(_host_port)]
Secret = Annotated[SecretStr, BeforeValidator(_secret)]
SecretList = Annotated[tuple[Secret, ...], BeforeValidator(_secret_list)]
FromJSON = BeforeValidator(_from_json("a map"))
ListFromJSON = BeforeValidator(_from_json("a list"))
