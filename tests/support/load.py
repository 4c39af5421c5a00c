"""A steady load of people whose every answer is known beforehand, and what they got."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

import httpx

EACH_S = 0.2  # between the requests of one person
TIMEOUT_S = 15.0


class Outcome(StrEnum):
    RIGHT = "right"
    WRONG = "wrong"  # an allow that should be a deny, or the reverse
    FAILED = "failed"  # no answer, or a server's error


@dataclass(frozen=True, slots=True)
class Answer:
    begun_s: float
    ended_s: float
    person: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks for what, and the judge of what comes back."""

    name: str
    url: str
    cookies: Sequence[tuple[str, str, str]]  # name, value, domain
    is_right: Callable[[httpx.Response], bool]


def cookies_of(client: httpx.Client) -> list[tuple[str, str, str]]:
    return [(one.name, one.value or "", one.domain) for one in client.cookies.jar]


@dataclass
class Load:
    """Runs in threads between `__enter__` and `__exit__`; `answers` only grows."""

    client: Callable[[], httpx.Client]
    people: Sequence[Person]
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(person, number), daemon=True)
            for number, person in enumerate(self.people)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S + 5)

    def since(self, begun_s: float) -> list[Answer]:
        """Answers to requests that ended after this moment."""
        with self._lock:
            return [one for one in self.answers if one.ended_s >= begun_s]

    def _ask(self, person: Person, number: int) -> None:
        with self.client() as client:
            client.timeout = httpx.Timeout(TIMEOUT_S)
            for name, value, domain in person.cookies:
                client.cookies.set(name, value, domain=domain)
            next_s = time.monotonic() + EACH_S * number / len(self.people)
            for turn in itertools.count():
                if self._stop.wait(max(0.0, next_s - time.monotonic())):
                    return
                next_s = max(next_s + EACH_S, time.monotonic())
                self._once(client, person, turn)

    def _once(self, client: httpx.Client, person: Person, turn: int) -> None:
        begun_s = time.monotonic()
        outcome, detail = Outcome.FAILED, ""
        try:
            # A path of its own each time: nothing between may answer from memory.
            response = client.get(f"{person.url}/{turn}", headers={"accept": "text/html"})
        except httpx.HTTPError as error:
            detail = f"{type(error).__name__}: {error}"[:200]
        else:
            detail = str(response.status_code)
            if response.status_code < 500:
                outcome = Outcome.RIGHT if person.is_right(response) else Outcome.WRONG
                if outcome is Outcome.WRONG:
                    detail += f" {response.text[:300]}"
        with self._lock:
            ended_s = time.monotonic()
            self.answers.append(Answer(begun_s, ended_s, person.name, outcome, detail))
