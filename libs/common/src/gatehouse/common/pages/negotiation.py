"""The form a client wants its answer in: HTML, JSON or plain text.

RFC 9110 section 12.5.1, as browsers and command line tools use it: a page is the default, and
only a client that prefers something else gets something else.
"""

from __future__ import annotations

from typing import Final, Literal

AnswerForm = Literal["html", "json", "plain"]

_FORMS: Final[dict[str, AnswerForm]] = {
    "text/html": "html",
    "application/xhtml+xml": "html",
    "text/*": "html",
    "*/*": "html",
    "application/json": "json",
    "application/*": "json",
    "text/plain": "plain",
}
_ACCEPT_LIMIT: Final = 4096


def negotiate(accept: str | None) -> AnswerForm:
    """The form that `accept` prefers: highest q first, then position; HTML when it says nothing.

    A range with q=0 or an unreadable q counts as not listed.
    """
    if accept is None or len(accept) > _ACCEPT_LIMIT:
        return "html"
    best: AnswerForm | None = None
    best_q = 0.0
    for element in accept.split(","):
        media_range, *parameters = element.split(";")
        form = _FORMS.get(media_range.strip().lower())
        if form is None:
            continue
        q = _quality(parameters)
        if q > best_q:
            best, best_q = form, q
    return best or "html"


def wants_exact_json(accept: str | None) -> bool:
    """True when `accept` is exactly `application/json`: how the pages' own callers ask for JSON."""
    return accept is not None and accept.strip().lower() == "application/json"


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            text = value.strip()
            if not text or not text.replace(".", "", 1).isdigit() or not text.isascii():
                return 0.0
            return min(float(text), 1.0)
    return 1.0
