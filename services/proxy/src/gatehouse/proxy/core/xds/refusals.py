"""When a version that Envoy refused is worth sending once more.

What is wrong with a resource itself stays wrong: it is not sent again until it changes (spec:
dataplane.md, section 8). But a listener whose address another program has, or that the machine has
not yet, is refused for the state of the machine, which mends without a word to us. Pure; times are
seconds of a monotonic clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gatehouse.common.ids import TypeUrl

FIRST_S: Final = 5.0
MOST_S: Final = 300.0

# As Envoy words it (`ListenSocketFactoryImpl`) and as the system does (strerror).
_OF_THE_MACHINE: Final = re.compile(
    r"cannot bind|address already in use|cannot assign requested address", re.IGNORECASE
)


def may_mend(reason: str) -> bool:
    """True when the very same resource may be accepted later."""
    return _OF_THE_MACHINE.search(reason) is not None


@dataclass(frozen=True, slots=True)
class _Refusal:
    versions: Mapping[str, str]  # of what was refused, by name
    wait_s: float
    due_s: float | None  # None: sent again, not answered yet


class Retries:
    """The refusals of one stream that may mend: tried again after `first_s`, then ever more seldom.

    The same versions refused again double the wait, up to `most_s`; others begin anew.
    """

    def __init__(self, first_s: float = FIRST_S, most_s: float = MOST_S) -> None:
        assert 0 < first_s <= most_s
        self._first_s = first_s
        self._most_s = most_s
        self._refusals: dict[TypeUrl, _Refusal] = {}

    def refused(
        self, type_url: TypeUrl, versions: Mapping[str, str], reason: str, now_s: float
    ) -> float | None:
        """Note a refusal; the seconds until it is tried again, None when it is not."""
        before = self._refusals.pop(type_url, None)
        if not may_mend(reason):
            return None
        wait_s = self._first_s
        if before is not None and before.versions == versions:
            wait_s = min(before.wait_s * 2, self._most_s)
        self._refusals[type_url] = _Refusal(dict(versions), wait_s, now_s + wait_s)
        return wait_s

    def accepted(self, type_url: TypeUrl) -> None:
        """Nothing of this type is refused any more."""
        self._refusals.pop(type_url, None)

    def wait_s(self, now_s: float) -> float | None:
        """Seconds until one is due; None when none will be."""
        dues = [each.due_s for each in self._refusals.values() if each.due_s is not None]
        return max(0.0, min(dues) - now_s) if dues else None

    def take_due(self, now_s: float) -> tuple[TypeUrl, ...]:
        """Types to be tried again now; each is told once, until it is refused again."""
        due = tuple(
            type_url
            for type_url, each in self._refusals.items()
            if each.due_s is not None and each.due_s <= now_s
        )
        for type_url in due:
            each = self._refusals[type_url]
            self._refusals[type_url] = _Refusal(each.versions, each.wait_s, None)
        return due
