"""Which routes the databroker's configuration records describe, in the order they are tried.

A record becomes the keys that the same route would have in a file; whether they are right is for
the checks that files go through (`resolve_route_records.py`). Pure. Spec: configuration.md section
1.6, routes.md section 6.2.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import ListValue, Struct

from gatehouse.common.config.issues import Issue, Severity
from gatehouse.common.config.memory import FILE_KEYS
from gatehouse.common.config.model import Route
from gatehouse.common.config.values import shorten
from gatehouse.common.ids import TypeUrl
from gatehouse.pb import config_pb2

SOURCE: Final = "databroker"  # where an issue says that it was found

CONFIG: Final = TypeUrl("type.googleapis.com/pomerium.config.Config")
VERSIONED_CONFIG: Final = TypeUrl("type.googleapis.com/pomerium.config.VersionedConfig")
ROUTE: Final = TypeUrl("type.googleapis.com/pomerium.config.Route")
POLICY: Final = TypeUrl("type.googleapis.com/pomerium.config.Policy")
KEY_PAIR: Final = TypeUrl("type.googleapis.com/pomerium.config.KeyPair")
SETTINGS: Final = TypeUrl("type.googleapis.com/pomerium.config.Settings")

_MESSAGES: Final[Mapping[str, type[Message]]] = {
    CONFIG: config_pb2.Config,
    VERSIONED_CONFIG: config_pb2.VersionedConfig,
    ROUTE: config_pb2.Route,
    POLICY: config_pb2.Policy,
    KEY_PAIR: config_pb2.KeyPair,
    SETTINGS: config_pb2.Settings,
}
RECORD_TYPES: Final = tuple(_MESSAGES)
"""The types whose records `routes_of` takes."""

_KEYS: Final = frozenset(info.alias or name for name, info in Route.model_fields.items())
_RENAMED: Final = {"policies": "sub_policies", "oauth2_endpoint": "endpoint"}
_OTHERWISE: Final = frozenset({"regex_priority_order"})  # for the order alone
_STYLES: Final = {"OAUTH2_AUTH_STYLE_IN_PARAMS": "params", "OAUTH2_AUTH_STYLE_IN_HEADER": "header"}
_UNSET_ENUMS: Final = ("_UNSPECIFIED", "_UNKNOWN")
_ID: Final = re.compile(r"[A-Za-z0-9._:/\-]{1,128}")


@dataclass(frozen=True, slots=True)
class ConfigRecord:
    """A record as the databroker holds it."""

    type: str
    id: str
    data: bytes


@dataclass(frozen=True, slots=True)
class RecordRoute:
    """A route of a record, not yet checked."""

    place: str  # for messages: Config ingress routes[2]
    id: str  # "" when it has none of its own
    stat_name: str
    keys: Mapping[str, Any]  # as in a file
    problems: tuple[tuple[str, str, str], ...] = ()  # key, message, what would be right


def routes_of(
    records: Iterable[ConfigRecord],
) -> tuple[tuple[RecordRoute, ...], tuple[Issue, ...]]:
    """All routes in the order they are tried, and what of the records could not be read."""
    issues: list[Issue] = []
    found: list[tuple[tuple[str, ...], int | None, RecordRoute]] = []
    for place, message, problems in _messages(records, issues):
        route = _read(place, message, problems)
        order = message.regex_priority_order if message.HasField("regex_priority_order") else None
        sort_keys = (message.prefix, message.regex, message.path, getattr(message, "from"))
        found.append((sort_keys, order, route))
    # Each sort keeps the order of the one before among equals: the last is the first to count.
    found.sort(key=lambda one: one[2].id)
    found.sort(key=lambda one: one[0][0], reverse=True)
    found.sort(key=lambda one: one[0][1], reverse=True)
    found.sort(key=lambda one: (one[1] is None, -(one[1] or 0)))
    found.sort(key=lambda one: one[0][2], reverse=True)
    found.sort(key=lambda one: one[0][3])
    return tuple(route for _, _, route in found), tuple(issues)


Problems = list[tuple[str, str, str]]


def _messages(
    records: Iterable[ConfigRecord], issues: list[Issue]
) -> Iterator[tuple[str, config_pb2.Route, Problems]]:
    """Every route message, with what it refers to filled in."""
    decoded: dict[str, dict[str, Any]] = {type_url: {} for type_url in RECORD_TYPES}
    for record in records:
        if record.type not in decoded:
            continue
        try:
            message = _MESSAGES[record.type].FromString(record.data)
        except DecodeError:
            place = f"{_kind(record.type)} {record.id}"
            fix = "write it again, with the messages of pomerium.config"
            issues.append(Issue(Severity.ERROR, place, "cannot be decoded", fix, SOURCE))
            continue
        decoded[record.type][record.id] = message
    issues += _left_out_settings(decoded)
    for record_id, config in sorted(decoded[CONFIG].items()):
        for index, route in enumerate(config.routes):
            yield f"Config {record_id} routes[{index}]", route, []
    for record_id, versioned in sorted(decoded[VERSIONED_CONFIG].items()):
        if versioned.conditions:
            place = f"VersionedConfig {record_id}"
            told = "is for certain versions of Pomerium and left out"
            fix = "a Config, or one without conditions"
            issues.append(Issue(Severity.WARNING, place, told, fix, SOURCE))
            continue
        for index, route in enumerate(versioned.config.routes):
            yield f"VersionedConfig {record_id} routes[{index}]", route, []
    for record_id, route in sorted(decoded[ROUTE].items()):
        whole, problems = _filled_in(route, decoded[POLICY], decoded[KEY_PAIR])
        yield f"Route {record_id}", whole, problems


def _left_out_settings(decoded: Mapping[str, Mapping[str, Any]]) -> Iterator[Issue]:
    """Global keys that somebody stored and that nobody takes up: not without a word."""
    configs = [
        *((f"Config {each_id}", each) for each_id, each in sorted(decoded[CONFIG].items())),
        *(
            (f"VersionedConfig {each_id}", each.config)
            for each_id, each in sorted(decoded[VERSIONED_CONFIG].items())
            if not each.conditions
        ),
    ]
    places = [f"{place} settings" for place, each in configs if each.settings.ByteSize()]
    places += [f"Settings {each_id}" for each_id in sorted(decoded[SETTINGS])]
    for place in places:
        message = "are left out: of what the databroker holds, routes alone are taken up"
        yield Issue(Severity.WARNING, place, message, "the same keys in the file", SOURCE)


def _kind(type_url: str) -> str:
    return type_url.rpartition(".")[2]


def _filled_in(
    route: config_pb2.Route,
    policies: Mapping[str, config_pb2.Policy],
    key_pairs: Mapping[str, config_pb2.KeyPair],
) -> tuple[config_pb2.Route, Problems]:
    """The route with the policies and key pairs that it names. A missing policy may be a denial."""
    problems: Problems = []
    whole = config_pb2.Route()
    whole.CopyFrom(route)
    for policy_id in route.policy_ids:
        if policy_id in policies:
            whole.policies.append(policies[policy_id])
        else:
            message = f"there is no policy {shorten(policy_id)}"
            problems.append(("policy_ids", message, "the id of a policy"))
    for key, certificate, private in (
        ("tls_custom_ca_key_pair_id", "tls_custom_ca", ""),
        ("tls_client_key_pair_id", "tls_client_cert", "tls_client_key"),
        ("tls_downstream_client_ca_key_pair_id", "tls_downstream_client_ca", ""),
        ("kubernetes_service_account_token_key_pair_id", "", "kubernetes_service_account_token"),
    ):
        pair_id = getattr(route, key)
        if not pair_id:
            continue
        pair = key_pairs.get(pair_id)
        if pair is None:
            message = f"there is no key pair {shorten(pair_id)}"
            problems.append((key, message, "the id of a key pair"))
            continue
        if certificate:
            setattr(whole, certificate, base64.b64encode(pair.certificate).decode())
        if private == "kubernetes_service_account_token":
            setattr(whole, private, pair.key.decode("utf-8", "replace"))
        elif private:
            setattr(whole, private, base64.b64encode(pair.key).decode())
    return whole, problems


def _read(place: str, route: config_pb2.Route, problems: Problems) -> RecordRoute:
    keys = {name: value for name, value in _keys_of(route).items() if name in _KEYS - _OTHERWISE}
    if not keys.get("redirect", True):
        del keys["redirect"]
    for name in sorted(keys.keys() & FILE_KEYS):
        # Who may write records could else have any file of this machine sent to an upstream.
        del keys[name]
        fix = f"{name.removesuffix('_file')} with the contents, or a key pair"
        problems.append((name, "names a file, which only the configuration file may", fix))
    weights = list(route.load_balancing_weights)
    if weights and len(weights) == len(route.to):
        keys["to"] = [f"{url},{weight}" for url, weight in zip(route.to, weights, strict=True)]
    elif weights:
        message = f"has {len(weights)} weights for {len(route.to)} upstreams"
        problems.append(("load_balancing_weights", message, "one for each, or none"))
    if route.id and not _ID.fullmatch(route.id):
        problems.append(("id", f"{shorten(route.id)} is no id", "letters, digits and ._:/-"))
    return RecordRoute(place, route.id, route.stat_name, keys, tuple(problems))


def _keys_of(message: Message) -> dict[str, Any]:
    """What is set in a message, by the names that files have for it."""
    return {
        _RENAMED.get(field.name, field.name): value
        for field, raw in message.ListFields()
        if (value := _value(field, raw)) is not None
    }


def _value(field: FieldDescriptor, raw: Any) -> Any:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        item = entry.fields_by_name["value"]
        return {str(key): _single(item, raw[key]) for key in raw}
    if field.is_repeated:
        return [_single(field, one) for one in raw]
    return _single(field, raw)


def _single(field: FieldDescriptor, raw: Any) -> Any:
    if isinstance(raw, Duration):
        return f"{raw.ToNanoseconds() / 1e9:.9f}".rstrip("0").rstrip(".") + "s"
    if isinstance(raw, Struct | ListValue):
        return json_format.MessageToDict(raw)
    if isinstance(raw, Message):
        names = [one.name for one in raw.DESCRIPTOR.fields]
        if names == ["value"]:
            return raw.value  # type: ignore[attr-defined]
        return list(raw.values) if names == ["values"] else _keys_of(raw)  # type: ignore[attr-defined]
    if isinstance(raw, bytes):
        return base64.b64encode(raw).decode()
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(raw)
        if known is None:
            return str(raw)
        return None if known.name.endswith(_UNSET_ENUMS) else _STYLES.get(known.name, known.name)
    return raw
