"""How Envoy presents itself to browsers, and what it asks of their certificates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2

from gatehouse.common.config.model import CodecType, MTLSEnforcement
from gatehouse.common.config.resolved import (
    CertificatePair,
    MetricsListener,
    ResolvedSettings,
)
from gatehouse.proxy.core.xds.resources.environment import SnapshotFiles
from gatehouse.proxy.core.xds.resources.scalars import boolean, uint32
from gatehouse.proxy.core.xds.resources.trust import certificate
from gatehouse.proxy.errors import SnapshotError

_CIPHERS: Final = (
    *("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
    *("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
    *("ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305"),
)
_ALPN: Final = {
    CodecType.HTTP1: ("http/1.1",),
    CodecType.HTTP2: ("h2",),
    CodecType.AUTO: ("h2", "http/1.1"),
    CodecType.HTTP3: ("h2", "http/1.1"),
}
_SAN_TYPES: Final = {
    "dns": common_pb2.SubjectAltNameMatcher.DNS,
    "email": common_pb2.SubjectAltNameMatcher.EMAIL,
    "ip_address": common_pb2.SubjectAltNameMatcher.IP_ADDRESS,
    "uri": common_pb2.SubjectAltNameMatcher.URI,
}
_UPN: Final = "user_principal_name"
_UPN_OID: Final = "1.3.6.1.4.1.311.20.2.3"


def alpn(codec_type: CodecType) -> tuple[str, ...]:
    """The protocols offered on TCP."""
    return _ALPN[codec_type]


def served_certificates(resolved: ResolvedSettings) -> tuple[CertificatePair, ...]:
    """Every certificate of the public listeners, in order of preference."""
    pairs = resolved.certificates
    if resolved.fallback_certificate is not None:
        pairs = (*pairs, resolved.fallback_certificate)
    if not pairs:
        raise SnapshotError(
            "there is no certificate to serve https with: set certificate_file and "
            "certificate_key_file, or insecure_server behind a balancer that ends TLS"
        )
    return pairs


def downstream_tls(
    resolved: ResolvedSettings,
    files: SnapshotFiles,
    alpn_protocols: tuple[str, ...],
    pairs: Sequence[CertificatePair],
) -> tls_pb2.DownstreamTlsContext:
    """One context with `pairs`; Envoy chooses among them by the name asked for."""
    common = _common(pairs, files, alpn_protocols)
    result = tls_pb2.DownstreamTlsContext(common_tls_context=common)
    authorities = _client_authorities(resolved)
    if authorities:
        # Left unset beside a validation context, Envoy warns of an insecure default.
        rejects = rejects_connections(resolved)
        result.require_client_certificate.CopyFrom(boolean(rejects))
        result.common_tls_context.validation_context.CopyFrom(
            _client_validation(resolved, authorities, files, rejects=rejects)
        )
    return result


def metrics_tls(listener: MetricsListener, files: SnapshotFiles) -> tls_pb2.DownstreamTlsContext:
    """The context of the metrics listener, which has a certificate of its own."""
    assert listener.certificate is not None
    common = _common((listener.certificate,), files, _ALPN[CodecType.AUTO])
    result = tls_pb2.DownstreamTlsContext(common_tls_context=common)
    if listener.client_ca_pem is not None:
        result.require_client_certificate.CopyFrom(boolean(value=True))
        result.common_tls_context.validation_context.trusted_ca.CopyFrom(
            files.add("metrics-client-ca", listener.client_ca_pem)
        )
    return result


def _common(
    pairs: Sequence[CertificatePair], files: SnapshotFiles, alpn_protocols: tuple[str, ...]
) -> tls_pb2.CommonTlsContext:
    return tls_pb2.CommonTlsContext(
        tls_params=common_pb2.TlsParameters(
            tls_minimum_protocol_version=common_pb2.TlsParameters.TLSv1_2,
            tls_maximum_protocol_version=common_pb2.TlsParameters.TLSv1_3,
            cipher_suites=_CIPHERS,
        ),
        tls_certificates=[certificate(pair, files) for pair in pairs],
        alpn_protocols=alpn_protocols,
    )


def rejects_connections(resolved: ResolvedSettings) -> bool:
    """True when a client without a valid certificate does not even get a connection."""
    mtls = resolved.settings.downstream_mtls
    return mtls.enforcement is MTLSEnforcement.REJECT_CONNECTION


def _client_authorities(resolved: ResolvedSettings) -> bytes:
    """The global authorities and those of every route, for the one context of the listener."""
    parts = [resolved.downstream_mtls_ca_pem] if resolved.downstream_mtls_ca_pem else []
    parts += sorted(
        {
            route.tls_downstream_client_ca_pem
            for route in resolved.routes
            if route.tls_downstream_client_ca_pem
        }
    )
    return b"\n".join(parts)


def _client_validation(
    resolved: ResolvedSettings, authorities: bytes, files: SnapshotFiles, *, rejects: bool
) -> common_pb2.CertificateValidationContext:
    mtls = resolved.settings.downstream_mtls
    context = common_pb2.CertificateValidationContext(
        trusted_ca=files.add("client-ca", authorities), only_verify_leaf_cert_crl=True
    )
    if not rejects:
        # Authorize verifies, by route, and answers with a page.
        context.trust_chain_verification = common_pb2.CertificateValidationContext.ACCEPT_UNTRUSTED
        return context
    if resolved.downstream_mtls_crl_pem:
        context.crl.CopyFrom(files.add("client-crl", resolved.downstream_mtls_crl_pem))
    if mtls.max_verify_depth:
        context.max_verify_depth.CopyFrom(uint32(mtls.max_verify_depth))
    for entry in mtls.match_subject_alt_names:
        for kind, expression in entry.items():
            matcher = common_pb2.SubjectAltNameMatcher(
                matcher=string_pb2.StringMatcher(
                    safe_regex=regex_pb2.RegexMatcher(regex=expression)
                )
            )
            if kind == _UPN:
                matcher.san_type = common_pb2.SubjectAltNameMatcher.OTHER_NAME
                matcher.oid = _UPN_OID
            else:
                matcher.san_type = _SAN_TYPES[kind]
            context.match_typed_subject_alt_names.append(matcher)
    return context
