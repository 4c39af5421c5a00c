"""Where the services of a configuration are reached, and where records are kept.

Part of `resolve`; mistakes go to the object that also reads the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gatehouse.common.config import derive
from gatehouse.common.config.inputs import Inputs
from gatehouse.common.config.load import KeyPath
from gatehouse.common.config.model import Settings, StorageType
from gatehouse.common.config.resolved import IdentityProviderSettings, ServiceName

_DATABASE: Final = "postgresql://user:password@host/database"


@dataclass(frozen=True, slots=True, kw_only=True)
class URLResolver:
    """Resolves URLs and the databroker's storage."""

    settings: Settings
    services: frozenset[ServiceName]
    inputs: Inputs
    environ: Mapping[str, str]

    @property
    def _all_in_one(self) -> bool:
        return len(self.services) == len(ServiceName)

    def authenticate(
        self, provider: IdentityProviderSettings | None, *, login: bool
    ) -> tuple[str, str]:
        """Where users sign in, from outside and from inside; "" when no route needs it."""
        settings = self.settings
        url = settings.authenticate_service_url
        internal = settings.authenticate_internal_service_url or url
        fix = "the https URL where users sign in, such as https://authenticate.example.com"
        for key, value in (
            ("authenticate_service_url", url),
            ("authenticate_internal_service_url", settings.authenticate_internal_service_url),
        ):
            if value and derive.is_hosted(value):
                self.inputs.error(
                    (key,),
                    "Pomerium's hosted authenticate needs the stateless flow, which is not offered",
                    fix,
                )
        if url:
            return url.rstrip("/"), internal.rstrip("/")
        if self.services == {ServiceName.DATABROKER}:
            if provider is not None:
                self.inputs.warn(
                    ("authenticate_service_url",),
                    "is not set here, so sessions cannot be told apart by provider and refreshed",
                    "the same value as in the other services",
                )
        elif not self._all_in_one:
            self.inputs.error(
                ("authenticate_service_url",), "is required when services run apart", fix
            )
        elif login:
            self.inputs.error(
                ("authenticate_service_url",), "is required, since a route needs a login", fix
            )
        return "", ""

    def of(self, service: ServiceName) -> tuple[str, ...]:
        """Where to dial `service`. All-in-one ignores the keys; so does who runs it itself."""
        settings = self.settings
        if service is ServiceName.AUTHORIZE:
            urls = derive.configured_urls(
                settings.authorize_service_url, settings.authorize_service_urls
            )
            if settings.authorize_internal_service_url:
                urls = (settings.authorize_internal_service_url,)
            needed = ServiceName.PROXY in self.services
        else:
            urls = derive.configured_urls(
                settings.databroker_service_url, settings.databroker_service_urls
            )
            needed = bool(self.services - {ServiceName.DATABROKER})
        if self._all_in_one or service in self.services:
            return (derive.loopback_url(settings),)
        if not urls:
            if needed:
                self.inputs.warn(
                    (f"{service}_service_url",),
                    f"is not set: {service} is looked for at {derive.loopback_url(settings)}",
                    f"the URL of {service}",
                )
            return (derive.loopback_url(settings),)
        return urls

    def databroker_connection(self) -> str:
        """What the storage is opened with; "" for memory."""
        settings = self.settings
        kind = settings.databroker_storage_type
        where: KeyPath = ("databroker_storage_connection_string",)
        text = settings.databroker_storage_connection_string.get_secret_value().strip()
        if ServiceName.DATABROKER not in self.services:
            return text
        if settings.databroker_storage_connection_string_file:
            where = ("databroker_storage_connection_string_file",)
            contents = self.inputs.read(where, settings.databroker_storage_connection_string_file)
            text = (contents or b"").decode("utf-8", "replace").strip()
            if contents is not None and not text:
                self.inputs.error(where, "the file is empty", "what the storage is opened with")
            if not text:
                return ""
        urls = derive.configured_urls(
            settings.databroker_service_url, settings.databroker_service_urls
        )
        if kind is not StorageType.POSTGRES and len(urls) > 1:
            self.inputs.error(
                ("databroker_storage_type",),
                f"{kind} storage serves one instance, but {len(urls)} databroker URLs are set",
                "databroker_storage_type: postgres, or one URL",
            )
        if kind is StorageType.MEMORY:
            return ""
        if kind is StorageType.FILE:
            if text and not text.startswith(("file://", "/")):
                self.inputs.error(
                    where, "names no directory", "file:///path/to/directory or /path/to/directory"
                )
            return text or f"file://{derive.data_directory(self.environ) / 'databroker'}"
        if not text:
            self.inputs.error(
                ("databroker_storage_connection_string",),
                "is required with postgres",
                _DATABASE,
            )
        elif not text.startswith(("postgresql://", "postgres://")) and "=" not in text:
            self.inputs.error(where, "names no database", _DATABASE)
        return text
