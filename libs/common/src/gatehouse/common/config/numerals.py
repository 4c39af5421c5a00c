"""How a number was written in a file, for keys that want text.

`50494E47` unquoted is a number to YAML, and `1.10` too; a key that takes text has to get what
stands in the file.
"""

from __future__ import annotations

from typing import Self


class WrittenInt(int):
    """A whole number and its source text, where the two differ (`0x1F`, `1_000`, `+1`)."""

    written: str

    def __new__(cls, value: int, written: str) -> Self:
        """`written` as it stands in the file."""
        made = super().__new__(cls, value)
        made.written = written
        return made

    def __reduce__(self) -> tuple[type[Self], tuple[int, str]]:
        """What a copy is made of: without it a route with such a number could not be copied."""
        return type(self), (int(self), self.written)


class WrittenFloat(float):
    """A number and its source text, where the two differ (`50494E47`, `1.10`, `1e3`)."""

    written: str

    def __new__(cls, value: float, written: str) -> Self:
        """`written` as it stands in the file."""
        made = super().__new__(cls, value)
        made.written = written
        return made

    def __reduce__(self) -> tuple[type[Self], tuple[float, str]]:
        """What a copy is made of: without it a route with such a number could not be copied."""
        return type(self), (float(self), self.written)


def whole(value: int, written: str) -> int:
    """`value`, with its text if that is not how it would be written anyway."""
    return value if str(value) == written else WrittenInt(value, written)


def fraction(written: str) -> float:
    """The number of a text, with the text if that is not how it would be written anyway."""
    value = float(written)
    return value if str(value) == written else WrittenFloat(value, written)


def text_of(number: float) -> str:
    """A number as it was written, else in its usual form."""
    return number.written if isinstance(number, WrittenInt | WrittenFloat) else str(number)
