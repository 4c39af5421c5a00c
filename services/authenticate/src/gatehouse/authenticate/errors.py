"""The error pages of sign-in and sign-out: one function for each way it can go wrong."""

from __future__ import annotations

from http import HTTPStatus

from gatehouse.common.pages import Link, link_to
from gatehouse.common.pages.refusal import RefusedRequestError

_ASK_ADMINISTRATOR = "If it goes on, send the request ID below to your administrator."
# The last one is Apple's: somebody pressed Cancel.
_DENIALS = frozenset({"access_denied", "unauthorized_client", "user_cancelled_authorize"})
_START_AGAIN = "Open the application again from its own address."


def retry_link(url: str) -> tuple[Link, ...]:
    """A button back to where the person wanted to go; nothing if that cannot be linked to."""
    link = link_to("Try again", url)
    return () if link is None else (link,)


def bad_redirect(message: str) -> RefusedRequestError:
    """400: the place to go to is missing, malformed, or not ours."""
    return RefusedRequestError(
        HTTPStatus.BAD_REQUEST,
        "This link leads somewhere it may not",
        message=message,
        reason="redirect-target",
        detail="The address to return to is missing, malformed, or not served by this gateway.",
        next_steps=(_START_AGAIN,),
    )


def bad_state(message: str, *, reason: str, retry: str = "") -> RefusedRequestError:
    """400: the answer of the identity provider does not belong to a sign-in of this browser."""
    return RefusedRequestError(
        HTTPStatus.BAD_REQUEST,
        "This sign-in could not be completed",
        message=message,
        reason=reason,
        detail="It was started in another browser, or its cookies are gone.",
        next_steps=(
            _START_AGAIN,
            "Allow cookies for this site, and finish signing in where you began.",
        ),
        links=retry_link(retry),
    )


def sign_in_too_slow(retry: str, *, limit_s: float) -> RefusedRequestError:
    """400: the round trip took longer than state and PKCE cookie live."""
    return RefusedRequestError(
        HTTPStatus.BAD_REQUEST,
        "This sign-in took too long",
        message="the round trip to the identity provider is over its limit",
        reason="state-expired",
        detail=f"For your safety a sign-in must be finished within {limit_s / 60:g} minutes.",
        next_steps=("Try again; your identity provider may still know you.",),
        links=retry_link(retry),
    )


def provider_refused(error: str, *, retry: str) -> RefusedRequestError:
    """401 or 400: the identity provider answered with an error instead of a code."""
    denied = error in _DENIALS
    return RefusedRequestError(
        HTTPStatus.UNAUTHORIZED if denied else HTTPStatus.BAD_REQUEST,
        "Your identity provider did not sign you in",
        message="the identity provider answered with an error",
        reason="idp-denied" if denied else "idp-error",
        detail=f"It said: {error[:120]}",
        next_steps=(
            "Try again, with another account if you have one.",
            "Ask the administrator of your identity provider whether you may use this application.",
        ),
        links=retry_link(retry),
        idp_error=error[:120],
    )


def provider_unavailable(message: str, *, retry: str) -> RefusedRequestError:
    """502: the identity provider does not answer, or answers with a failure of its own."""
    return RefusedRequestError(
        HTTPStatus.BAD_GATEWAY,
        "Your identity provider does not answer",
        message=message,
        reason="idp-unavailable",
        detail="The service that knows your account could not be reached. Your account is fine.",
        next_steps=("Wait a moment and try again.", _ASK_ADMINISTRATOR),
        links=retry_link(retry),
    )


def provider_answer_refused(message: str, *, retry: str) -> RefusedRequestError:
    """500: the identity provider refused the code, or said something that does not verify."""
    return RefusedRequestError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "Your sign-in could not be confirmed",
        message=message,
        reason="idp-refused",
        detail="The answer of the identity provider did not pass the checks.",
        next_steps=("Try again from the start.", _ASK_ADMINISTRATOR),
        links=retry_link(retry),
    )


def no_provider() -> RefusedRequestError:
    """500: nothing is configured to sign in with."""
    return RefusedRequestError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "Signing in is not set up",
        message="no identity provider is configured: set idp_provider, idp_client_id and the rest",
        reason="idp-missing",
        detail="This gateway has no identity provider.",
        next_steps=("Tell your administrator.",),
    )


def not_for_scripts() -> RefusedRequestError:
    """401: a script cannot follow a sign-in; its page must be reloaded."""
    return RefusedRequestError(
        HTTPStatus.UNAUTHORIZED,
        "Sign in first",
        reason="xhr",
        detail="A script's request cannot be redirected to a sign-in page. Reload the page.",
    )
