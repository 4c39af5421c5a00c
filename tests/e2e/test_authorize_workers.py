"""Several authorize workers behind the whole product: used evenly, reloaded together, replaced."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.stack import Gatehouse, Stack
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e

Fresh = Callable[..., tuple[Stack, EchoUpstream]]
REQUESTS = 40
LONG = "x" * 6000  # longer than a pipe takes at once


def workers_of(process: Gatehouse) -> list[int]:
    """The further authorize processes of a Gatehouse."""
    pid = process.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = []
    for child in children:
        with contextlib.suppress(FileNotFoundError):
            if b"gatehouse.authorize.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def others(process: Gatehouse, gone: int) -> list[int]:
    """Its workers but the one that was killed, which may not be buried yet."""
    return [pid for pid in workers_of(process) if pid != gone]


def is_asked(pid: int, socket: str) -> bool:
    """True when something is connected to this socket of the process (proc(5), net/unix)."""
    own = set()
    with contextlib.suppress(FileNotFoundError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                own.add(descriptor.readlink().name)
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return any(
        line[5] == "03" and f"socket:[{line[6]}]" in own and line[7:] and line[7].endswith(socket)
        for line in lines
    )


def decisions(process: Gatehouse) -> list[dict[str, Any]]:
    """The audit lines; every line of the log must be whole."""
    lines = [json.loads(line) for line in process.log().splitlines()]
    return [line for line in lines if line["message"] == "authorize check"]


def test_workers_share_the_work_and_one_that_ends_is_replaced(fresh_stack: Fresh) -> None:
    stack, _ = fresh_stack(
        extra={
            "authorize_workers": 2,
            "decision_cache": False,  # every request is asked about
            "authorize_log_fields": ["path", "headers.x-long"],
        }
    )
    stack.start()
    process = stack.processes["proxy"]
    (worker,) = workers_of(process)
    with stack.client() as client:
        for number in range(REQUESTS):
            url = stack.url("public.localhost", f"/{number}")
            assert client.get(url, headers={"x-long": LONG}).status_code == 200
        assert client.get(stack.url("public.localhost", "/private/")).status_code == 302
        assert is_asked(worker, "/grpc-worker-1.sock")

        # Once one of them decides by a new configuration, all do.
        stack.routes[3]["allow_public_unauthenticated_access"] = False
        stack.routes[3]["policy"] = [{"allow": {"or": [{"reject": True}]}}]
        stack.write_config()
        process.wait_log("configuration applied")
        deadline = time.monotonic() + 10
        while client.get(stack.url("public.localhost")).status_code != 403:
            assert time.monotonic() < deadline
        statuses = {client.get(stack.url("public.localhost")).status_code for _ in range(20)}
        assert statuses == {403}

    os.kill(worker, signal.SIGKILL)
    with stack.client() as client:  # those who are left answer, and soon there is another
        deadline = time.monotonic() + 20
        while not any(is_asked(pid, "/grpc-worker-1.sock") for pid in others(process, worker)):
            assert client.get(stack.url("public.localhost")).status_code == 403
            assert time.monotonic() < deadline
    assert "authorize worker replaced" in process.log()
    assert process.process.poll() is None
    told = {line["path"]: line["headers"]["x-long"] for line in decisions(process) if line["allow"]}
    assert told.keys() == {f"/{number}" for number in range(REQUESTS)}
    assert set(told.values()) == {LONG}


def test_a_worker_does_not_outlive_its_process(fresh_stack: Fresh) -> None:
    stack, _ = fresh_stack(split=True, environment={"AUTHORIZE_WORKERS": "2"})
    for name in ("databroker", "authorize"):
        stack.spawn(name).wait_ready()
    process = stack.processes["authorize"]
    (worker,) = workers_of(process)
    process.process.kill()
    process.process.wait(5)
    deadline = time.monotonic() + 10
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(worker, 0)
            assert time.monotonic() < deadline, "the worker still runs"
            time.sleep(0.02)
