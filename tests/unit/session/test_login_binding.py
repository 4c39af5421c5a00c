from __future__ import annotations

import hashlib

import pytest

from gatehouse.common.clock import SystemRng
from gatehouse.common.errors import InvalidTokenError
from gatehouse.common.session.cookies import set_cookie
from gatehouse.common.session.login_binding import cookie_name, matches, new_login_binding


def test_nonce_and_digest_belong_together() -> None:
    first, second = (new_login_binding(SystemRng()) for _ in range(2))
    assert first.nonce != second.nonce
    assert first.digest == hashlib.sha256(first.nonce.encode()).hexdigest()
    assert matches(first.nonce, first.digest)
    assert not matches(first.nonce, second.digest)
    assert not matches(second.nonce, first.digest)
    assert first.nonce not in repr(first)


def test_the_nonce_fits_a_cookie() -> None:
    binding = new_login_binding(SystemRng())
    name = cookie_name("_pomerium", binding.digest)
    assert name == f"_pomerium_login_{binding.digest[:16]}"
    assert binding.nonce in set_cookie(name, binding.nonce)


def test_r31_only_the_exact_pair_matches() -> None:
    good = new_login_binding(SystemRng())
    for nonce, digest in (
        ("", ""),
        ("", hashlib.sha256(b"").hexdigest()),
        ("x", hashlib.sha256(b"x").hexdigest()),
        (good.nonce, ""),
        (good.nonce, good.digest.upper()),
        (good.nonce, good.digest[:-1]),
        (good.nonce, good.digest + "\n"),
        (good.nonce + "\n", good.digest),
        (good.nonce[:-1], good.digest),
        (good.digest, good.digest),
        ("ü" * 43, good.digest),
    ):
        assert not matches(nonce, digest)


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "A" * 64, "a" * 65, "a" * 63 + ";"])
def test_cookie_names_are_made_of_digests_only(digest: str) -> None:
    with pytest.raises(InvalidTokenError):
        cookie_name("_pomerium", digest)
