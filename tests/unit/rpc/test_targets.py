"""Service URLs, the groups they form, and how gRPC is told."""

from __future__ import annotations

import pytest

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.rpc.targets import (
    Address,
    Group,
    GroupKey,
    Target,
    group_targets,
    grpc_target,
    parse_target,
)

A = Address("10.0.0.1", 5443)
B = Address("10.0.0.2", 5443)
V6 = Address("fd00::1", 5443)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://broker", ("http", "broker", 80)),
        ("https://broker", ("https", "broker", 443)),
        ("http://Broker.Example.:5443/", ("http", "broker.example", 5443)),
        ("https://10.0.0.1:5443", ("https", "10.0.0.1", 5443)),
        ("http://[fd00::1]:81", ("http", "fd00::1", 81)),
    ],
)
def test_urls(url: str, expected: tuple[str, str, int]) -> None:
    target = parse_target(url)
    assert (target.scheme, target.host, target.port) == expected


def test_unix_url() -> None:
    target = parse_target("unix:///run/gate%20house/grpc.sock")
    assert (target.scheme, target.path) == ("unix", "/run/gate house/grpc.sock")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "broker:5443",
        "ftp://broker",
        "http://",
        "http://:80",
        "http://broker:0",
        "http://broker:99999",
        "http://broker:x",
        "http://[fd00::1",
        "unix://run/x",
        "unix:x",
        "unix:",
    ],
)
def test_bad_urls_say_what_would_be_right(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"http://host\[:port\]"):
        parse_target(url)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_target("http://me:hunter2@broker")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "literal"),
    [
        ("10.0.0.1", Address("10.0.0.1", 1)),
        ("fd00:0::1", Address("fd00::1", 1)),
        ("broker", None),
        ("10.0.0", None),
    ],
)
def test_literals(host: str, literal: Address | None) -> None:
    assert Target("", "http", host, 1).literal == literal


def grouped(*urls: str, override: str = "") -> dict[str, tuple[str, tuple[Address, ...]]]:
    targets = [parse_target(url) for url in urls]
    addresses = {
        targets[0]: (A,),
        **({targets[1]: (B, A)} if len(targets) > 1 else {}),
    }
    return {
        f"{group.key.scheme}:{group.key.verify_name}{group.key.path}": (
            group.authority,
            group.addresses,
        )
        for group in group_targets(targets, addresses, override)
    }


def test_plaintext_urls_share_one_channel() -> None:
    assert grouped("http://one:5443", "http://two:5443") == {"http:": ("one:5443", (A, B))}


def test_https_urls_of_different_names_get_a_channel_each() -> None:
    assert grouped("https://one:5443", "https://two:5443") == {
        "https:one": ("one:5443", (A,)),
        "https:two": ("two:5443", (A, B)),
    }


def test_an_override_name_joins_them() -> None:
    assert grouped("https://one:5443", "https://two:5443", override="broker.internal") == {
        "https:broker.internal": ("broker.internal", (A, B))
    }


def test_plain_and_tls_never_mix() -> None:
    assert set(grouped("http://one:5443", "https://one:5443")) == {"http:", "https:one"}


def test_a_name_without_an_address_has_no_group() -> None:
    targets = [parse_target("http://one"), parse_target("unix:///x")]
    groups = group_targets(targets, {}, "")
    assert [group.key.scheme for group in groups] == ["unix"]


@pytest.mark.parametrize(
    ("addresses", "spelled"),
    [
        ((A, B), "ipv4:10.0.0.1:5443,10.0.0.2:5443"),
        ((V6,), "ipv6:[fd00::1]:5443"),
        ((A, V6), "ipv6:[::ffff:10.0.0.1]:5443,[fd00::1]:5443"),
    ],
)
def test_grpc_targets(addresses: tuple[Address, ...], spelled: str) -> None:
    assert grpc_target(Group(GroupKey("http", "", ""), "x", addresses)) == spelled


def test_grpc_target_of_a_socket() -> None:
    assert grpc_target(Group(GroupKey("unix", "", "/run/x.sock"), "x", ())) == "unix:/run/x.sock"
