"""Which SSH public keys a criterion names, in the format of authorized_keys files (sshd(8))."""

from __future__ import annotations

import base64
import binascii
import itertools
import re
import struct
from typing import Final

from gatehouse.common.policy.ast import Data, type_name
from gatehouse.common.policy.errors import PolicyError

_TYPES: Final = frozenset(
    {"ssh-ed25519", "ssh-rsa", "sk-ssh-ed25519@openssh.com"}
    | {f"ecdsa-sha2-nistp{bits}" for bits in (256, 384, 521)}
    | {"sk-ecdsa-sha2-nistp256@openssh.com"}
)
# Options come first and may hold quoted blanks.
_FIELD: Final = re.compile(r'(?:[^\s"]|"(?:[^"\\]|\\.)*")+')
_EXPECTED: Final = 'expected a line such as "ssh-ed25519 AAAA... name"'


def parse_ssh_keys(data: Data) -> frozenset[bytes]:
    """The keys in SSH's wire format; options and comments say nothing here."""
    if isinstance(data, str):
        return frozenset({_key(data)})
    if not isinstance(data, tuple):
        raise PolicyError(f"expected string or array of strings, got: {type_name(data)}")
    found: set[bytes] = set()
    for index, item in enumerate(data):
        if not isinstance(item, str):
            raise PolicyError(f"expected string value, got: {type_name(item)}", (index,))
        try:
            found.add(_key(item))
        except PolicyError as error:
            raise error.below(index) from None
    return frozenset(found)


def key_type(blob: bytes) -> str:
    """The type that a key in wire format begins with; "" when it is none."""
    if len(blob) < 4:
        return ""
    (length,) = struct.unpack_from(">I", blob)
    return blob[4 : 4 + length].decode("ascii", "replace") if len(blob) > 4 + length else ""


def _key(line: str) -> bytes:
    if "\n" in line.strip() or "\r" in line.strip():
        raise PolicyError(f"holds several lines, {_EXPECTED}; give a list of them")
    fields = _FIELD.findall(line)
    for kind, encoded in itertools.pairwise(fields[:3]):
        if kind in _TYPES:
            try:
                blob = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                break
            if key_type(blob) == kind:
                return blob
            break
    raise PolicyError(f"not an SSH public key, {_EXPECTED}")
