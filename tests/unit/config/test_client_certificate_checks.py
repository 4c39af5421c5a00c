"""Client certificates that are asked for in vain, and lists that Envoy reads more strictly."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.client_pki import Issued
from tests.support.configuration import LOGIN, PUBLIC, problems, resolved, shown, warnings

ROOT, OTHER = Issued.root("root"), Issued.root("other")
FIRST = len(LOGIN.splitlines()) + 1


def encoded(*texts: str) -> str:
    return base64.b64encode("".join(texts).encode()).decode()


ROOT_TEXT = encoded(ROOT.pem)
REJECT = "enforcement: reject_connection"


def about_certificates(folder: Path, text: str, **files: str) -> list[str]:
    contents = {name: value.encode() for name, value in files.items()}
    found = resolved(folder, LOGIN + text, files=contents)[1]
    return [shown(issue) for issue in found]


@pytest.mark.parametrize(
    ("enforcement", "and_so"),
    [
        ("policy_with_default_deny", ": policy_with_default_deny refuses every request ("),
        ("reject_connection", ": reject_connection refuses every request ("),
        ("policy", "show a certificate ("),
    ],
)
def test_without_tls_no_certificate_comes(tmp_path: Path, enforcement: str, and_so: str) -> None:
    text = (
        f"insecure_server: true\ndownstream_mtls: {{ca: {ROOT_TEXT}, enforcement: {enforcement}}}\n"
    )
    (line,) = about_certificates(tmp_path, text)
    said = "downstream_mtls.ca: without TLS (insecure_server) no client can show a certificate"
    assert line.startswith(f"{FIRST + 1}: {said}")
    assert and_so in line
    assert about_certificates(tmp_path, text.removeprefix("insecure_server: true\n")) == []


def test_nor_for_the_authority_of_a_route(tmp_path: Path) -> None:
    text = f"insecure_server: true\n{PUBLIC.lstrip()}  tls_downstream_client_ca: {ROOT_TEXT}\n"
    lines = about_certificates(tmp_path, text)
    assert any("routes[0].tls_downstream_client_ca: without TLS" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("crl: CRL", "crl"),
        ("match_subject_alt_names: [{dns: a}]", "match_subject_alt_names"),
        (REJECT, "enforcement"),
        ("enforcement: policy_with_default_deny", "enforcement"),
    ],
)
def test_keys_without_an_authority(tmp_path: Path, text: str, key: str) -> None:
    written = text.replace("CRL", encoded(ROOT.revoke()))
    (line,) = about_certificates(tmp_path, f"downstream_mtls: {{{written}}}\n")
    assert line == (
        f"{FIRST}: downstream_mtls.{key}: has no effect: without authorities no client is asked "
        "for a certificate (downstream_mtls.ca or ca_file)"
    )


@pytest.mark.parametrize("text", ["{}", "{enforcement: policy}", "{max_verify_depth: 2}"])
def test_what_is_no_loss_without_an_authority(tmp_path: Path, text: str) -> None:
    assert about_certificates(tmp_path, f"downstream_mtls: {text}\n") == []


def mtls(authorities: str, lists: str, rest: str) -> str:
    return f"downstream_mtls: {{ca: {authorities}, crl: {encoded(lists)}, {rest}}}\n"


LISTED: list[tuple[Callable[[], str], str]] = [
    (lambda: mtls(ROOT_TEXT, ROOT.revoke(), REJECT), "past its next update (a list of every"),
    (
        lambda: mtls(encoded(ROOT.pem, OTHER.pem), ROOT.revoke(), REJECT),
        "past its next update; it refuses all clients of CN=other, who have no list (a list of",
    ),
]


@pytest.mark.parametrize(("text", "said"), LISTED)
def test_envoy_is_strict_about_lists(tmp_path: Path, text: Callable[[], str], said: str) -> None:
    (line,) = about_certificates(tmp_path, text())
    assert line.startswith(f"{FIRST}: downstream_mtls.crl: with reject_connection Envoy refuses")
    assert said in line
    assert line.endswith("or enforcement: policy_with_default_deny)")


def test_the_authority_of_a_route_needs_a_list_too(tmp_path: Path) -> None:
    text = (
        f"downstream_mtls: {{ca: {ROOT_TEXT}, crl_file: /lists, {REJECT}}}\n{PUBLIC}"
        f"  tls_downstream_client_ca: {encoded(OTHER.pem)}\n"
    )
    lines = about_certificates(tmp_path, text, **{"/lists": ROOT.revoke()})
    assert any("crl_file: " in line and "clients of CN=other" in line for line in lines)


def test_authorize_is_not_strict_about_lists(tmp_path: Path) -> None:
    text = mtls(encoded(ROOT.pem, OTHER.pem), ROOT.revoke(), "enforcement: policy")
    assert about_certificates(tmp_path, text) == []


# -- the host of an authenticate service elsewhere ---------------------------------------------

SIGN_IN = "routes:\n- from: https://authenticate.example.com\n  to: http://authenticate\n"
SPLIT = "databroker_service_url: http://d\nauthorize_service_url: http://z\n"
PROXY = f"services: proxy\n{SPLIT}"


@pytest.mark.parametrize(
    "policy",
    [
        "policy: {allow: {and: [{email: {is: a@example.com}}]}}",
        "allow_any_authenticated_user: true",
        "allowed_users: [a]",
        "allowed_domains: [example.com]",
        "allowed_idp_claims: {groups: [a]}",
    ],
)
def test_no_policy_holds_on_the_host_that_is_passed_through(tmp_path: Path, policy: str) -> None:
    text = f"{LOGIN}{PROXY}{SIGN_IN}  {policy}\n"
    (line,) = problems(tmp_path, text)
    key = policy.partition(":")[0]
    assert line == (
        f"{len(text.splitlines())}: routes[0].{key}: cannot hold here: on the host of "
        "authenticate_service_url nothing is decided, since users must reach it to sign in "
        "(allow_public_unauthenticated_access: true alone; authenticate guards its pages)"
    )
    elsewhere = text.replace("from: https://authenticate.", "from: https://app.")
    assert problems(tmp_path, elsewhere) == []
    other_port = text.replace(
        "from: https://authenticate.example.com", "from: https://authenticate.example.com:8443"
    )
    assert problems(tmp_path, other_port) == []
    both = text.replace("services: proxy", "services: proxy,authenticate")
    assert problems(tmp_path, both) == []


def test_what_is_passed_through_is_open_to_everybody(tmp_path: Path) -> None:
    public = "  allow_public_unauthenticated_access: true\n"
    assert warnings(tmp_path, f"{LOGIN}{PROXY}{SIGN_IN}{public}") == []
    (line,) = warnings(tmp_path, f"{LOGIN}{PROXY}{SIGN_IN}")
    assert "routes[0].from: everybody may use this route: on the host of" in line
    explicit = f"{LOGIN}{PROXY}{SIGN_IN}{public}".replace(
        "example.com\n  to", "example.com:443\n  to"
    )
    assert warnings(tmp_path, explicit) == []
