"""SSH keys that cannot be used, told beside that SSH is not served yet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from gatehouse.common.config.issues import ConfigError
from gatehouse.common.config.resolve import load_and_resolve
from tests.support.configuration import CERTIFICATE, KEY, LOGIN, RANDOM, shown

AnyKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def openssh(key: AnyKey, *, locked: bool = False) -> str:
    lock = BestAvailableEncryption(b"x") if locked else NoEncryption()
    style = PrivateFormat.PKCS8 if locked else PrivateFormat.OpenSSH
    return key.private_bytes(Encoding.PEM, style, lock).decode()


ED25519, OTHER = (openssh(ed25519.Ed25519PrivateKey.generate()) for _ in range(2))
P256 = openssh(ec.generate_private_key(ec.SECP256R1()))
P384 = openssh(ec.generate_private_key(ec.SECP384R1()))
LOCKED = openssh(ed25519.Ed25519PrivateKey.generate(), locked=True)


def errors(
    folder: Path,
    keys: Mapping[str, object],
    files: dict[str, str] | None = None,
    mode: int = 0o600,
    rest: str = "ssh_address: ':22'\n",
) -> list[str]:
    """What is told of SSH beside that it is not available; `{}` in a name is the folder."""
    own = {"cert.pem": CERTIFICATE.decode(), "key.pem": KEY.decode()}
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
        (folder / name).chmod(mode)
    for name, text in own.items():
        (folder / name).write_text(text)
    path = folder / "config.yaml"
    base = LOGIN.replace("/tls/", f"{folder}/") + rest
    path.write_text(base + yaml.safe_dump(dict(keys)).replace("{}", str(folder)))
    path.chmod(0o600)
    try:
        load_and_resolve(path, {}, random_secret=lambda: RANDOM)
    except ConfigError as error:
        told = [shown(issue) for issue in error.issues]
        return [line.replace(str(folder), "") for line in told if "not available yet" not in line]
    return []


def test_a_key_of_each_algorithm_is_sound(tmp_path: Path) -> None:
    keys = {"ssh_host_key_files": ["{}/a", "{}/b"], "ssh_host_keys": [P384]}
    assert errors(tmp_path, keys, {"a": ED25519, "b": P256}) == []
    assert errors(tmp_path, {"ssh_user_ca_key_file": "{}/a"}, {"a": ED25519}) == []
    assert errors(tmp_path, {"ssh_user_ca_key": OTHER}) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o601])
@pytest.mark.parametrize("key", ["ssh_host_key_files", "ssh_user_ca_key_file"])
def test_nobody_else_may_read_a_key_file(tmp_path: Path, key: str, mode: int) -> None:
    keys = {key: ["{}/a"] if key.endswith("s") else "{}/a"}
    (line,) = errors(tmp_path, keys, {"a": ED25519}, mode)
    assert f"{key}" in line
    assert f"/a: permissions are too open (mode {mode:04o}) (chmod 600)" in line


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ssh_host_key_files": ["/none"]}, "ssh_host_key_files[0]: /none cannot be read: No such"),
        ({"ssh_user_ca_key_file": "/none"}, "ssh_user_ca_key_file: /none cannot be read: No such"),
        ({"ssh_host_keys": ["hunter2"]}, "ssh_host_keys[0]: holds no private key that SSH can use"),
        ({"ssh_host_keys": [LOCKED]}, "ssh_host_keys[0]: holds no private key that SSH can use ("),
        ({"ssh_user_ca_key": "hunter2"}, "ssh_user_ca_key: holds no private key that SSH can use"),
        (
            {"ssh_host_keys": [ED25519, P256, OTHER]},
            "ssh_host_keys[2]: ssh_host_keys[0] is a key of ssh-ed25519 too (one host key of each",
        ),
        (
            {"ssh_host_key_files": ["{}/a"], "ssh_host_keys": [OTHER]},
            "ssh_host_keys[0]: ssh_host_key_files[0] is a key of ssh-ed25519 too",
        ),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_keys_that_cannot_be_used(tmp_path: Path, keys: dict[str, object], said: str) -> None:
    (line,) = errors(tmp_path, keys, {"a": ED25519})
    assert said in line
    assert "hunter2" not in line


def test_the_file_of_the_authority_wins(tmp_path: Path) -> None:
    keys: dict[str, object] = {"ssh_user_ca_key": "hunter2", "ssh_user_ca_key_file": "{}/a"}
    assert errors(tmp_path, keys, {"a": ED25519}) == []


@pytest.mark.parametrize("rest", ["", "services: databroker\nssh_address: ':22'\n"])
def test_who_serves_no_ssh_needs_no_keys(tmp_path: Path, rest: str) -> None:
    assert errors(tmp_path, {"ssh_host_key_files": ["/none"]}, rest=rest) == []
