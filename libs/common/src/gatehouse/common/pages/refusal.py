"""A request that is answered with an error page: which status, which words, what to do next."""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar

from gatehouse.common.errors import Code, GatehouseError
from gatehouse.common.pages.render import ErrorPage, Link

RETRY_AFTER_S = 5

_CODES = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    405: Code.UNIMPLEMENTED,
    413: Code.RESOURCE_EXHAUSTED,
    500: Code.INTERNAL,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
}


class RefusedRequestError(GatehouseError):
    """Ends a request with an error page.

    `title`, `detail`, `next_steps` and `links` are for the reader; `message` is for the log.
    """

    default_reason: ClassVar[str] = "refused-request"

    def __init__(
        self,
        status: int,
        title: str,
        *,
        message: str = "",
        reason: str | None = None,
        detail: str = "",
        next_steps: tuple[str, ...] = (),
        links: tuple[Link, ...] = (),
        headers: tuple[tuple[str, str], ...] = (),
        **fields: object,
    ) -> None:
        super().__init__(message or title, reason=reason, public_message=title, **fields)
        self.status = status
        self.title = title
        self.detail = detail
        self.next_steps = next_steps
        self.links = links
        self.headers = headers

    def add_cookies(self, set_cookies: tuple[str, ...]) -> None:
        """Send these Set-Cookie values with the page."""
        self.headers += tuple(("set-cookie", line) for line in set_cookies)

    @property
    def canonical_code(self) -> Code:
        """The gRPC code nearest to the status."""
        return _CODES.get(self.status, Code.UNKNOWN)

    def page(self, request_id: str) -> ErrorPage:
        """The page that says so."""
        return ErrorPage(
            status=self.status,
            reason=self.title,
            request_id=request_id,
            detail=self.detail,
            next_steps=self.next_steps,
            links=self.links,
        )


def session_ended(message: str, *, purpose: str, path: str) -> RefusedRequestError:
    """401: the session ended between the request and the answer. `path` leads back through a login.

    `purpose` ends the sentence "Sign in again to ...".
    """
    return RefusedRequestError(
        HTTPStatus.UNAUTHORIZED,
        "Your session has ended",
        message=message,
        reason="session-ended",
        detail=f"Sign in again to {purpose}.",
        links=(Link("Sign in", path),),
    )


def not_found() -> RefusedRequestError:
    """404: nothing lives at this address."""
    return RefusedRequestError(
        HTTPStatus.NOT_FOUND,
        "There is no such page",
        reason="not-found",
        detail="The address is not one that this gateway knows.",
        next_steps=("Check the address for a typing mistake.",),
    )


def bad_request(
    title: str, *, reason: str, detail: str = "", message: str = ""
) -> RefusedRequestError:
    """400: the request itself is wrong, so sending it again will not help."""
    return RefusedRequestError(
        HTTPStatus.BAD_REQUEST,
        title,
        message=message,
        reason=reason,
        detail=detail,
        next_steps=("Open the application again from its own address, not from a saved link.",),
    )


def bad_signature(message: str = "") -> RefusedRequestError:
    """400: a signed link that was altered, is too old, or was never signed."""
    return RefusedRequestError(
        HTTPStatus.BAD_REQUEST,
        "This link is not valid any more",
        message=message,
        reason="signature",
        detail="Links of this kind work for a few minutes and must not be changed.",
        next_steps=(
            "Open the application again from its own address; you will get a fresh link.",
            "Check that the clock of this computer is right.",
        ),
    )


def storage_unavailable(message: str = "", links: tuple[Link, ...] = ()) -> RefusedRequestError:
    """503: sessions can neither be read nor written now."""
    return RefusedRequestError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Signing in is not possible right now",
        message=message,
        reason="databroker-unavailable",
        detail="The service that keeps sessions does not answer. Your account is fine.",
        next_steps=(
            "Wait a few seconds and load the page again.",
            "If it goes on, send the request ID below to your administrator.",
        ),
        links=links,
        headers=(("retry-after", str(RETRY_AFTER_S)),),
    )
