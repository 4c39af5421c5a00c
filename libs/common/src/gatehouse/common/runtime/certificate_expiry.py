"""When the certificates in force end, and who is told in time: the log, once a day."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from gatehouse.common.clock import Clock
from gatehouse.common.config.hub import ConfigHub
from gatehouse.common.config.resolved import CertificatePair, ResolvedSettings
from gatehouse.common.observability.logging import get_logger
from gatehouse.common.runtime.supervise import wait_or_stop

WARN_BEFORE_S: Final = 14 * 86_400.0
REPEAT_S: Final = 86_400.0
_LOOK_S: Final = 60.0  # a reload may bring another certificate, a warning of it must not wait a day

_log = get_logger("certificates")


@dataclass(frozen=True, slots=True)
class Expiry:
    """The end of one configured certificate."""

    source: str  # the key or file it came from
    name: str  # the subject's common name
    ends_s: float  # Unix time


def expiries(settings: ResolvedSettings) -> Iterator[Expiry]:
    """Those of every certificate that this process shows to others."""
    pairs: list[CertificatePair] = list(settings.certificates)
    if settings.metrics is not None and settings.metrics.certificate is not None:
        pairs.append(settings.metrics.certificate)
    if settings.grpc_client_certificate is not None:
        pairs.append(settings.grpc_client_certificate)
    for pair in {pair.source: pair for pair in pairs}.values():
        leaf = x509.load_pem_x509_certificates(pair.certificate_pem)[0]
        names = leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        name = str(names[0].value) if names else ""
        yield Expiry(pair.source, name, leaf.not_valid_after_utc.timestamp())


def ending(found: Iterable[Expiry], now_s: float) -> tuple[Expiry, ...]:
    """Those that have ended or will within two weeks."""
    return tuple(one for one in found if one.ends_s - now_s < WARN_BEFORE_S)


async def warn_of_ends(config: ConfigHub, clock: Clock, stop: asyncio.Event) -> None:
    """Look at the certificates in force until `stop`; warn at once, then daily."""
    told: dict[Expiry, float] = {}
    seen: ResolvedSettings | None = None
    known: tuple[Expiry, ...] = ()
    while True:
        settings = config.current
        if settings is not seen:
            seen, known = settings, tuple(expiries(settings))
            told = {one: at_s for one, at_s in told.items() if one in known}
        now_s = clock.now_s()
        for one in ending(known, now_s):
            if now_s - told.get(one, -REPEAT_S) >= REPEAT_S:
                told[one] = now_s
                _log.warning(
                    "certificate has ended" if one.ends_s <= now_s else "certificate ends soon",
                    certificate=one.source,
                    name=one.name,
                    days_left=int((one.ends_s - now_s) // 86_400),
                )
        if await wait_or_stop(stop, _LOOK_S):
            return
