"""A configuration mistake: what, where, and what would be right."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from gatehouse.common.errors import InvalidArgumentError


class Severity(enum.Enum):
    """An error stops a start, or keeps the last good configuration; a warning is only told."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Issue:
    """One mistake. `message` never holds the value of a secret."""

    severity: Severity
    key: str  # dotted path as the user wrote it: routes[2].from, DATABROKER_STORAGE_TYPE
    message: str  # what is wrong
    fix: str = ""  # what would be right
    file: str = ""  # file name, or "environment"
    line: int | None = None  # 1-based

    def __str__(self) -> str:
        where = self.file
        if where and self.line is not None:
            where += f":{self.line}"
        parts = [
            f"{where}: " if where else "",
            f"{self.severity.value}: {self.key}: {self.message}",
        ]
        if self.fix:
            parts.append(f" ({self.fix})")
        return "".join(parts)


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake that a check found; `path` is relative to what was checked."""

    severity: Severity
    path: tuple[str | int, ...]
    message: str
    fix: str = ""


class ConfigError(InvalidArgumentError):
    """Everything that is wrong with a configuration, all at once."""

    default_reason = "config"

    def __init__(self, issues: tuple[Issue, ...], warnings: tuple[Issue, ...] = ()) -> None:
        assert issues
        super().__init__("\n".join(str(issue) for issue in issues))
        self.issues = issues
        self.warnings = warnings  # found on the way; no reason to refuse, but worth telling

    @property
    def everything(self) -> tuple[Issue, ...]:
        """Warnings, then errors."""
        return (*self.warnings, *self.issues)
