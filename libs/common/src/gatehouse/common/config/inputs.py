"""What the settings refer to: files read once, PEM checked, and mistakes with their place.

Shared by the parts of `resolve`. A mistake that only follows from a key that is wrong anyway is
not reported again.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gatehouse.common.config.certificates import (
    CertificateError,
    check_authorities,
    decode_pem,
    make_pair,
)
from gatehouse.common.config.issues import Issue, Severity
from gatehouse.common.config.load import KeyPath, LoadedSettings
from gatehouse.common.config.resolved import CertificatePair

ReadFile = Callable[[Path], bytes]
FileMode = Callable[[Path], int | None]

# Keys of a route that are judged together: where one is wrong, nothing is said of the others.
_TOGETHER: Final = tuple(
    map(
        frozenset,
        (
            ("from", "to", "redirect", "response", "connect_chaining", "health_checks"),
            ("path", "prefix", "regex"),
            ("prefix_rewrite", "regex_rewrite_pattern", "regex_rewrite_substitution"),
            ("host_path_regex_rewrite_pattern", "host_path_regex_rewrite_substitution"),
            ("tls_client_cert", "tls_client_cert_file", "tls_client_key", "tls_client_key_file"),
            (
                *("policy", "sub_policies", "allow_public_unauthenticated_access"),
                *("allow_any_authenticated_user", "allowed_users", "allowed_domains"),
                *("allowed_idp_claims", "cors_allow_preflight"),
            ),
            (
                *("load_balancing_policy", "least_request_lb_config", "ring_hash_lb_config"),
                "maglev_lb_config",
            ),
        ),
    )
)

# What somebody wrote who took a key for its _file form.
_FILE_NAME: Final = re.compile(r"(?:[/~$]|\.{1,2}/)[\w./\-${}]{0,200}$|[\w./\-]{1,200}\.(pem|key)$")


def file_digest(contents: bytes | None) -> bytes:
    """The hash of a file's contents; empty for a file that could not be read."""
    return b"" if contents is None else hashlib.sha256(contents).digest()


def mode_of(file: Path) -> int | None:
    """The permission bits of a file; None for one that cannot be looked at."""
    try:
        return stat.S_IMODE(file.stat().st_mode)
    except (OSError, ValueError):
        return None


