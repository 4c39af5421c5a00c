"""What the keys of certificates between services ask for, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatehouse.common.config.restart import restart_needed
from tests.support.client_pki import CLIENT, SERVER, Issued
from tests.support.configuration import LOGIN, problems, resolved

ROOT = Issued.root()
ASKS = "grpc_client_ca_file: /ca.pem\n"
SHOWS = "grpc_client_certificate_file: /client.pem\ngrpc_client_key_file: /client.key\n"


def files(client: Issued) -> dict[str, bytes]:
    return {
        "/ca.pem": ROOT.pem.encode(),
        "/client.pem": client.pem.encode(),
        "/client.key": client.key_pem.encode(),
    }


def test_both_halves_are_read(tmp_path: Path) -> None:
    client = ROOT.issue(purposes=CLIENT)
    settings = resolved(tmp_path, LOGIN + ASKS + SHOWS, files=files(client))[0]
    assert settings.grpc_client_ca_pem == ROOT.pem.encode()
    assert settings.grpc_client_certificate is not None
    assert settings.grpc_client_certificate.certificate_pem == client.pem.encode()
    assert settings.grpc_client_certificate.key_pem == client.key_pem.encode()
    assert client.key_pem not in repr(settings.grpc_client_certificate)


def test_asking_for_certificates_is_asking_for_tls(tmp_path: Path) -> None:
    found = files(ROOT.issue())
    assert resolved(tmp_path, LOGIN)[0].grpc_insecure
    assert not resolved(tmp_path, LOGIN + ASKS, files=found)[0].grpc_insecure


INLINE = "grpc_client_ca: |\n" + "  ".join(["", *ROOT.pem.splitlines(keepends=True)])


@pytest.mark.parametrize("asks", [ASKS, INLINE])
def test_plain_text_is_refused(tmp_path: Path, asks: str) -> None:
    (line,) = problems(tmp_path, f"{LOGIN}{asks}grpc_insecure: true\n", files=files(ROOT.issue()))
    assert f"{asks.partition(':')[0]}: callers cannot be asked for certificates" in line
    assert "grpc_insecure: false" in line


def test_a_certificate_for_servers_alone_is_refused(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, LOGIN + SHOWS, files=files(ROOT.issue(purposes=SERVER)))
    assert "grpc_client_certificate_file: its extended key usage" in line


def test_only_a_restart_begins_or_ends_asking(tmp_path: Path) -> None:
    secure = f"{LOGIN}grpc_insecure: false\n"
    found = files(ROOT.issue())
    without = resolved(tmp_path, secure)[0]
    asking = resolved(tmp_path, secure + ASKS, files=found)[0]
    (issue,) = restart_needed(without, asking)
    assert issue.key == "grpc_client_ca"
    other = {**found, "/ca.pem": Issued.root("other").pem.encode()}
    assert restart_needed(asking, resolved(tmp_path, secure + ASKS, files=other)[0]) == ()
