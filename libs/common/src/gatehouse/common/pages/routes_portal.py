"""The portal page: the applications that somebody may open."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PortalCard:
    """One application. All text is escaped when rendered."""

    name: str
    address: str
    description: str = ""
    logo_url: str = ""  # https or data:image
    href: str = ""  # empty: no browser can open it
    connect_command: str = ""
    needs_device: bool = False

    @property
    def initial(self) -> str:
        """What stands where a logo would."""
        return next((letter.upper() for letter in self.name if letter.isalnum()), "?")


@dataclass(frozen=True, slots=True)
class PortalPage:
    """One page of them."""

    cards: tuple[PortalCard, ...]
    search: str
    total: int  # on all pages
    number: int  # from 1
    pages: int
    is_cut: bool = False  # there are more routes than were looked at

    @property
    def summary(self) -> str:
        """How many there are, in words."""
        what = "application" if self.total == 1 else "applications"
        text = f"{self.total} {what}" if self.total else "No applications"
        if self.search:
            text += f" for “{self.search}”"
        if self.pages > 1:
            text += f", page {self.number} of {self.pages}"
        return text
