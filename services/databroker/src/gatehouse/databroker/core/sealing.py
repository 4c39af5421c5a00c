"""How payloads are encrypted at rest, and how the keys for that are kept.

Envelope encryption: payloads are sealed with data keys, a new one each day; the store keeps those
wrapped by a key derived from the shared secret. So a new secret costs one small write per data key,
and a copy of the store is worth nothing without the secret.

A sealed payload is `0x00 0x01, data key id (4 bytes), nonce (12), AES-256-GCM`. Its key is derived
from the data key for the record's type; type and id are bound to it, so that a ciphertext moved to
another record does not open. A payload in clear does not open either: who may write into the store
but does not have the secret can make no records.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from gatehouse.databroker.core.records import Key

DATA_KEY_LIFE_US: Final = 24 * 3600 * 1_000_000

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_HEADER: Final = struct.Struct(">2sI")
_MAGIC: Final = b"\x00\x01"
_TYPES_KEPT: Final = 1_024
_WRAPPING: Final = b"gatehouse databroker storage: wrapping key, v1"
_NAMING: Final = b"gatehouse databroker storage: name of the wrapping key, v1"

RandomBytes = Callable[[int], bytes]


class UnknownDataKeyError(Exception):
    """A payload was sealed with a data key that is not at hand: read the keys again."""

    def __init__(self, number: int) -> None:
        super().__init__(f"data key {number} is not at hand")
        self.number = number


class UnwrappableError(Exception):
    """None of the secrets opens the data keys of this store."""


class BrokenSealError(Exception):
    """A payload is not what was sealed for this record."""


@dataclass(frozen=True, slots=True)
class WrappingKey:
    """What data keys are wrapped with. Made of a shared secret; `name` says which, not what."""

    name: str
    key: bytes

    def __repr__(self) -> str:
        return f"WrappingKey({self.name})"

    @classmethod
    def of(cls, secret: bytes) -> WrappingKey:
        """Derive it from a shared secret."""
        return cls(_derive(secret, _NAMING, 8).hex(), _derive(secret, _WRAPPING, _KEY_BYTES))


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key as the store keeps it."""

    id: int
    created_at_us: int
    wrapped_by: str
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """The data keys of a store, and the rows that must be written before they may be used."""

    keys: DataKeys
    changed: tuple[WrappedKey, ...]


def plan_keys(
    rows: Sequence[WrappedKey],
    secrets: Iterable[bytes],
    known: Mapping[int, bytes],
    now_us: int,
    random: RandomBytes,
) -> KeyPlan:
    """Open the data keys, wrap those anew that the first secret does not open, add one when due.

    `known`: data keys that this process has already, which need no secret. Raises UnwrappableError
    when a key opens with none of the secrets.
    """
    wrapping = [WrappingKey.of(secret) for secret in secrets]
    keys: dict[int, bytes] = {}
    changed: list[WrappedKey] = []
    for row in rows:
        key = known.get(row.id)
        keys[row.id] = _unwrap(row, wrapping) if key is None else key
        if row.wrapped_by != wrapping[0].name:
            changed.append(_wrap(row, keys[row.id], wrapping[0], random))
    newest = max(rows, key=lambda row: (row.created_at_us, row.id), default=None)
    if newest is None or now_us - newest.created_at_us >= DATA_KEY_LIFE_US:
        newest = WrappedKey(_new_id(keys, random), now_us, "", b"")
        keys[newest.id] = random(_KEY_BYTES)
        changed.append(_wrap(newest, keys[newest.id], wrapping[0], random))
    return KeyPlan(DataKeys(keys, newest.id), tuple(changed))


def _new_id(taken: Container[int], random: RandomBytes) -> int:
    """Return an id that also another copy of this store, gone its own way, is unlikely to give."""
    while True:
        found = int.from_bytes(random(4), "big")
        if found not in taken:
            return found


def _wrap(row: WrappedKey, key: bytes, wrapping: WrappingKey, random: RandomBytes) -> WrappedKey:
    row = replace(row, wrapped_by=wrapping.name)
    nonce = random(_NONCE_BYTES)
    return replace(row, wrapped=nonce + AESGCM(wrapping.key).encrypt(nonce, key, _bound(row)))


def _unwrap(row: WrappedKey, wrapping: Iterable[WrappingKey]) -> bytes:
    nonce, sealed = row.wrapped[:_NONCE_BYTES], row.wrapped[_NONCE_BYTES:]
    for candidate in wrapping:
        try:
            return AESGCM(candidate.key).decrypt(nonce, sealed, _bound(row))
        except (InvalidTag, ValueError):
            continue
    raise UnwrappableError(
        f"data key {row.id} is wrapped with a key named {row.wrapped_by!r}, which none of the "
        "shared secrets makes"
    )


def _bound(row: WrappedKey) -> bytes:
    return f"{row.id} {row.created_at_us} {row.wrapped_by}".encode()


def _derive(secret: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret)


class DataKeys:
    """Seals with the newest of the data keys, opens with any of them."""

    def __init__(self, keys: Mapping[int, bytes], newest: int) -> None:
        assert newest in keys
        self.keys = keys
        self._newest = newest
        self._ciphers: dict[tuple[int, str], AESGCM] = {}

    def __repr__(self) -> str:
        return f"DataKeys({len(self.keys)}, newest {self._newest})"

    def seal(self, key: Key, data: bytes, random: RandomBytes) -> bytes:
        """Return what is stored for a payload of this type and id."""
        header = _HEADER.pack(_MAGIC, self._newest)
        nonce = random(_NONCE_BYTES)
        return (
            header
            + nonce
            + self._cipher(self._newest, key[0]).encrypt(nonce, data, header + _name(key))
        )

    def open(self, key: Key, stored: bytes) -> bytes:
        """Return the payload again. Raises UnknownDataKeyError, BrokenSealError."""
        header, rest = stored[: _HEADER.size], stored[_HEADER.size :]
        try:
            magic, number = _HEADER.unpack(header)
        except struct.error:
            raise BrokenSealError from None
        if magic != _MAGIC:
            raise BrokenSealError
        if number not in self.keys:
            raise UnknownDataKeyError(number)
        nonce, sealed = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
        try:
            return self._cipher(number, key[0]).decrypt(nonce, sealed, header + _name(key))
        except (InvalidTag, ValueError):
            raise BrokenSealError from None

    def _cipher(self, number: int, type_: str) -> AESGCM:
        cipher = self._ciphers.get((number, type_))
        if cipher is None:
            info = b"type " + type_.encode()
            derived = HKDFExpand(algorithm=SHA256(), length=_KEY_BYTES, info=info)
            cipher = AESGCM(derived.derive(self.keys[number]))
            if len(self._ciphers) >= _TYPES_KEPT:
                self._ciphers = {}
            self._ciphers[number, type_] = cipher
        return cipher


def _name(key: Key) -> bytes:
    """Type and id so that no other pair gives the same bytes; neither holds a NUL."""
    return "\x00".join(key).encode()
