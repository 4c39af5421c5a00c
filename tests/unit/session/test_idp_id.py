from __future__ import annotations

import hashlib
from typing import Any

import pytest

from gatehouse.common.session.idp_id import idp_id

FIELDS: dict[str, Any] = {
    "type": "oidc",
    "url": "https://idp.example.com",
    "client_id": "client",
    "authenticate_service_url": "https://authenticate.example.com",
}
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def test_the_bytes_that_are_hashed_never_change() -> None:
    """Frozen: another layout ends every session."""
    message = (
        b"\x12\x06client"
        b"\x22\x04oidc"
        b"\x3a\x17https://idp.example.com"
        b"\x4a\x20https://authenticate.example.com"
    )
    number = int.from_bytes(hashlib.sha256(message).digest(), "big")
    made = idp_id(**FIELDS)
    assert len(made) == 43
    value = 0
    for digit in made:
        value = value * 62 + DIGITS.index(digit)
    assert value == number
    assert made == "lIdGVCtMCxNwq3p8AYWz3Ep6AnEFYzBtx64h98YfqTD"


def test_version_is_part_of_it() -> None:
    assert idp_id(**FIELDS, version=0) == idp_id(**FIELDS)
    assert idp_id(**FIELDS, version=1) != idp_id(**FIELDS)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_matters(field: str) -> None:
    assert idp_id(**{**FIELDS, field: FIELDS[field] + "x"}) != idp_id(**FIELDS)
    assert idp_id(**{**FIELDS, field: ""}) != idp_id(**FIELDS)


def test_fields_do_not_run_into_each_other() -> None:
    left = idp_id(type="ab", url="c", client_id="", authenticate_service_url="")
    right = idp_id(type="a", url="bc", client_id="", authenticate_service_url="")
    assert left != right
