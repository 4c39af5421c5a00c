"""Whether the keys of SSH can be used: present, readable, closed to others, one of each kind.

Spec: configuration.md section 5.5. Nothing is checked without `ssh_address`, nor where neither
proxy nor authorize runs, which alone have these files.
"""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from gatehouse.common.config.inputs import Inputs
from gatehouse.common.config.load import KeyPath
from gatehouse.common.config.model import Settings
from gatehouse.common.config.resolved import ServiceName

_WANTED = "a private key as ssh-keygen writes it, without passphrase"


def check_ssh_keys(settings: Settings, services: frozenset[ServiceName], inputs: Inputs) -> None:
    """Note every key that cannot be used."""
    if not settings.ssh_address or not services & {ServiceName.PROXY, ServiceName.AUTHORIZE}:
        return
    found: list[tuple[KeyPath, bytes | None]] = [
        (("ssh_host_key_files", index), _closed_file(("ssh_host_key_files", index), name, inputs))
        for index, name in enumerate(settings.ssh_host_key_files)
    ]
    found += [
        (("ssh_host_keys", index), key.get_secret_value().encode())
        for index, key in enumerate(settings.ssh_host_keys)
    ]
    seen: dict[str, str] = {}
    for path, contents in found:
        algorithm = _algorithm(path, contents, inputs)
        if algorithm is None:
            continue
        other = seen.setdefault(algorithm, f"{path[0]}[{path[1]}]")
        if other != f"{path[0]}[{path[1]}]":
            inputs.error(
                path, f"{other} is a key of {algorithm} too", "one host key of each algorithm"
            )
    if settings.ssh_user_ca_key_file:
        where: KeyPath = ("ssh_user_ca_key_file",)
        _algorithm(where, _closed_file(where, settings.ssh_user_ca_key_file, inputs), inputs)
    elif settings.ssh_user_ca_key:
        key = settings.ssh_user_ca_key.get_secret_value()
        _algorithm(("ssh_user_ca_key",), key.encode(), inputs)


def _closed_file(path: KeyPath, name: str, inputs: Inputs) -> bytes | None:
    """What the file holds; None after noting that it cannot be read."""
    contents = inputs.read(path, name)
    mode = None if contents is None else inputs.mode(name)
    if mode is not None and mode & 0o077:
        inputs.error(path, f"{name}: permissions are too open (mode {mode:04o})", "chmod 600")
    return contents


def _algorithm(path: KeyPath, contents: bytes | None, inputs: Inputs) -> str | None:
    """The key's algorithm as SSH names it; None after noting that it is no key."""
    if contents is None:
        return None
    is_openssh = b"BEGIN OPENSSH PRIVATE KEY" in contents
    read = load_ssh_private_key if is_openssh else load_pem_private_key
    try:
        public = read(contents, None).public_key()
        text = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
        inputs.error(path, "holds no private key that SSH can use", _WANTED)
        return None
    return text.partition(b" ")[0].decode()
