"""Google Cloud's two token endpoints on loopback, as its documentation describes them.

https://cloud.google.com/compute/docs/instances/verifying-instance-identity
https://developers.google.com/identity/protocols/oauth2/service-account
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from gatehouse.common.jose.keys import SigningKey, derive_signing_key, sign_jwt, verify_jwt

IDENTITY = "/computeMetadata/v1/instance/service-accounts/default/identity"
EMAIL = "proxy@project.iam.gserviceaccount.com"


class GoogleCloud:
    """Counts its requests; `failing` is a status it then answers with, `gate` makes it wait."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.signer = derive_signing_key(b"g" * 32)
        self.asked: list[str] = []  # audiences
        self.failing = 0
        self.body: bytes | None = None  # instead of the right one
        self.life_s = 3600.0
        self.gate = threading.Event()
        self.gate.set()
        self.called = threading.Event()
        self._now_s = now_s

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = parse_qs(url.query)
                right = (
                    url.path == IDENTITY
                    and self.headers.get("Metadata-Flavor") == "Google"
                    and query["format"] == ["full"]
                )
                self.answer(right, query.get("audience", [""])[0], b"%s")

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                claims = verify_jwt(form["assertion"][0], [SigningKey("RS256", "key-1", cloud.key)])
                right = (
                    urlsplit(self.path).path == "/token"
                    and form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
                    and claims["iss"] == EMAIL
                    and claims["aud"] == cloud.token_url
                    and claims["iat"] <= cloud._now_s() < claims["exp"] <= claims["iat"] + 3600
                )
                self.answer(right, claims["target_audience"], b'{"id_token": "%s"}')

            def answer(self, right: bool, audience: str, form: bytes) -> None:
                cloud.asked.append(audience)
                cloud.called.set()
                cloud.gate.wait(10)
                status = cloud.failing or (200 if right else 400)
                body = form % cloud.token(audience).encode()
                if cloud.body is not None:
                    body = cloud.body
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                """Silence."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.port = server.server_address[1]
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            try:
                yield self
            finally:
                self.gate.set()
                server.shutdown()
                thread.join(5)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def token_url(self) -> str:
        return f"http://{self.host}/token"

    def account(self) -> str:
        """The key file of an account."""
        private = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return json.dumps(
            {
                "client_email": EMAIL,
                "private_key": private.decode(),
                "private_key_id": "key-1",
                "token_uri": self.token_url,
            }
        )

    def token(self, audience: str) -> str:
        claims = {
            "aud": audience,
            "exp": self._now_s() + self.life_s,
            "serial": len(self.asked),
        }
        return sign_jwt(claims, self.signer)

    def claims(self, token: str) -> dict[str, Any]:
        return verify_jwt(token, [self.signer])
