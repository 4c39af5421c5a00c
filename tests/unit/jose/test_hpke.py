from __future__ import annotations

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gatehouse.common.jose.hpke import derive_private_key, public_key


def test_the_key_pair_of_rfc_9180_a_1() -> None:
    ikm = "7268600d403fce431561aef583ee1613527cff655c1343f29812e66706df3234"
    key = derive_private_key(bytes.fromhex(ikm))
    raw = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    assert raw.hex() == "52c4a758a802cd8b936eceea314432798d5baf2d7e9235dc084ab1b9cfa2f736"
    public = "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431"
    assert key.public_key().public_bytes_raw().hex() == public


def test_it_follows_from_the_shared_secret() -> None:
    assert public_key(b"s" * 32) == public_key(b"s" * 32)
    assert public_key(b"s" * 32) != public_key(b"t" * 32)
    assert len(public_key(b"s" * 32)) == 32
