"""How a store's payloads are sealed and opened with the data keys it holds at this moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gatehouse.common.clock import Rng
from gatehouse.common.observability.logging import get_logger
from gatehouse.databroker.core.records import Key
from gatehouse.databroker.core.sealing import (
    BrokenSealError,
    DataKeys,
    KeyPlan,
    UnknownDataKeyError,
    UnwrappableError,
    WrappedKey,
    plan_keys,
)
from gatehouse.databroker.errors import WrongSecretError

Secrets = Callable[[], Sequence[bytes]]

_log = get_logger("databroker")


class SealedPayloads:
    """The data keys in use, for any thread. `secrets` returns the shared secrets in force.

    `alone`: nobody else makes data keys, so that one that is not at hand is lost.
    """

    def __init__(self, secrets: Secrets, rng: Rng, *, alone: bool = False) -> None:
        self._secrets = secrets
        self._rng = rng
        self._alone = alone
        self._keys: DataKeys | None = None
        self._lost: frozenset[int] = frozenset()  # data keys that the store does not have

    def __repr__(self) -> str:
        return f"SealedPayloads({self._keys!r})"

    def plan(self, rows: Sequence[WrappedKey], now_us: int) -> KeyPlan:
        """Return what is to be written before `install`. Raises WrongSecretError."""
        known = {} if self._keys is None else self._keys.keys
        try:
            return plan_keys(rows, self._secrets(), known, now_us, self._rng.token_bytes)
        except UnwrappableError as error:
            raise WrongSecretError(
                f"{error}; nothing is lost: set shared_secret to the one that this store was used "
                "with last, and to change it to 'new,previous'"
            ) from error

    def install(self, plan: KeyPlan) -> None:
        """Use the keys of a plan whose changes are committed."""
        if self._keys is None or self._keys.keys != plan.keys.keys:
            self._keys = plan.keys

    def knows(self, number: int) -> bool:
        """Tell whether a data key is at hand."""
        return self._keys is not None and number in self._keys.keys

    def give_up(self, number: int) -> None:
        """Take a data key that the store does not have for lost; what it sealed stays closed."""
        self._lost |= {number}

    def seal(self, key: Key, data: bytes) -> bytes:
        """Return what is stored for a payload of this type and id."""
        assert self._keys is not None, "sealing before the keys were read"
        return self._keys.seal(key, data, self._rng.token_bytes)

    def open(self, key: Key, stored: bytes) -> bytes:
        """Return the payload again; nothing when it is not what was sealed for this record.

        The record then is there and cannot be read, which allows nobody anything and stops
        nobody else from being served. Raises UnknownDataKeyError: read the keys again.
        """
        assert self._keys is not None, "opening before the keys were read"
        try:
            return self._keys.open(key, stored)
        except UnknownDataKeyError as error:
            if not self._alone and error.number not in self._lost:
                raise
            reason = str(error)
        except BrokenSealError:
            reason = "it is not what was sealed for this record"
        _log.error("stored record cannot be opened", type=key[0], record=key[1], reason=reason)
        return b""
