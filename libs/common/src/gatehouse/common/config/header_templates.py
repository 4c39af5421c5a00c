"""Values of `set_request_headers` with references to who asks and what was asked.

`$a.b`, `${a.b}` and `${a["k"]}`, blanks allowed inside braces, `$$` for a dollar sign. One pass;
what is no reference stays as it is, and an unknown one gives nothing.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_NAME: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_TOKEN: Final = re.compile(
    rf"""\$(?:
        (?P<dollar>\$)
      | (?P<plain>{_NAME}(?:\.{_NAME})*)
      | \{{\s*(?P<braced>{_NAME}(?:\s*\.\s*{_NAME}|\s*\[\s*"(?:[^"\\]|\\.)*"\s*\])*)\s*\}}
    )""",
    re.VERBOSE,
)
_STEP: Final = re.compile(rf'{_NAME}|"(?:[^"\\]|\\.)*"')
_ESCAPE: Final = re.compile(r"\\(.)")


class Source(enum.Enum):
    """What a reference stands for."""

    ACCESS_TOKEN = "access-token"  # noqa: S105 - a name
    ID_TOKEN = "id-token"  # noqa: S105 - a name
    JWT = "jwt"
    CERTIFICATE_FINGERPRINT = "certificate-fingerprint"
    CERTIFICATE_DNS_NAMES = "certificate-dns-names"
    CERTIFICATE_EMAILS = "certificate-emails"
    REQUEST_HEADER = "request-header"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Reference:
    """One reference; `name` is the lower-case header name of a REQUEST_HEADER."""

    source: Source
    name: str = ""


@dataclass(frozen=True, slots=True)
class Template:
    """Literal text and references, in order."""

    parts: tuple[str | Reference, ...]

    @property
    def references(self) -> tuple[Reference, ...]:
        """What the text depends on."""
        return tuple(part for part in self.parts if isinstance(part, Reference))

    def render(self, resolve: Callable[[Reference], str]) -> str:
        """The text with every reference replaced once."""
        return "".join(part if isinstance(part, str) else resolve(part) for part in self.parts)


_SOURCES: Final = {
    ("pomerium", "access_token"): Source.ACCESS_TOKEN,
    ("pomerium", "id_token"): Source.ID_TOKEN,
    ("pomerium", "jwt"): Source.JWT,
    ("pomerium", "client_cert_fingerprint"): Source.CERTIFICATE_FINGERPRINT,
    ("pomerium", "client_cert_san_dns"): Source.CERTIFICATE_DNS_NAMES,
    ("pomerium", "client_cert_san_email"): Source.CERTIFICATE_EMAILS,
}


def parse_template(text: str) -> Template:
    """Never fails: what does not parse as a reference is literal."""
    parts: list[str | Reference] = []
    position = 0
    for token in _TOKEN.finditer(text):
        if token.start() > position:
            parts.append(text[position : token.start()])
        position = token.end()
        if token["dollar"]:
            parts.append("$")
        else:
            parts.append(_reference(token["plain"] or token["braced"]))
    if position < len(text):
        parts.append(text[position:])
    return Template(tuple(parts))


def _reference(expression: str) -> Reference:
    steps = tuple(_step(step) for step in _STEP.findall(expression))
    if len(steps) == 4 and steps[:3] == ("pomerium", "request", "headers"):
        return Reference(Source.REQUEST_HEADER, steps[3].lower())
    return Reference(_SOURCES.get(steps[:2], Source.NOTHING) if len(steps) == 2 else Source.NOTHING)


def _step(text: str) -> str:
    return _ESCAPE.sub(r"\1", text[1:-1]) if text.startswith('"') else text
