"""How the deployment of compose/ is started, looked at and hurt, through Docker's own commands."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

COMPOSE = Path(__file__).parents[2] / "compose"
SERVICES = ("databroker", "authorize", "authenticate", "proxy")
HEALTHY_WITHIN_S = 180.0


SCHEMA_TOO_NEW = "this release knows up to"


class CommandError(Exception):
    """A command of Docker failed."""


class StoreRefusedError(Exception):
    """A release does not start on the store of a later one."""


def run(
    *command: str,
    environment: dict[str, str] | None = None,
    text: str = "",
    timeout_s: float = 300,
) -> str:
    """The output of a command that reads `text`; CommandError with what it said when it fails."""
    done = subprocess.run(
        command,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        raise CommandError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done.stdout


def missing() -> str:
    """Why no deployment can be started here; "" when one can."""
    if shutil.which("docker") is None:
        return "there is no docker command"
    try:
        run("docker", "info", timeout_s=20)
    except (CommandError, subprocess.TimeoutExpired):
        return "no Docker engine answers"
    try:
        _compose_command()
    except CommandError:
        return "there is neither `docker compose` nor docker-compose"
    return ""


def _compose_command() -> tuple[str, ...]:
    try:
        run("docker", "compose", "version")
    except CommandError:
        run("docker-compose", "version")
        return ("docker-compose",)
    return ("docker", "compose")


@dataclass(frozen=True, slots=True)
class Container:
    """One replica as it is now; a restart changes `pid`."""

    id: str
    name: str
    pid: int
    ip: str
    health: str
    running: bool


class Deployment:
    """A project of its own: its containers, network and volume are removed at the end."""

    def __init__(self, project: str, files: Sequence[str], environment: dict[str, str]) -> None:
        self.project = project
        self.newer_image = os.environ.get("GATEHOUSE_IMAGE", "gatehouse:local")
        self.is_mutual = "compose.mtls.yaml" in files
        self._environment = dict(os.environ) | environment
        named = [part for file in files for part in ("--file", str(COMPOSE / file))]
        self._compose = (*_compose_command(), "--project-name", project, *named)

    def compose(self, *arguments: str) -> str:
        return run(*self._compose, *arguments, environment=self._environment, timeout_s=600)

    def up(self, **scale: int) -> None:
        counts = [part for name, count in scale.items() for part in ("--scale", f"{name}={count}")]
        self.compose("up", "--detach", "--no-recreate", *counts)

    def down(self) -> None:
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "10")

    def replicas(self, service: str) -> list[Container]:
        """All containers of a service, those that are down included, by name."""
        ids = run(
            *("docker", "ps", "--all", "--quiet", "--no-trunc"),
            *("--filter", f"label=com.docker.compose.project={self.project}"),
            *("--filter", f"label=com.docker.compose.service={service}"),
        ).split()
        if not ids:
            return []
        found = []
        for entry in json.loads(run("docker", "inspect", *ids)):
            state = entry["State"]
            networks = entry["NetworkSettings"]["Networks"]
            found.append(
                Container(
                    id=entry["Id"],
                    name=entry["Name"].lstrip("/").removeprefix(f"{self.project}_"),
                    pid=state["Pid"],
                    ip=next(iter(networks.values()))["IPAddress"],
                    health=state.get("Health", {}).get("Status", ""),
                    running=state["Running"],
                )
            )
        return sorted(found, key=lambda one: one.name)

    def all_healthy(self) -> bool:
        return all(
            one.running and one.health in {"", "healthy"}
            for service in (*SERVICES, "postgres", "app", "idp", "balancer")
            for one in self.replicas(service)
        )

    def wait_healthy(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        deadline = time.monotonic() + HEALTHY_WITHIN_S
        while not self.all_healthy():
            meanwhile()
            if time.monotonic() > deadline:
                raise CommandError(
                    f"not healthy in {HEALTHY_WITHIN_S:.0f} s:\n{self.compose('ps')}"
                )
            time.sleep(0.5)

    def log(self, container: Container) -> str:
        done = subprocess.run(
            ("docker", "logs", container.id), capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    def inside(self, container: Container, *command: str, text: str = "") -> str:
        """Run a command in a container."""
        return run("docker", "exec", "--interactive", container.id, *command, text=text)

    def replace(self, service: str, image: str) -> None:
        """New replicas of this image beside the old ones, and when they are healthy, those go.

        Raises StoreRefusedError when they do not take the store; all is as before then.
        """
        old, before = self.replicas(service), self._environment.get("GATEHOUSE_IMAGE")
        self._environment["GATEHOUSE_IMAGE"] = image
        count = f"{service}={2 * len(old)}"
        self.compose("up", "--detach", "--no-recreate", "--no-deps", "--scale", count, service)
        kept = {one.id for one in old}
        try:
            self.wait_healthy(lambda: self._check_store(service, kept))
        except StoreRefusedError:
            for one in self.replicas(service):
                if one.id not in kept:
                    run("docker", "rm", "--force", one.id)
            self._environment["GATEHOUSE_IMAGE"] = before or self.newer_image
            raise
        for one in old:
            run("docker", "stop", "--time", "30", one.id)
            run("docker", "rm", one.id)

    def _check_store(self, service: str, known: Collection[str]) -> None:
        for one in self.replicas(service):
            if one.id not in known and SCHEMA_TOO_NEW in self.log(one):
                raise StoreRefusedError

    def refusals(self, for_s: float) -> dict[str, int]:
        """How often each proxy's access log gives which reason for a 5xx, in the last seconds."""
        reasons: dict[str, int] = {}
        for one in self.replicas("proxy"):
            for line in run("docker", "logs", "--since", f"{for_s:.0f}s", one.id).splitlines():
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    if entry.get("message") == "http-request" and entry["response-code"] >= 500:
                        said = f"{entry['response-code']} {entry['response-code-details']}"
                        key = f"{one.name}: {said} at {entry['time']} from {entry['authority']}"
                        reasons[key] = reasons.get(key, 0) + 1
        return reasons

    # -- hurting it

    def kill(self, container: Container) -> None:
        """SIGKILL from outside, as the kernel does when memory is short: the engine restarts it."""
        os.kill(container.pid, signal.SIGKILL)

    def restart(self, container: Container) -> None:
        """SIGTERM, the grace period of compose.yaml, and a new start."""
        run("docker", "restart", "--time", "30", container.id)

    def kill_envoy(self, container: Container) -> None:
        for line in run("docker", "top", container.id, "-eo", "pid,comm").splitlines()[1:]:
            pid, name = line.split(maxsplit=1)
            if name.startswith("envoy"):
                os.kill(int(pid), signal.SIGKILL)
                return
        raise CommandError(f"no Envoy runs in {container.name}")

    @contextlib.contextmanager
    def cut(self, ones: Sequence[Container], others: Sequence[Container]) -> Iterator[None]:
        """Drop every packet between two sets of containers, silently, in both directions."""
        rules = [
            (str(one.pid), chain, flag, other.ip)
            for one in ones
            for other in others
            for chain, flag in (("INPUT", "--source"), ("OUTPUT", "--destination"))
        ]
        done: list[tuple[str, str, str, str]] = []
        try:
            for rule in rules:
                _filter("--insert", rule)
                done.append(rule)
            yield
        finally:
            for rule in done:
                _filter("--delete", rule)


def _filter(verb: str, rule: tuple[str, str, str, str]) -> None:
    pid, chain, flag, ip = rule
    run(
        *("nsenter", "--target", pid, "--net", "iptables", "--wait"),
        *(verb, chain, flag, ip, "--jump", "DROP"),
    )


def may_cut() -> str:
    """Why networks cannot be cut here; "" when they can."""
    if os.geteuid() != 0:
        return "cutting networks and killing processes needs root on the engine's machine"
    for name in ("nsenter", "iptables"):
        if shutil.which(name) is None:
            return f"cutting networks needs {name}"
    return ""
