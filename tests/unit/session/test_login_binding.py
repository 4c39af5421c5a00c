from __future__ import annotations

import hmac

import pytest

from gatehouse.common.clock import SystemRng
from gatehouse.common.session.login_binding import (
    LoginBinding,
    binding_cookie,
    cookie_name,
    held_nonce,
    is_digest,
    matches,
    new_login_binding,
)
from tests.support.clock import SeededRng

NAME = "__Host-_pomerium_login_binding"


def test_nonce_and_digest_belong_together() -> None:
    first, second = (new_login_binding(SystemRng()) for _ in range(2))
    assert first.nonce != second.nonce
    assert matches(first.nonce, first.digest)
    assert not matches(first.nonce, second.digest)
    assert not matches(second.nonce, first.digest)
    assert first.nonce not in repr(first)
    assert first.nonce not in first.digest


def test_the_digest_is_frozen() -> None:
    """Replicas of two versions must agree while one replaces the other."""
    binding = new_login_binding(SeededRng(1), "n" * 43)
    salt, proof = binding.digest[:32], binding.digest[32:]
    assert proof == hmac.new(b"n" * 43, salt.encode(), "sha256").hexdigest()


def test_each_sign_in_of_a_browser_has_a_digest_of_its_own() -> None:
    first = new_login_binding(SystemRng())
    second = new_login_binding(SystemRng(), first.nonce)
    assert second.nonce == first.nonce
    assert second.digest != first.digest
    assert second.digest[32:] != first.digest[32:]
    assert matches(first.nonce, first.digest)
    assert matches(first.nonce, second.digest)


def test_r31_the_cookie_is_one_that_no_other_host_can_set() -> None:
    """Cookie tossing: a sibling domain's cookie has a Domain, and the prefix forbids that."""
    binding = new_login_binding(SystemRng())
    pair, *attributes = binding_cookie("_pomerium", binding).split("; ")
    assert pair == f"{NAME}={binding.nonce}"
    assert sorted(attributes) == ["HttpOnly", "Max-Age=3600", "Path=/", "SameSite=Lax", "Secure"]


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("_pomerium", NAME),
        ("__Host-session", "__Host-session_login_binding"),
        ("__secure-session", "__Host-session_login_binding"),
    ],
)
def test_the_name_follows_the_session_cookie(base: str, name: str) -> None:
    assert cookie_name(base) == name


def test_what_the_browser_holds_is_found() -> None:
    nonce = new_login_binding(SystemRng()).nonce
    assert held_nonce([f"a=b; {NAME}={nonce}"], "_pomerium") == nonce
    assert held_nonce([f"{NAME}={nonce}", f"{NAME}={nonce}"], "_pomerium") == nonce


@pytest.mark.parametrize(
    "line",
    [
        "",
        f"{NAME}=",
        f"{NAME}=short",
        f"{NAME}={'n' * 44}",
        f"{NAME}={'ü' * 43}",
        f"{NAME}={'n' * 43}; {NAME}={'m' * 43}",  # of two, nobody can say which is ours
        f"_pomerium_login_binding={'n' * 43}",
        f"__host-_pomerium_login_binding={'n' * 43}",  # in these letters, some browsers take any
        f"__Secure-_pomerium_login_binding={'n' * 43}",
    ],
)
def test_r31_anything_else_is_no_binding(line: str) -> None:
    assert held_nonce([line], "_pomerium") is None


def test_r31_only_the_exact_pair_matches() -> None:
    good = new_login_binding(SystemRng())
    for nonce, digest in (
        ("", ""),
        ("", "0" * 96),
        ("x", good.digest),
        (good.nonce, ""),
        (good.nonce, good.digest.upper()),
        (good.nonce, good.digest[:-1]),
        (good.nonce, good.digest + "\n"),
        (good.nonce, "0" * 32 + good.digest[32:]),
        (good.nonce, good.digest[:32] + "0" * 64),
        (good.nonce + "\n", good.digest),
        (good.nonce[:-1], good.digest),
        (good.digest, good.digest),
        ("ü" * 43, good.digest),
    ):
        assert not matches(nonce, digest)


@pytest.mark.parametrize("text", ["", "abc", "g" * 96, "A" * 96, "a" * 97, "a" * 95 + ";"])
def test_digests_have_one_form(text: str) -> None:
    assert not is_digest(text)
    assert is_digest(LoginBinding("", "a" * 96).digest)
