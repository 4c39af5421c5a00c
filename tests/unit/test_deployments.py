"""The files that deployments are made of agree with the product and with published schemas."""

from __future__ import annotations

import re
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from gatehouse.cli.certs import SERVICES, certs
from gatehouse.common.config.model import Settings
from gatehouse.common.config.resolve import load_and_resolve

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "deploy" / "kubernetes" / "gatehouse.yaml"
SCHEMAS = ("1.25", "1.37")


def pins(path: Path) -> dict[str, set[str]]:
    """Each package of a lock file with all its versions."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(
        r"^([a-z0-9._-]+)==([^\s;\\]+)", path.read_text(), re.MULTILINE
    ):
        found.setdefault(name, set()).add(version)
    return found


def test_the_image_holds_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {re.split(r"[^a-zA-Z0-9._-]", one)[0].lower() for one in project["dependencies"]}
    assert named <= pins(ROOT / "compose" / "requirements.lock").keys(), "run `make lock`"


def manifests() -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(MANIFEST.read_text()) if one]


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in manifests() if one["kind"] == kind}


@pytest.mark.parametrize("name", ["requirements.lock", "idp.lock"])
def test_the_images_hold_the_versions_that_are_tested(name: str) -> None:
    tested, shipped = pins(ROOT / "requirements.lock"), pins(ROOT / "compose" / name)
    assert shipped
    differing = {one: (got, tested.get(one)) for one, got in shipped.items()}
    differing = {one: pair for one, pair in differing.items() if not pair[0] <= (pair[1] or set())}
    assert not differing, "run `make lock`"


@pytest.mark.parametrize("version", SCHEMAS)
def test_the_manifest_is_what_kubernetes_publishes(version: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        import kubernetes_validate  # noqa: PLC0415 - slow, and warns

        for one in manifests():
            kubernetes_validate.validate(one, version, strict=True)


def test_a_wrong_manifest_is_noticed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kubernetes_validate  # noqa: PLC0415 - slow, and warns

        wrong = of_kind("Deployment")["proxy"]
        wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, SCHEMAS[0], strict=True)


def test_every_service_is_deployed_and_found_as_it_should_be() -> None:
    deployments, services, budgets = map(of_kind, ("Deployment", "Service", "PodDisruptionBudget"))
    text = of_kind("ConfigMap")["gatehouse"]["data"]["config.yaml"]
    settings = Settings.model_validate(yaml.safe_load(text))
    assert set(deployments) == set(services) == set(budgets) == set(SERVICES)
    for name, one in deployments.items():
        template = one["spec"]["template"]
        labels = template["metadata"]["labels"]
        selector = services[name]["spec"]["selector"]
        assert selector.items() <= labels.items()
        assert one["spec"]["selector"]["matchLabels"] == labels
        assert budgets[name]["spec"]["selector"]["matchLabels"] == labels
        assert one["spec"]["replicas"] >= 2
        # A name with one virtual address would hide the replicas from clients that balance.
        is_headless = services[name]["spec"].get("clusterIP") == "None"
        assert is_headless == (name != "proxy")
        (container,) = template["spec"]["containers"]
        ports = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in services[name]["spec"]["ports"]} <= ports
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert environment["SERVICES"] == name
        # SIGKILL comes after the process's own end, and its end after it was seen to be not ready.
        probe = container["readinessProbe"]
        noticed_s = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
        assert noticed_s < settings.shutdown_delay <= settings.shutdown_grace / 2
        assert template["spec"]["terminationGracePeriodSeconds"] >= settings.shutdown_grace + 5
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `gatehouse certs` and a person put there."""
    directory = tmp_path_factory.mktemp("secrets")
    domain = "example.com"
    assert certs(directory, domain=domain, services=SERVICES, with_secrets=True, owner="") == 0
    (directory / "postgres_dsn").write_text("postgresql://g:p@db/g?sslmode=verify-full")
    (directory / "idp_client_secret").write_text("not-a-real-secret")
    return directory


@pytest.mark.parametrize("service", SERVICES)
def test_the_manifest_runs_the_product(service: str, secrets: Path, tmp_path: Path) -> None:
    """The configuration in the ConfigMap with each deployment's environment, as it would start."""
    mounts = {"/secrets/gatehouse": secrets, "/secrets/certificates": secrets}
    (container,) = of_kind("Deployment")[service]["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    text = of_kind("ConfigMap")["gatehouse"]["data"]["config.yaml"]
    for mounted, here in mounts.items():
        text = text.replace(mounted, str(here))
        environment = {key: at.replace(mounted, str(here)) for key, at in environment.items()}
    path = tmp_path / "config.yaml"
    path.write_text(text)
    resolved, issues = load_and_resolve(path, environment, random_secret=lambda: b"")
    assert [str(one) for one in issues] == []
    assert {str(one) for one in resolved.services} == {service}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    "more", ["compose.override.yaml", "compose.scale.yaml", "compose.mtls.yaml"]
)
def test_compose_runs_the_product(service: str, more: str, secrets: Path, tmp_path: Path) -> None:
    """Each container's environment and exactly the secrets that it is given."""
    environment: dict[str, str] = {}
    given: set[str] = set()
    for name in ("compose.yaml", more):
        part = yaml.safe_load((ROOT / "compose" / name).read_text())["services"].get(service, {})
        environment |= part.get("environment", {})
        given |= set(part.get("secrets", ()))
    stems = {"authority": "authority.pem"}
    for kind in ("external", "services"):
        stems |= {f"{kind}_certificate": f"{kind}.pem", f"{kind}_key": f"{kind}-key.pem"}
    here = tmp_path / "secrets"
    here.mkdir()
    for name in given:
        (here / name).write_bytes((secrets / stems.get(name, name)).read_bytes())
    text = (ROOT / "compose" / "gatehouse.yaml").read_text()
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("/run/secrets", str(here)))
    environment = {key: at.replace("/run/secrets", str(here)) for key, at in environment.items()}
    resolved, _ = load_and_resolve(path, environment, random_secret=lambda: b"")
    assert {str(one) for one in resolved.services} == {service}
    if more == "compose.mtls.yaml":
        assert not resolved.settings.grpc_insecure
        assert resolved.grpc_client_ca_pem is not None
        assert resolved.grpc_client_certificate is not None
        if service in {"authenticate", "proxy"}:
            assert resolved.authorize_urls == ("https://authorize:5443",)
            assert resolved.databroker_urls == ("https://databroker:5443",)
