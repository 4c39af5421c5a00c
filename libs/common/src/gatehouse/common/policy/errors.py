"""What is wrong with a policy, and where in it."""

from __future__ import annotations

from dataclasses import dataclass

from gatehouse.common.errors import InvalidArgumentError

PathStep = str | int


@dataclass(frozen=True, slots=True)
class PolicyProblem:
    """One mistake. `path` leads to it from the policy's root: (0, "allow", "and", 2, "email")."""

    message: str
    path: tuple[PathStep, ...] = ()

    def __str__(self) -> str:
        return f"{format_path(self.path)}: {self.message}" if self.path else self.message


class PolicyError(InvalidArgumentError):
    """A policy that cannot be used.

    `message` and `path` are the first mistake's; `problems` holds all of them.
    """

    default_reason = "policy"

    def __init__(
        self,
        message: str,
        path: tuple[PathStep, ...] = (),
        *,
        problems: tuple[PolicyProblem, ...] = (),
    ) -> None:
        self.problems = problems or (PolicyProblem(message, path),)
        super().__init__("\n".join(str(problem) for problem in self.problems))
        self.message = message
        self.path = path

    def below(self, *steps: PathStep) -> PolicyError:
        """The same error seen from further out."""
        moved = tuple(PolicyProblem(p.message, (*steps, *p.path)) for p in self.problems)
        return PolicyError(self.message, (*steps, *self.path), problems=moved)


def format_path(path: tuple[PathStep, ...]) -> str:
    """A path as a person writes it: [0].allow.and[2].email."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")
