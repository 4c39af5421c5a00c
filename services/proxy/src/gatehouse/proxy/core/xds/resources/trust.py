"""Whom Envoy trusts, and which names it accepts, when it opens a TLS connection."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2

from gatehouse.common.config.resolved import CertificatePair, ResolvedSettings
from gatehouse.proxy.core.xds.resources.environment import SnapshotEnvironment, SnapshotFiles
from gatehouse.proxy.errors import SnapshotError

_CURVES: Final = ("X25519", "P-256", "P-384", "P-521")
_UPSTREAM_CIPHERS: Final = (
    *("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
    *("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
    *("ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305"),
    *("ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA", "AES128-GCM-SHA256", "AES128-SHA"),
    *("ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA", "AES256-GCM-SHA384", "AES256-SHA"),
)


def roots_pem(resolved: ResolvedSettings, environment: SnapshotEnvironment) -> bytes:
    """The machine's roots and those of the settings.

    Raises SnapshotError when there are none: Envoy would then verify nothing at all.
    """
    pem = b"\n".join(part for part in (environment.system_ca_pem, resolved.ca_bundle_pem) if part)
    if not pem.strip():
        raise SnapshotError(
            "this machine has no certificate authorities to verify TLS upstreams with; "
            "install its ca-certificates package or set certificate_authority_file"
        )
    return pem


def upstream_tls(
    *,
    server_name: str,
    trusted_pem: bytes,
    files: SnapshotFiles,
    skip_verify: bool = False,
    client_certificate: CertificatePair | None = None,
    alpn: tuple[str, ...] = (),
    allow_renegotiation: bool = False,
) -> tls_pb2.UpstreamTlsContext:
    """TLS towards a server that must prove to be `server_name` (which may hold a star)."""
    validation = common_pb2.CertificateValidationContext(
        trusted_ca=files.add("trusted-ca", trusted_pem)
    )
    if skip_verify:
        validation.trust_chain_verification = (
            common_pb2.CertificateValidationContext.ACCEPT_UNTRUSTED
        )
    else:
        validation.match_typed_subject_alt_names.append(_name_matcher(server_name))
    common = tls_pb2.CommonTlsContext(
        tls_params=common_pb2.TlsParameters(
            tls_minimum_protocol_version=common_pb2.TlsParameters.TLSv1_2,
            tls_maximum_protocol_version=common_pb2.TlsParameters.TLSv1_3,
            cipher_suites=_UPSTREAM_CIPHERS,
            ecdh_curves=_CURVES,
        ),
        validation_context=validation,
        alpn_protocols=alpn,
    )
    if client_certificate is not None:
        common.tls_certificates.append(certificate(client_certificate, files))
    context = tls_pb2.UpstreamTlsContext(
        common_tls_context=common, allow_renegotiation=allow_renegotiation
    )
    if _ip(server_name) is None:
        # A wildcard cannot be asked for; any name it covers will do.
        context.sni = server_name.replace("*", "example")
    return context


def certificate(pair: CertificatePair, files: SnapshotFiles) -> common_pb2.TlsCertificate:
    """A chain and its key, as files."""
    return common_pb2.TlsCertificate(
        certificate_chain=files.add("certificate", pair.certificate_pem),
        private_key=files.add("key", pair.key_pem),
    )


def _name_matcher(server_name: str) -> common_pb2.SubjectAltNameMatcher:
    if _ip(server_name) is not None:
        return common_pb2.SubjectAltNameMatcher(
            san_type=common_pb2.SubjectAltNameMatcher.IP_ADDRESS,
            matcher=string_pb2.StringMatcher(exact=server_name),
        )
    if "*" not in server_name:
        matcher = string_pb2.StringMatcher(exact=server_name)
    else:
        pattern = ".*".join(re.escape(part) for part in server_name.split("*"))
        matcher = string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=f"^{pattern}$"))
    return common_pb2.SubjectAltNameMatcher(
        san_type=common_pb2.SubjectAltNameMatcher.DNS, matcher=matcher
    )


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
