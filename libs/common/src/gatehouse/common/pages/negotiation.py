"""The form a client wants its answer in: HTML, JSON, plain text, or what gRPC reads.

RFC 9110 section 12.5.1, as browsers and command line tools use it: a page is the default, and
only a client that prefers something else gets something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

AnswerForm: TypeAlias = Literal["html", "json", "plain", "grpc"]

_TYPES: Final[Mapping[AnswerForm, tuple[str, ...]]] = {
    "html": ("text/html", "application/xhtml+xml"),
    "json": ("application/json",),
    "plain": ("text/plain",),
    "grpc": tuple(
        f"application/grpc{kind}"
        for kind in ("", "+proto", "-web", "-web+proto", "-web-text", "-web-text+proto")
    ),
}
_ACCEPT_LIMIT: Final = 4096


def negotiate(accept: str | None) -> AnswerForm:
    """The form that `accept` prefers: by q, then the more exact range, then position.

    HTML when it says nothing. A range with q=0 or an unreadable q counts as not listed, and what is
    named with q=0 is not chosen by a wider range either.
    """
    return _best(accept, ("html", "json", "plain", "grpc"))


def prefers_json(accept: str | None) -> bool:
    """True when `accept` would rather have JSON than a page, whatever else it would like."""
    return _best(accept, ("html", "json")) == "json"


def wants_exact_json(accept: str | None) -> bool:
    """True when `accept` is exactly `application/json`: how the pages' own callers ask for JSON."""
    return accept is not None and accept.strip().lower() == "application/json"


def _best(accept: str | None, forms: tuple[AnswerForm, ...]) -> AnswerForm:
    if accept is None or len(accept) > _ACCEPT_LIMIT:
        return "html"
    ranges: list[tuple[float, int, str]] = []
    refused: set[str] = set()
    for element in accept.split(","):
        media_range, *parameters = element.split(";")
        name = media_range.strip().lower()
        q = _quality(parameters)
        if q > 0:
            ranges.append((-q, -_exactness(name), name))
        else:
            refused.add(name)
    for _, _, name in sorted(ranges, key=lambda one: one[:2]):
        for form in forms:
            if any(_covers(name, one) for one in _TYPES[form] if one not in refused):
                return form
    return "html"


def _exactness(media_range: str) -> int:
    kind, _, subtype = media_range.partition("/")
    return (kind != "*") + (subtype != "*")


def _covers(media_range: str, media_type: str) -> bool:
    if media_range in {media_type, "*/*"}:
        return True
    # XHTML is read as a page where it is named; `application/*` means data.
    return (
        media_range == f"{media_type.partition('/')[0]}/*" and media_type != "application/xhtml+xml"
    )


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            text = value.strip()
            if not text or not text.replace(".", "", 1).isdigit() or not text.isascii():
                return 0.0
            return min(float(text), 1.0)
    return 1.0
