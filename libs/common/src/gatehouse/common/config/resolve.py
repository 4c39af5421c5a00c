"""What services are built from: `Settings` plus file contents, checked as a whole.

Everything wrong is collected and raised at once. Files are read through `read_file` only; a file
that only other services need is not read here, so that one configuration file serves four
containers of which each has its own secrets mounted.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from gatehouse.common.config import derive
from gatehouse.common.config.certificates import (
    CertificateError,
    check_revocation_lists,
    derive_certificate,
    make_pair,
    serves_clients,
    wants_staple,
)
from gatehouse.common.config.client_certificate_checks import check_revocation
from gatehouse.common.config.global_checks import check_settings
from gatehouse.common.config.inputs import Inputs, ReadFile, file_digest
from gatehouse.common.config.issues import ConfigError, Issue
from gatehouse.common.config.load import (
    KeyPath,
    LoadedSettings,
    Outcome,
    load_outcome,
    paused_collection,
)
from gatehouse.common.config.memory import RouteMemory, revealed
from gatehouse.common.config.model import Settings
from gatehouse.common.config.resolve_branding import check_branding
from gatehouse.common.config.resolve_explain import explain_policy
from gatehouse.common.config.resolve_route_records import resolve_added
from gatehouse.common.config.resolve_routes import RouteResolver
from gatehouse.common.config.resolve_secrets import SecretResolver
from gatehouse.common.config.resolve_telemetry import metrics_listener, tracing
from gatehouse.common.config.resolve_urls import URLResolver
from gatehouse.common.config.resolved import (
    CertificatePair,
    IdentityProviderSettings,
    ListenAddress,
    ResolvedSettings,
    ServiceName,
)
from gatehouse.common.config.route_records import ConfigRecord, routes_of
from gatehouse.common.config.ssh_checks import check_ssh_keys
from gatehouse.common.config.unavailable import (
    MESSAGE,
    unavailable_settings,
    without_effect_yet,
)
from gatehouse.common.config.values import nearest, one_of
from gatehouse.common.config.weaknesses import weaknesses
from gatehouse.common.session.idp_id import idp_id

Resolved = tuple[ResolvedSettings, tuple[Issue, ...]]

PROVIDERS: Final = (
    *("apple", "auth0", "azure", "cognito", "github", "gitlab", "google", "oidc", "okta"),
    *("onelogin", "ping"),
)
PROVIDERS_WITHOUT_DEFAULT_URL: Final = frozenset({"auth0", "cognito", "oidc", "okta", "ping"})
_GITHUB_VERSION: Final = 1


class UnresolvedError(ConfigError):
    """A configuration that was refused, and the files it refers to, found or not."""

    def __init__(
        self,
        issues: tuple[Issue, ...],
        warnings: tuple[Issue, ...],
        file_digests: Mapping[Path, bytes],
    ) -> None:
        super().__init__(issues, warnings)
        self.file_digests = dict(file_digests)

    @property
    def watched_files(self) -> tuple[Path, ...]:
        """What to look at for a change that could mend it."""
        return tuple(self.file_digests)


def resolve(
    loaded: LoadedSettings,
    *,
    read_file: ReadFile,
    environ: Mapping[str, str],
    random_secret: Callable[[], bytes],
    records: Iterable[ConfigRecord] = (),
) -> Resolved:
    """Resolved settings and warnings, or ConfigError with every mistake.

    `random_secret` gives the secret of an all-in-one without one: 32 bytes, the same on each call
    in a process. `read_file` raises OSError for what cannot be read. `records` are the databroker's
    of `RECORD_TYPES`; what is wrong with them never is a ConfigError, but in `left_out`.
    """
    resolver = _Resolver(loaded, frozenset(), read_file, environ, random_secret, records)
    resolved = resolver.run()
    if resolved is None:
        raise UnresolvedError(
            tuple(resolver.inputs.errors),
            (*loaded.warnings, *resolver.inputs.warnings),
            resolver.inputs.file_digests(),
        )
    return resolved, (*loaded.warnings, *resolver.inputs.warnings)


def load_and_resolve(
    path: Path | None,
    environ: Mapping[str, str],
    *,
    random_secret: Callable[[], bytes],
    records: Iterable[ConfigRecord] = (),
    memory: RouteMemory | None = None,
) -> Resolved:
    """Load, read files, resolve. ConfigError holds the mistakes of all steps.

    `memory` saves work on routes that were the same the last time; it changes no result.
    """
    with paused_collection():
        known = RouteMemory() if memory is None else memory
        return _load_and_resolve(path, environ, random_secret, records, known)


def _load_and_resolve(
    path: Path | None,
    environ: Mapping[str, str],
    random_secret: Callable[[], bytes],
    records: Iterable[ConfigRecord],
    memory: RouteMemory,
) -> Resolved:
    outcome: Outcome = load_outcome(path, environ, memory)
    errors = list(outcome.errors)
    if outcome.settings is None or ("services",) in outcome.dropped:
        raise ConfigError(tuple(errors), tuple(outcome.warnings))
    loaded = outcome.loaded()
    resolver = _Resolver(
        loaded, frozenset(outcome.dropped), Path.read_bytes, environ, random_secret, records, memory
    )
    resolved = resolver.run()
    errors.extend(resolver.inputs.errors)
    warnings = (*loaded.warnings, *resolver.inputs.warnings)
    if errors or resolved is None:
        raise UnresolvedError(
            _in_order(dict.fromkeys(errors)), _in_order(warnings), resolver.inputs.file_digests()
        )
    return resolved, _in_order(warnings)


def _in_order(issues: Iterable[Issue]) -> tuple[Issue, ...]:
    """By line of the file; then what stands in no file."""
    return tuple(sorted(issues, key=lambda issue: (not issue.file, issue.file, issue.line or 0)))


class _Resolver:
    def __init__(
        self,
        loaded: LoadedSettings,
        dropped: frozenset[KeyPath],
        read_file: ReadFile,
        environ: Mapping[str, str],
        random_secret: Callable[[], bytes],
        records: Iterable[ConfigRecord],
        memory: RouteMemory | None = None,
    ) -> None:
        self._memory = RouteMemory() if memory is None else memory
        self.inputs = Inputs(loaded, dropped, read_file)
        self._records = tuple(records)
        self._loaded = loaded
        self._settings: Settings = loaded.settings
        self._environ = environ
        self._random_secret = random_secret
        self._services: frozenset[ServiceName] = frozenset()

    # -- the whole -----------------------------------------------------------------------------

    def run(self) -> ResolvedSettings | None:
        """Everything, or None when there were errors."""
        settings = self._settings
        services = derive.parse_services(settings.services)
        if isinstance(services, str):
            guess = nearest(services, derive.SERVICE_CHOICES.split(", ")) if services else ""
            self.inputs.error(
                ("services",),
                f"config: {services!r} is an invalid service type",
                f"{f'did you mean {guess}? ' if guess else ''}{derive.SERVICE_CHOICES}",
            )
            # What was probably meant, to find what else is wrong.
            meant = derive.parse_services(settings.services.replace(services, guess or "all"))
            services = frozenset(ServiceName) if isinstance(meant, str) else meant
        self._services = services
        for key, fix in unavailable_settings(settings):
            self.inputs.error((key,), MESSAGE, fix)
        for key in without_effect_yet(settings):
            self.inputs.warn((key,), "has no effect yet", "leave it out")
        for finding in check_settings(settings):
            self.inputs.report(finding.severity, finding.path, finding.message, finding.fix)
        secrets = SecretResolver(
            settings=settings,
            services=services,
            inputs=self.inputs,
            random_secret=self._random_secret,
        )
        shared, cookie = secrets.secrets()
        signing_keys = secrets.signing_keys(shared[0])
        client_secret = self._client_secret()
        provider = self._provider(client_secret)
        certificates, fallback, derived_authority = self._certificates(shared[0])
        bundle = self._bundle(derived_authority)
        mtls_ca, mtls_crl = self._downstream_mtls()
        grpc_ca, grpc_client = self._grpc_client_tls()
        check_ssh_keys(settings, services, self.inputs)
        check_branding(settings, self.inputs)
        metrics = metrics_listener(settings, self.inputs)
        spans = tracing(settings, self.inputs, self._environ)
        recorded, unread = routes_of(self._records)
        resolver = RouteResolver(
            settings=settings,
            services=services,
            provider=provider,
            shared_secrets=shared,
            signing_keys=signing_keys,
            downstream_mtls=(mtls_ca, mtls_crl),
            inputs=self.inputs,
            memory=self._memory,
            stored_authorities=tuple(
                str(route.keys.get("tls_downstream_client_ca") or "") for route in recorded
            ),
        )
        routes = resolver.resolve()
        route_authorities = (route.tls_downstream_client_ca_pem for route in routes)
        client_authorities = [pem for pem in (mtls_ca, *route_authorities) if pem]
        for finding in check_revocation(settings, client_authorities, mtls_crl):
            self.inputs.report(finding.severity, finding.path, finding.message, finding.fix)
        urls = URLResolver(
            settings=settings, services=services, inputs=self.inputs, environ=self._environ
        )
        login = any(derive.needs_login(route.policy) for route in routes)
        authenticate, internal = urls.authenticate(provider, login=login)
        self._check_provider(client_secret, authenticate, login=login)
        added = resolve_added(resolver, recorded, routes, can_sign_in=bool(authenticate))
        connection = urls.databroker_connection()
        for finding in weaknesses(self._loaded, connection, self._environ):
            self.inputs.report(finding.severity, finding.path, finding.message, finding.fix)
        administrators = explain_policy(settings, self.inputs)
        grpc = derive.grpc_address(settings, services)
        if grpc is None:
            self.inputs.error(("grpc_address",), "is not an address", "host:port, or :port for all")
        if self.inputs.errors:
            return None
        assert grpc is not None
        fields: dict[str, Any] = {
            "settings": settings,
            "services": services,
            "shared_secrets": shared,
            "cookie_secrets": cookie,
            "signing_keys": signing_keys,
            "identity_provider": provider,
            "certificates": certificates,
            "fallback_certificate": fallback,
            "ca_bundle_pem": bundle,
            "databroker_connection": connection,
            "routes": (*routes, *added.routes),
            "left_out": (*unread, *added.issues),
            "address": derive.main_address(settings),
            "grpc_address": grpc,
            "grpc_insecure": derive.grpc_insecure(settings, services),
            "authenticate_url": authenticate,
            "authenticate_internal_url": internal,
            "authorize_urls": urls.of(ServiceName.AUTHORIZE),
            "databroker_urls": urls.of(ServiceName.DATABROKER),
            "watched_files": tuple(self.inputs.contents),
            "file_digests": self.inputs.file_digests(),
            "downstream_mtls_ca_pem": mtls_ca,
            "downstream_mtls_crl_pem": mtls_crl,
            "shared_grpc_urls": (
                derive.own_service_urls(settings, services)
                if derive.shares_address(settings, services)
                else ()
            ),
            "grpc_client_ca_pem": grpc_ca,
            "grpc_client_certificate": grpc_client,
            "metrics": metrics,
            "tracing": spans,
            "explain_policy": administrators,
        }
        return ResolvedSettings(**fields, generation=self._generation(fields))

    def _generation(self, fields: Mapping[str, Any]) -> str:
        """12 hex digits that change when anything does; keyed, so that they tell nothing."""
        digest = hmac.new(fields["shared_secrets"][0], digestmod=hashlib.sha256)
        digest.update(revealed(self._settings.without_routes()).encode())
        for key in (self._settings.policy, self._settings.routes):
            digest.update(len(key).to_bytes(8))
        digest.update(self._memory.digest(self._settings.all_routes))
        for value in (
            sorted(self._services),
            fields["shared_secrets"],
            fields["cookie_secrets"],
            [key.kid for key in fields["signing_keys"]],
            fields["databroker_connection"],
        ):
            digest.update(repr(value).encode() + b"\x00")
        for record in self._records:
            digest.update(repr(record).encode() + b"\x00")
        for file, contents in self.inputs.contents.items():
            digest.update(str(file).encode() + b"\x00" + file_digest(contents))
        return digest.hexdigest()[:12]

    @property
    def _all_in_one(self) -> bool:
        return len(self._services) == len(ServiceName)

    # -- identity provider ---------------------------------------------------------------------

    def _client_secret(self) -> str:
        settings = self._settings
        if not settings.idp_client_secret_file:
            return settings.idp_client_secret.get_secret_value()
        contents = self.inputs.read(("idp_client_secret_file",), settings.idp_client_secret_file)
        secret = (contents or b"").decode("utf-8", "replace").rstrip("\r\n")
        if contents is not None and not secret:
            self.inputs.error(
                ("idp_client_secret_file",),
                "the file is empty",
                "the secret as the provider gave it",
            )
        return secret

    def _provider(self, client_secret: str) -> IdentityProviderSettings | None:
        settings = self._settings
        kind = settings.idp_provider.strip().lower()
        if not kind:
            return None
        if kind == "hosted":
            self.inputs.error(
                ("idp_provider",),
                "Pomerium's hosted provider needs the stateless flow, which is not offered",
                f"one of {', '.join(PROVIDERS)}",
            )
        elif kind not in PROVIDERS:
            self.inputs.error(
                ("idp_provider",), f"unknown provider {kind!r}", one_of(kind, PROVIDERS)
            )
        elif kind in PROVIDERS_WITHOUT_DEFAULT_URL and not settings.idp_provider_url:
            self.inputs.error(
                ("idp_provider_url",), f"is required with idp_provider {kind}", "its issuer URL"
            )
        return IdentityProviderSettings(
            id=idp_id(
                type=kind,
                url=settings.idp_provider_url,
                client_id=settings.idp_client_id,
                authenticate_service_url=settings.authenticate_service_url,
                version=_GITHUB_VERSION if kind == "github" else 0,
            ),
            type=kind,
            url=settings.idp_provider_url,
            client_id=settings.idp_client_id,
            client_secret=client_secret,
            scopes=settings.idp_scopes,
            request_params=settings.idp_request_params,
        )

    def _check_provider(self, client_secret: str, authenticate: str, *, login: bool) -> None:
        settings = self._settings
        if ServiceName.AUTHENTICATE in self._services and (
            login or not self._all_in_one or authenticate
        ):
            for key, value in (
                ("idp_provider", settings.idp_provider),
                ("idp_client_id", settings.idp_client_id),
                ("idp_client_secret", client_secret),
            ):
                if not value and not self._has_file(key):
                    self.inputs.error(
                        (key,), "is required by authenticate", "as the provider gave it"
                    )
        elif login and not settings.idp_provider:
            self.inputs.warn(
                ("idp_provider",),
                "is not set, so sign-in URLs and sessions of this process name no provider",
                "the same idp_* keys as authenticate has",
            )

    def _has_file(self, key: str) -> bool:
        """True when the `_file` form is given, even wrongly: then that is what is complained of."""
        name = f"{key}_file"
        return bool(getattr(self._settings, name, "")) or (name,) in self.inputs.dropped

    # -- certificates --------------------------------------------------------------------------

    def _certificates(
        self, shared: bytes
    ) -> tuple[tuple[CertificatePair, ...], CertificatePair | None, bytes | None]:
        settings = self._settings
        insecure_grpc = derive.grpc_insecure(settings, self._services)
        main = derive.has_listener(self._services) and not settings.insecure_server
        pairs: list[CertificatePair] = []
        if main or not insecure_grpc:
            pairs = self._configured_certificates()
        for pair in pairs:
            if wants_staple(pair.certificate_pem):
                self.inputs.error(
                    ("certificate_file",),
                    f"{pair.source} demands a stapled OCSP answer, and there is none",
                    "a certificate without must-staple",
                )
        authority: bytes | None = None
        name = derive.derived_name(settings)
        if name is not None:
            derived = derive_certificate(shared, name, "tls_derive")
            authority = derived.authority_pem
            pairs.append(derived.pair)
        fallback = None
        if settings.tls_derive or not pairs:
            fallback = derive_certificate(shared, "*", "shared_secret").pair
        if not pairs and main and not self.inputs.errors:
            self.inputs.warn(
                ("certificate_file",),
                "no certificate is configured: a self-made one is used, which browsers reject",
                "certificate_file and certificate_key_file",
            )
        if not pairs and not insecure_grpc and not main:
            self.inputs.warn(
                ("certificate_file",),
                "no certificate is configured: gRPC uses a self-made one, which no peer trusts",
                "certificate_file and certificate_key_file, tls_derive, or grpc_insecure: true",
            )
        return tuple(pairs), fallback, authority

    def _configured_certificates(self) -> list[CertificatePair]:
        settings = self._settings
        found: list[CertificatePair | None] = []
        inline_key = settings.certificate_key.get_secret_value()
        if settings.certificate or inline_key:
            found.append(self._inline_pair(settings.certificate, inline_key))
        for index, files in enumerate(settings.certificates):
            found.append(
                self.inputs.file_pair(
                    files.cert,
                    files.key,
                    ("certificates", index, "cert"),
                    ("certificates", index, "key"),
                    "bad cert entry, file reference invalid",
                )
            )
        if settings.certificate_file or settings.certificate_key_file:
            found.append(
                self.inputs.file_pair(
                    settings.certificate_file,
                    settings.certificate_key_file,
                    ("certificate_file",),
                    ("certificate_key_file",),
                    "bad cert file",
                )
            )
        return [pair for pair in found if pair is not None]

    def _inline_pair(self, certificate: str, key: str) -> CertificatePair | None:
        for name, value, other in (
            ("certificate", certificate, "certificate_key"),
            ("certificate_key", key, "certificate"),
        ):
            if not value:
                self.inputs.error(
                    (other,), "bad cert base64: its other half is missing", f"add {name}"
                )
                return None
        certificate_pem = self.inputs.pem(certificate, ("certificate",))
        key_pem = self.inputs.pem(key, ("certificate_key",))
        if certificate_pem is None or key_pem is None:
            return None
        try:
            return make_pair(certificate_pem, key_pem, "certificate")
        except CertificateError as error:
            self.inputs.error(("certificate",), f"bad cert base64: {error}", "a matching PEM pair")
            return None

    def _bundle(self, derived: bytes | None) -> bytes | None:
        settings = self._settings
        inline = self.inputs.authorities(
            ("certificate_authority",), settings.certificate_authority, ""
        )
        file = self.inputs.authorities(
            ("certificate_authority",), "", settings.certificate_authority_file
        )
        self.inputs.authorities(
            ("autocert_trusted_ca",),
            settings.autocert_trusted_ca,
            settings.autocert_trusted_ca_file,
        )
        parts = [part for part in (inline, file, derived) if part]
        return b"".join(parts) or None

    def _downstream_mtls(self) -> tuple[bytes | None, bytes | None]:
        mtls = self._settings.downstream_mtls
        authority = self.inputs.authorities(("downstream_mtls", "ca"), mtls.ca, mtls.ca_file)
        lists = self.inputs.either(("downstream_mtls", "crl"), mtls.crl, mtls.crl_file)
        if lists is not None:
            try:
                lists = check_revocation_lists(lists)
            except CertificateError as error:
                name = "crl_file" if mtls.crl_file else "crl"
                self.inputs.error(("downstream_mtls", name), str(error), "PEM revocation lists")
        return authority, lists

    def _grpc_client_tls(self) -> tuple[bytes | None, CertificatePair | None]:
        settings = self._settings
        authority = self.inputs.authorities(
            ("grpc_client_ca",), settings.grpc_client_ca, settings.grpc_client_ca_file
        )
        asks = "grpc_client_ca_file" if settings.grpc_client_ca_file else "grpc_client_ca"
        if getattr(settings, asks) and derive.grpc_insecure(settings, self._services):
            self.inputs.error(
                (asks,),
                "callers cannot be asked for certificates in plain text (grpc_insecure: true)",
                "grpc_insecure: false",
            )
        certificate, key = settings.grpc_client_certificate_file, settings.grpc_client_key_file
        if not certificate and not key:
            return authority, None
        pair = self.inputs.file_pair(
            certificate,
            key,
            ("grpc_client_certificate_file",),
            ("grpc_client_key_file",),
            "bad client certificate",
        )
        if pair is not None and not serves_clients(pair.certificate_pem):
            self.inputs.error(
                ("grpc_client_certificate_file",),
                "its extended key usage does not include clientAuth: every server would refuse it",
                "a certificate made for TLS clients",
            )
        return authority, pair


__all__ = ["ListenAddress", "ReadFile", "Resolved", "load_and_resolve", "resolve"]
