"""Whether the look that the settings ask for can be had."""

from __future__ import annotations

from gatehouse.common.config.inputs import Inputs
from gatehouse.common.config.model import Settings
from gatehouse.common.errors import InvalidArgumentError


def check_branding(settings: Settings, inputs: Inputs) -> None:
    """Note each key that no page could use."""
    # Templates are slow to import, and few configurations need them.
    from gatehouse.common.pages.branding import KEYS, Branding  # noqa: PLC0415

    for key in KEYS:
        value = getattr(settings, key)
        if not value:
            continue
        try:
            Branding(**{key: value})
        except InvalidArgumentError as error:
            message = str(error).removeprefix(f"branding {key}: ")
            inputs.error((key,), message, "#rrggbb" if "color" in key else "")
