"""The colours, logo and words that an operator's pages carry.

The colours end up in a style sheet and the URLs in attributes, so both are checked here, once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from gatehouse.common.errors import InvalidArgumentError

_COLOUR = re.compile(r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})")
_TEXT_LIMIT = 2000


@dataclass(frozen=True, slots=True)
class Branding:
    """The look of the pages. Colours are `#rgb` or `#rrggbb`; URLs are https or data:image."""

    primary_color: str = "#6F43E7"
    secondary_color: str = "#49AAA1"
    darkmode_primary_color: str = ""  # empty: the secondary colour
    darkmode_secondary_color: str = ""
    logo_url: str = ""  # empty: the gate
    favicon_url: str = ""
    error_message_first_paragraph: str = ""

    def __post_init__(self) -> None:
        for name in (
            "primary_color",
            "secondary_color",
            "darkmode_primary_color",
            "darkmode_secondary_color",
        ):
            value = getattr(self, name)
            required = not name.startswith("darkmode")
            if (value or required) and _COLOUR.fullmatch(value) is None:
                raise InvalidArgumentError(
                    f"branding {name}: {value!r} is not a colour like #6F43E7"
                )
        for name in ("logo_url", "favicon_url"):
            value = getattr(self, name)
            if value and not is_image_url(value):
                raise InvalidArgumentError(
                    f"branding {name}: must be an https URL or a data:image/... URL"
                )
        if len(self.error_message_first_paragraph) > _TEXT_LIMIT:
            raise InvalidArgumentError(
                f"branding error_message_first_paragraph: longer than {_TEXT_LIMIT} characters"
            )

    @property
    def light_accent(self) -> str:
        """The colour of buttons and marks on a light page."""
        return self.primary_color

    @property
    def dark_accent(self) -> str:
        """The colour of buttons and marks on a dark page."""
        return self.darkmode_primary_color or self.secondary_color


DEFAULT_BRANDING = Branding()
KEYS = tuple(Branding.__dataclass_fields__)  # the settings that make one


def branding_of(settings: object) -> Branding:
    """The look that the settings ask for; empty keys mean the defaults."""
    given = {name: getattr(settings, name, "") for name in KEYS}
    return Branding(**{name: value for name, value in given.items() if value})


class _InForce:
    branding = DEFAULT_BRANDING


def use_branding(branding: Branding) -> None:
    """Let every page of this process look like this from now on."""
    _InForce.branding = branding


def branding_in_force() -> Branding:
    """The look of this process's pages."""
    return _InForce.branding


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on `colour` (WCAG 2.2 relative luminance)."""
    luminance = _luminance(colour)
    white = 1.05 / (luminance + 0.05)
    black = (luminance + 0.05) / (_luminance("#0d1117") + 0.05)
    return "#ffffff" if white >= black else "#0d1117"


def _luminance(colour: str) -> float:
    digits = colour.removeprefix("#")
    if len(digits) == 3:
        digits = "".join(digit * 2 for digit in digits)
    channels = [int(digits[index : index + 2], 16) / 255 for index in (0, 2, 4)]
    red, green, blue = (
        channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
        for channel in channels
    )
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)


def is_image_url(value: str) -> bool:
    """Whether the pages may show `value` as an image: https without credentials, or data:image."""
    if any(character.isspace() or ord(character) < 0x20 for character in value):
        return False
    parts = urlsplit(value)
    if parts.scheme == "https":
        return bool(parts.hostname) and "@" not in parts.netloc
    return parts.scheme == "data" and parts.path.startswith("image/")