class Inputs:
    """Reads files through `read_file`, each once, and collects mistakes."""

    def __init__(
        self,
        loaded: LoadedSettings,
        dropped: frozenset[KeyPath],
        read_file: ReadFile,
        file_mode: FileMode = mode_of,
    ) -> None:
        self.errors: list[Issue] = []
        self.warnings: list[Issue] = []
        self.contents: dict[Path, bytes | None] = {}
        self.dropped = dropped
        self._broken = _broken_routes(dropped)
        self._loaded = loaded
        self._read_file = read_file
        self._file_mode = file_mode

    def apart(self, loaded: LoadedSettings) -> Inputs:
        """The same files, with a place of its own for mistakes."""
        other = Inputs(loaded, frozenset(), self._read_file, self._file_mode)
        other.contents = self.contents
        return other

    # -- reporting -----------------------------------------------------------------------------

    def error(self, path: KeyPath, message: str, fix: str = "") -> None:
        """Note a mistake, unless it only follows from a key that is wrong anyway."""
        if path[:1] in self.dropped or path[:2] in self.dropped:
            return
        keys = self._broken.get(path[:2])
        if keys is None or (len(path) > 2 and path[2] not in keys):
            self.errors.append(self._loaded.origins.issue(Severity.ERROR, path, message, fix))

    def warn(self, path: KeyPath, message: str, fix: str = "") -> None:
        """Note what is allowed and probably not meant."""
        if path[:1] in self.dropped or path[:2] in self.dropped or path[:2] in self._broken:
            return
        self.warnings.append(self._loaded.origins.issue(Severity.WARNING, path, message, fix))

    def is_whole(self, route: KeyPath) -> bool:
        """False for a route that lacks a key which was wrong."""
        return route not in self._broken

    def report(self, severity: Severity, path: KeyPath, message: str, fix: str = "") -> None:
        """Note either."""
        (self.error if severity is Severity.ERROR else self.warn)(path, message, fix)

    def line_of(self, path: KeyPath) -> int | None:
        """The line on which the value at `path` is written, if it is in the file."""
        return self._loaded.origins[path].line

    # -- files ---------------------------------------------------------------------------------

    def read(self, path: KeyPath, name: str) -> bytes | None:
        """The contents of the file that the key at `path` names; None after noting an error."""
        file = Path(name)
        if file not in self.contents:
            try:
                self.contents[file] = self._read_file(file)
            except (OSError, ValueError) as error:
                self.contents[file] = None
                reason = getattr(error, "strerror", None) or "not a file name"
                self.error(path, f"{name} cannot be read: {reason}", "a file this process can read")
                return None
        elif self.contents[file] is None:
            self.error(path, f"{name} cannot be read", "a file this process can read")
        return self.contents[file]

    def mode(self, name: str) -> int | None:
        """The permission bits of a file, where they can be told."""
        return self._file_mode(Path(name))

    def pem(self, inline: str, path: KeyPath) -> bytes | None:
        """PEM given inside the configuration."""
        try:
            return decode_pem(inline)
        except CertificateError as error:
            is_path = _FILE_NAME.match(inline) is not None
            fix = f"base64 of PEM; the name of a file goes into {path[-1]}_file"
            self.error(path, str(error), fix if is_path else "base64 of PEM")
            return None

    def either(self, key: KeyPath, inline: str, file: str) -> bytes | None:
        """PEM from an inline key or its `_file` form; the file wins."""
        if file:
            return self.read((*key[:-1], f"{key[-1]}_file"), file)
        return self.pem(inline, key) if inline else None

    def file_digests(self) -> dict[Path, bytes]:
        """The hash of every file that was looked at, the main file included."""
        own = {} if self._loaded.file is None else {self._loaded.file: self._loaded.file_digest}
        return {**own, **{file: file_digest(data) for file, data in self.contents.items()}}

    def file_pair(
        self, certificate: str, key: str, certificate_path: KeyPath, key_path: KeyPath, what: str
    ) -> CertificatePair | None:
        """A checked certificate and key from two files; `what` begins each message."""
        if not certificate or not key:
            missing, given = (
                (certificate_path, key_path) if not certificate else (key_path, certificate_path)
            )
            self.error(given, f"{what}: its other half is missing", f"add {missing[-1]}")
            return None
        certificate_pem = self.read(certificate_path, certificate)
        key_pem = self.read(key_path, key)
        if certificate_pem is None or key_pem is None:
            return None
        try:
            return make_pair(certificate_pem, key_pem, certificate)
        except CertificateError as error:
            self.error(certificate_path, f"{what}: {error}", "a matching pair of PEM files")
            return None

    def authorities(self, key: KeyPath, inline: str, file: str) -> bytes | None:
        """Checked authority certificates from an inline key or its file."""
        pem = self.either(key, inline, file)
        if pem is None:
            return None
        try:
            return check_authorities(pem)
        except CertificateError as error:
            where = (*key[:-1], f"{key[-1]}_file") if file else key
            self.error(where, str(error), "PEM certificates")
            return None

    def client_pair(
        self, certificate: bytes | None, key: bytes | None, where: KeyPath
    ) -> CertificatePair | None:
        """A checked client certificate; None when a half is missing or was refused."""
        if certificate is None or key is None:
            return None
        try:
            return make_pair(certificate, key, str(where[-1]))
        except CertificateError as error:
            self.error(where, str(error), "a matching PEM pair")
            return None


def _broken_routes(dropped: frozenset[KeyPath]) -> dict[KeyPath, frozenset[str | int]]:
    """Routes that lack keys, each with those keys and what is judged together with them."""
    found: dict[KeyPath, frozenset[str | int]] = {}
    for path in dropped:
        if len(path) < 3:
            continue
        key = path[2]
        together = (group for group in _TOGETHER if key in group)
        found[path[:2]] = found.get(path[:2], frozenset()).union({key}, *together)
    return found
