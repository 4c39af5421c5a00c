"""Which keys exist, which are gone, and which are other names.

Tables for messages: aliases, removed keys with what to use instead, and the nearest known key.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

from pydantic import BaseModel

from gatehouse.common.config.model import Route, Settings
from gatehouse.common.config.values import nearest

__all__ = [
    "ALIASES",
    "NO_VARIABLE",
    "OLDER",
    "REMOVED",
    "REMOVED_ROUTE",
    "ROUTE_ALIASES",
    "fields_of",
    "is_api_only",
    "model_at",
    "nearest",
]

ALIASES: Final[Mapping[str, str]] = {
    "http_redirect_address": "http_redirect_addr",
    "grpc_addr": "grpc_address",
}
ROUTE_ALIASES: Final[Mapping[str, str]] = {"lb_policy": "load_balancing_policy"}

_OTEL: Final = "use the otel_* keys"
_MTLS: Final = "use downstream_mtls.ca or downstream_mtls.ca_file"
_DIRECTORY: Final = "use directory_source"
REMOVED: Final[Mapping[str, str]] = {
    "client_ca": _MTLS,
    "client_ca_file": _MTLS,
    "idp_service_account": _DIRECTORY,
    "idp_refresh_directory_timeout": _DIRECTORY,
    "idp_refresh_directory_interval": _DIRECTORY,
    "idp_qps": _DIRECTORY,
    "tracing_datadog_address": _OTEL,
    "tracing_jaeger_collector_endpoint": _OTEL,
    "tracing_jaeger_agent_endpoint": _OTEL,
    "tracing_zipkin_endpoint": _OTEL,
    "tracing_provider": "use otel_traces_exporter",
    "tracing_sample_rate": "use otel_traces_sampler_arg",
    "policy_file": "put the routes under routes in this file",
}
REMOVED_ROUTE: Final[Mapping[str, str]] = {
    "allowed_groups": "use policy with the criterion groups",
    "set_authorization_header": (
        "use set_request_headers with ${pomerium.access_token} or ${pomerium.id_token}"
    ),
}
NO_VARIABLE: Final[Mapping[str, str]] = {
    **REMOVED,
    "downstream_mtls": "a variable for each of its keys, such as DOWNSTREAM_MTLS_CA_FILE",
}
OLDER: Final[Mapping[str, str]] = {
    "administrators": "use policy, or the console",
    "headers": "use set_response_headers",
    "cache_service_url": "use databroker_service_url",
    "client_crl": "use downstream_mtls.crl or downstream_mtls.crl_file",
    "client_crl_file": "use downstream_mtls.crl or downstream_mtls.crl_file",
    "refresh_cooldown": "leave it out",
    "grpc_server_max_connection_age": "leave it out: connections are renewed by themselves",
    "grpc_server_max_connection_age_grace": "leave it out: connections are renewed by themselves",
    "authenticate_callback_path": "the path is always /oauth2/callback",
    "forward_auth_url": "forward auth is gone; let the proxy carry the traffic",
    "debug": "use log_level: debug",
    "signing_key_algorithm": "the key decides",
    "grpc_client_dns_roundrobin": "balancing is always on",
    "cookie_secure": "cookies are always Secure",
    "databroker_storage_tls_skip_verify": "put sslmode into the connection string",
    "databroker_storage_ca_file": "put sslrootcert into the connection string",
    "databroker_storage_cert_file": "put sslcert into the connection string",
    "databroker_storage_key_file": "put sslkey into the connection string",
}
_API_ONLY: Final = frozenset({"http3_advertise_port"})
_API_ONLY_IN_ROUTE: Final = frozenset({"id", "stat_name"})


def is_api_only(model: type[BaseModel] | None, name: str) -> bool:
    """True for what Pomerium knows in its API and its console, and never in a file."""
    if model is Route:
        return name in _API_ONLY_IN_ROUTE
    return model is Settings and (name in _API_ONLY or name.startswith("directory_provider"))


def _models(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


@cache
def fields_of(model: type[BaseModel]) -> Mapping[str, type[BaseModel] | None]:
    """The keys of a model, each with the model of its value or items, if it has one."""
    return {
        info.alias or name: next(iter(_models(info.annotation)), None)
        for name, info in model.model_fields.items()
    }


def model_at(path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The model whose keys may stand below `path` in the settings."""
    model: type[BaseModel] | None = Settings
    fresh = True  # False right after a key whose value is a map of name to model
    for step in path:
        if isinstance(step, int):
            continue
        if model is None:
            return None
        if step in fields_of(model) and fresh:
            fresh = step != "identity_providers" or model is not Settings
            model = fields_of(model)[step]
        elif fresh:
            return None
        else:
            fresh = True
    return model
