"""The certificates and secrets of one run: copies, so that a test may change them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from cryptography import x509


class Private:
    """A directory beside the deployment, and a compose file that mounts from it."""

    def __init__(self, source: Path, compose_file: Path) -> None:
        self._root = root = Path(tempfile.mkdtemp(prefix="gatehouse-compose-"))
        root.chmod(0o755)  # what is in it has owners and modes of its own
        self.directory = root / "certs"
        shutil.copytree(source, self.directory)
        for path in (source, *source.iterdir()):
            owner = path.stat()
            copy = self.directory / path.relative_to(source)
            os.chown(copy, owner.st_uid, owner.st_gid)
        named = yaml.safe_load(compose_file.read_text())["secrets"]
        moved = {
            name: {"file": str(self.directory / Path(entry["file"]).name)}
            for name, entry in named.items()
        }
        self.compose_file = root / "compose.private.yaml"
        # With no service in it docker-compose 1.29 takes it for a file of the first format.
        contents = {"services": {"postgres": {}}, "secrets": moved}
        self.compose_file.write_text(yaml.safe_dump(contents))

    def close(self) -> None:
        shutil.rmtree(self._root)

    def path(self, name: str) -> Path:
        return self.directory / name

    def overwrite(self, name: str, contents: bytes) -> None:
        """Into the file, which keeps its inode: containers have mounted that, not its name."""
        with self.path(name).open("r+b") as file:
            file.write(contents)
            file.truncate()

    def renew(self, stem: str) -> int:
        """A new certificate and key of the same authority under the old names; its serial."""
        with tempfile.TemporaryDirectory() as scratch:
            for name in ("authority.pem", "authority-key.pem"):
                shutil.copy(self.path(name), scratch)
            gatehouse = str(Path(sys.executable).with_name("gatehouse"))
            command = (gatehouse, "certs", "--out", scratch, "--domain", "gatehouse.localhost")
            subprocess.run(command, check=True, capture_output=True)
            for name in (f"{stem}.pem", f"{stem}-key.pem"):
                self.overwrite(name, (Path(scratch) / name).read_bytes())
        return serial_of(self.path(f"{stem}.pem").read_bytes())


def serial_of(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number
