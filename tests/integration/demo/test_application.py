"""The sample application as a process of its own, as containers run it."""

from __future__ import annotations

import signal
import subprocess
import sys

import httpx
import pytest

from tests.support.ports import free_ports


def command(listen: str, authority) -> list[str]:
    return [
        sys.executable, "-m", "gatehouse.cli", "demo", "application", "--listen", listen,
        "--keys", "https://127.0.0.1:1/jwks.json", "--authority", str(authority),
        "--host", "app.example.test",
    ]  # fmt: skip


def test_it_believes_no_assertion_without_keys_and_stops_on_sigterm(tmp_path):
    (port,) = free_ports(1)
    authority = tmp_path / "authority.pem"
    authority.write_text("")
    with subprocess.Popen(
        command(f"127.0.0.1:{port}", authority), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "listens on" in process.stdout.readline()
        answer = httpx.get(f"http://127.0.0.1:{port}/json", trust_env=False)
        assert answer.json()["identity"]["standing"] == "absent"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.parametrize("listen", ["8000", "127.0.0.1:x", "127.0.0.1:0", "127.0.0.1:99999"])
def test_an_odd_address_is_named(tmp_path, listen):
    done = subprocess.run(
        command(listen, tmp_path / "none"), capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 2
    assert "ADDRESS:PORT" in done.stderr
