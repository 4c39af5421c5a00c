"""How an identity provider is called: bounded in time and size, no redirects, no cookies."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from gatehouse.common.identity.errors import RESPONSE, IdentityProviderError
from gatehouse.common.jose.compact import parse_json_list, parse_json_object
from gatehouse.common.observability.metrics import HTTP_CLIENT

TIMEOUT_S: Final = 10.0
"""For one request as a whole, from connecting to the last byte."""
MAX_BODY_BYTES: Final = 1024 * 1024
"""Of a response, before and after decompression."""
MAX_RETRY_AFTER_S: Final = 3600.0

_NO_ANSWER: Final = "0"  # instead of a status, in metrics
_GZIP_WINDOW: Final = 31  # zlib: expect a gzip header
_CUT_SHORT: Final = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


@dataclass(frozen=True, slots=True)
class ProviderResponse:
    """A complete response of an identity provider."""

    status: int
    content_type: str  # media type in lower case, without parameters
    body: bytes = field(repr=False)
    retry_after_s: float | None

    def json(self, where: str) -> dict[str, Any]:
        """The body as one JSON object; IdentityProviderError if it is none."""
        try:
            return parse_json_object(self.body)
        except ValueError:
            raise IdentityProviderError(
                f"{where} answered {self.status} without a JSON object", reason=RESPONSE
            ) from None

    def json_list(self, where: str) -> list[Any]:
        """The body as one JSON list; IdentityProviderError if it is none."""
        try:
            return parse_json_list(self.body)
        except ValueError:
            raise IdentityProviderError(
                f"{where} answered {self.status} without a JSON list", reason=RESPONSE
            ) from None


class ProviderTransport:
    """Sends single requests over a client that the caller owns and closes.

    Safe for concurrent use. Cancelling a call closes its connection.
    """

    def __init__(self, http: httpx.AsyncClient, *, timeout_s: float = TIMEOUT_S) -> None:
        self._http = http
        self._timeout_s = timeout_s

    async def get(self, url: str, *, headers: Mapping[str, str] | None = None) -> ProviderResponse:
        """Send GET. Raises IdentityProviderError when there is no complete answer."""
        return await self._send("GET", url, headers or {}, None)

    async def post_form(
        self, url: str, form: str, *, headers: Mapping[str, str] | None = None
    ) -> ProviderResponse:
        """Send an encoded form by POST. Raises IdentityProviderError without a complete answer."""
        with_type = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
        return await self._send("POST", url, with_type, form.encode("ascii"))

    async def post_json(
        self, url: str, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> ProviderResponse:
        """Send encoded JSON by POST. Raises IdentityProviderError without a complete answer."""
        return await self.send_json("POST", url, body, headers=headers)

    async def send_json(
        self, method: str, url: str, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> ProviderResponse:
        """Send encoded JSON. Raises IdentityProviderError when there is no complete answer."""
        with_type = {"Content-Type": "application/json", **(headers or {})}
        return await self._send(method, url, with_type, body)

    async def _send(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> ProviderResponse:
        where = endpoint_name(url)
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    response, body = await self._once(method, url, headers, content)
                except _CUT_SHORT:
                    # A kept connection may end just as it is used again. What only asks is asked
                    # once more; a code or a refresh token may have been spent already.
                    if method != "GET":
                        raise
                    response, body = await self._once(method, url, headers, content)
        except TimeoutError:
            raise IdentityProviderError(
                f"{where} gave no complete answer in {self._timeout_s:g} s"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise IdentityProviderError(
                f"{where} could not be asked: {type(error).__name__}"
            ) from error
        finally:
            self._http.cookies.clear()  # one client serves all users: nothing may stick to it
        if response.is_redirect:
            raise IdentityProviderError(
                f"{where} answered {response.status_code}; redirects are not followed",
                reason=RESPONSE,
            )
        return ProviderResponse(
            status=response.status_code,
            content_type=response.headers.get("content-type", "").partition(";")[0].strip().lower(),
            body=body,
            retry_after_s=_retry_after_s(response.headers.get("retry-after")),
        )

    async def _once(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> tuple[httpx.Response, bytes]:
        request = self._http.build_request(
            method,
            url,
            headers={"Accept": "application/json", "Accept-Encoding": "identity", **headers},
            content=content,
            timeout=httpx.Timeout(self._timeout_s),
        )
        request.headers.pop("Cookie", None)
        began_s, status, received = time.monotonic(), _NO_ANSWER, 0
        try:
            response = await self._http.send(
                request, stream=True, auth=None, follow_redirects=False
            )
            try:
                body = await _bounded_body(response, endpoint_name(url))
            finally:
                await response.aclose()
            status, received = str(response.status_code), len(body)
            return response, body
        finally:
            # The hosts are those of configured providers and of what these name.
            key = (request.url.host, method, status)
            HTTP_CLIENT.observe(key, time.monotonic() - began_s, len(content or b""), received)


def endpoint_name(url: str) -> str:
    """Host and path of an endpoint for messages; its query may hold secrets and is left out."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname or ''}{parts.path}"[:200]
    except ValueError:
        return "identity provider"


async def _bounded_body(response: httpx.Response, where: str) -> bytes:
    chunks = bytearray()
    async for chunk in response.aiter_raw():
        chunks += chunk
        if len(chunks) > MAX_BODY_BYTES:
            raise _too_large(where)
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in {"identity", ""}:
        return bytes(chunks)
    if encoding != "gzip":
        raise IdentityProviderError(
            f"{where} answered in an encoding not asked for", reason=RESPONSE
        )
    inflater = zlib.decompressobj(wbits=_GZIP_WINDOW)
    try:
        body = inflater.decompress(bytes(chunks), MAX_BODY_BYTES + 1)
    except zlib.error:
        raise IdentityProviderError(f"{where} answered with broken gzip", reason=RESPONSE) from None
    if len(body) > MAX_BODY_BYTES:
        raise _too_large(where)
    if not inflater.eof:
        raise IdentityProviderError(f"{where} answered with broken gzip", reason=RESPONSE)
    return body


def _too_large(where: str) -> IdentityProviderError:
    return IdentityProviderError(
        f"{where} answered with more than {MAX_BODY_BYTES} bytes", reason=RESPONSE
    )


def _retry_after_s(value: str | None) -> float | None:
    # RFC 9110 section 10.2.3; the date form is rare and would need a clock the two sides share
    if value is None or not value.isascii() or not value.strip().isdigit():
        return None
    return min(float(value.strip()[:9]), MAX_RETRY_AFTER_S)
