"""Which addresses of a name are in use, and when to ask again (spec: databroker §10; pure).

A new address is taken at once. An address goes only after two complete answers in a row without
it, and a failed or empty answer changes nothing: the last good one stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gatehouse.common.clock import Rng
from gatehouse.common.rpc.targets import Address

ABSENCES_BEFORE_REMOVAL: Final = 2
REFRESH_CAP_S: Final = 30.0
REFRESH_FLOOR_S: Final = 5.0
REFRESH_JITTER: Final = 0.2  # a wait is cut short by up to this share, never made longer
SHORTEST_S: Final = 0.1  # whatever is configured
FAILURE_RETRY_S: Final = 1.0  # while nothing is known yet


@dataclass(frozen=True, slots=True)
class Answer:
    """What a resolver found. `complete` is False when one of the record types could not be had."""

    addresses: frozenset[Address]
    ttl_s: float
    complete: bool = True


class AddressBook:
    """The addresses of one name over time."""

    def __init__(self) -> None:
        self._absences: dict[Address, int] = {}

    @property
    def addresses(self) -> tuple[Address, ...]:
        """In use now, sorted."""
        return tuple(sorted(self._absences))

    def learn(self, answer: Answer) -> bool:
        """Take in an answer; True when the addresses in use changed."""
        if not answer.addresses:
            return False
        before = self._absences.keys() | set()
        for address in answer.addresses:
            self._absences[address] = 0
        if answer.complete:
            for address in before - answer.addresses:
                self._absences[address] += 1
                if self._absences[address] >= ABSENCES_BEFORE_REMOVAL:
                    del self._absences[address]
        return before != self._absences.keys()


def refresh_delay_s(
    answer: Answer | None,
    *,
    known: bool,
    rng: Rng,
    refresh_s: float | None = None,
    failure_s: float | None = None,
) -> float:
    """Seconds until the next question. `answer` is None after a failure.

    min(TTL, 30 s), at least 5 s, jitter -20 % to 0; after a failure 5 s, or 1 s while no address
    is `known` at all. `refresh_s` takes the place of the 30 s, `failure_s` that of the wait after
    a failure.
    """
    if answer is None or not answer.addresses:
        wanted_s = failure_s or (REFRESH_FLOOR_S if known else FAILURE_RETRY_S)
    else:
        cap_s = refresh_s or REFRESH_CAP_S
        wanted_s = min(max(answer.ttl_s, REFRESH_FLOOR_S), cap_s)
    wanted_s = max(wanted_s, SHORTEST_S)
    return wanted_s * (1.0 - REFRESH_JITTER * rng.uniform(0.0, 1.0))
