from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.common.errors import InvalidArgumentError, InvalidTokenError
from gatehouse.common.jose.aead import NONCE_BYTES, OVERHEAD_BYTES, open_sealed, seal

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
NONCE = bytes(range(24))


def test_vector_of_the_draft() -> None:
    """draft-irtf-cfrg-xchacha-03 appendix A.3.1, with the nonce moved to the end."""
    plaintext = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it."
    )
    ad = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    key = bytes(range(0x80, 0xA0))
    nonce = bytes(range(0x40, 0x58))
    sealed = seal(key, plaintext, nonce=nonce, ad=ad)
    assert sealed[:16].hex() == "bd6d179d3e83d43b9576579493c0e939"
    assert sealed[-NONCE_BYTES - 16 : -NONCE_BYTES].hex() == "c0875924c1c7987947deafd8780acf49"
    assert sealed[-NONCE_BYTES:] == nonce
    assert open_sealed([key], sealed, ad) == plaintext


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_round_trip(plaintext: bytes, ad: bytes) -> None:
    sealed = seal(KEY, plaintext, nonce=NONCE, ad=ad)
    assert len(sealed) == len(plaintext) + OVERHEAD_BYTES
    assert open_sealed([OTHER, KEY], sealed, ad) == plaintext


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    sealed = seal(KEY, b"attack at dawn", nonce=NONCE, ad=b"cookie")
    for index in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[index] ^= 1 << bit
            with pytest.raises(InvalidTokenError):
                open_sealed([KEY], bytes(changed), b"cookie")
        for cut in (sealed[:index], sealed[index + 1 :]):
            with pytest.raises(InvalidTokenError):
                open_sealed([KEY], cut, b"cookie")


@pytest.mark.parametrize(
    ("keys", "ad"),
    [([OTHER], b"cookie"), ([], b"cookie"), ([KEY], b""), ([KEY], b"cookie2"), ([KEY], b"Cookie")],
)
def test_key_and_associated_data_are_bound(keys: list[bytes], ad: bytes) -> None:
    with pytest.raises(InvalidTokenError):
        open_sealed(keys, seal(KEY, b"x", nonce=NONCE, ad=b"cookie"), ad)


@pytest.mark.parametrize("sealed", [b"", b"\0" * 8192, b"\0" * (OVERHEAD_BYTES - 1), b"x" * 2**21])
def test_garbage_is_refused(sealed: bytes) -> None:
    with pytest.raises(InvalidTokenError):
        open_sealed([KEY], sealed)


def test_wrong_sizes_are_mistakes_of_ours() -> None:
    with pytest.raises(InvalidArgumentError):
        seal(KEY[:16], b"", nonce=NONCE)
    with pytest.raises(InvalidArgumentError):
        seal(KEY, b"", nonce=NONCE[:12])
    with pytest.raises(InvalidArgumentError):
        open_sealed([b""], bytes(100))
