"""Which secrets and signing keys a process has, given, read from files, or made.

Part of `resolve`. No message ever holds a secret or a piece of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pydantic import SecretStr

from gatehouse.common.config import derive
from gatehouse.common.config.inputs import Inputs
from gatehouse.common.config.load import KeyPath
from gatehouse.common.config.model import Settings
from gatehouse.common.config.resolved import ServiceName
from gatehouse.common.config.values import decode_base64
from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.jose.keys import SigningKey, derive_signing_key, load_signing_keys

SECRET_BYTES: Final = 32
_PLACEHOLDER: Final = bytes(SECRET_BYTES)  # for a secret that is wrong; never leaves `resolve`


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretResolver:
    """Resolves the secrets of one configuration."""

    settings: Settings
    services: frozenset[ServiceName]
    inputs: Inputs
    random_secret: Callable[[], bytes]

    def secrets(self) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """Shared and cookie secrets; a placeholder stands for what was refused."""
        settings = self.settings
        shared = self._secret("shared_secret", settings.shared_secret, settings.shared_secret_file)
        if shared is None and not self._given("shared_secret"):
            if len(self.services) == len(ServiceName):
                shared = (self.random_secret(),)
            else:
                self.inputs.error(
                    ("shared_secret",),
                    "is required when services run apart",
                    "one base64 of 32 random bytes for all: head -c32 /dev/urandom | base64",
                )
        cookie = self._secret("cookie_secret", settings.cookie_secret, settings.cookie_secret_file)
        if cookie is None and not self._given("cookie_secret"):
            if len(self.services) == len(ServiceName):
                cookie = (self.random_secret(),)
                self.inputs.warn(
                    ("cookie_secret",),
                    "is not set: a random one is used, and sign-ins under way die with the process",
                    "base64 of 32 random bytes: head -c32 /dev/urandom | base64",
                )
            elif derive.has_listener(self.services):
                self.inputs.error(
                    ("cookie_secret",),
                    "is required by proxy and authenticate when services run apart",
                    "one base64 of 32 random bytes for all: head -c32 /dev/urandom | base64",
                )
        return shared or (_PLACEHOLDER,), cookie or shared or (_PLACEHOLDER,)

    def _given(self, key: str) -> bool:
        return bool(getattr(self.settings, key)) or bool(getattr(self.settings, f"{key}_file"))

    def _secret(self, key: str, inline: SecretStr, file: str) -> tuple[bytes, ...] | None:
        where: KeyPath = (key,)
        text = inline.get_secret_value()
        if file:
            where = (f"{key}_file",)
            contents = self.inputs.read(where, file)
            if contents is None:
                return None
            # Every editor and every `base64` ends a file with a newline: that is not the secret's.
            text = contents.decode("utf-8", "replace").rstrip("\r\n")
            if key == "cookie_secret":
                text = text.replace("\r", "").replace("\n", "")
        if not text:
            if file:
                self.inputs.error(where, "the file is empty", "base64 of 32 bytes")
            return None
        secrets: list[bytes] = []
        for part in text.split(","):
            if any(character.isspace() for character in part):
                self.inputs.error(
                    where, "holds white space", "no blank and no line break around the base64"
                )
                return None
            decoded = decode_base64(part)
            if decoded is None:
                self.inputs.error(where, "is not base64", "base64 (with padding) of 32 bytes")
                return None
            if len(decoded) != SECRET_BYTES:
                self.inputs.error(
                    where,
                    f"decodes to {len(decoded)} bytes",
                    "32 bytes: head -c32 /dev/urandom | base64",
                )
                return None
            secrets.append(decoded)
        return tuple(dict.fromkeys(secrets))

    def signing_keys(self, shared: bytes) -> tuple[SigningKey, ...]:
        """The configured keys, else the one that follows from the shared secret."""
        settings = self.settings
        where: KeyPath = ("signing_key",)
        pem: bytes | None = settings.signing_key.get_secret_value().encode()
        if settings.signing_key_file:
            where = ("signing_key_file",)
            pem = self.inputs.read(where, settings.signing_key_file)
            if pem is None:
                return ()
        if not pem or not pem.strip():
            if settings.signing_key_file:
                self.inputs.error(where, "the file is empty", "a PEM private key")
            return (derive_signing_key(shared),)
        try:
            return load_signing_keys(pem)
        except InvalidArgumentError as error:
            self.inputs.error(where, str(error), "PEM, or base64 of PEM, of an EC P-256 or RSA key")
            return ()
