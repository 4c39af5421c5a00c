"""What each criterion of the policy language tests, and which facts it reads to do so.

`compile_criterion` turns a checked criterion into a closure. The closure may read the facts that it
declares and nothing else: remembering a decision rests on that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from gatehouse.authorize.core.criteria import (
    certificate,
    device,
    identity,
    mcp,
    record,
    request,
    schedule,
    ssh,
)
from gatehouse.authorize.core.criteria.facts import Compiled
from gatehouse.common.policy.ast import Criterion
from gatehouse.common.policy.criteria import check_criterion
from gatehouse.common.policy.facts import criterion_reads

__all__ = ["COMPILERS", "Compiled", "compile_criterion"]

COMPILERS: Final[Mapping[str, Callable[[Criterion], Compiled]]] = {
    "accept": request.accept,
    "reject": request.reject,
    "http_method": request.http_method,
    "http_path": request.http_path,
    "cors_preflight": request.cors_preflight,
    "source_ip": request.source_ip,
    "authenticated_user": identity.authenticated_user,
    "user": identity.user,
    "email": identity.email,
    "domain": identity.domain,
    "groups": identity.groups,
    "claim": identity.claim,
    "client_certificate": certificate.client_certificate,
    "invalid_client_certificate": certificate.invalid_client_certificate,
    "device": device.device,
    "record": record.record,
    "date": schedule.date,
    "day_of_week": schedule.day_of_week,
    "time_of_day": schedule.time_of_day,
    "mcp_tool": mcp.mcp_tool,
    "ssh_username": ssh.ssh_username,
    "ssh_username_matches_email": ssh.ssh_username_matches_email,
    "ssh_username_matches_claim": ssh.ssh_username_matches_claim,
    "ssh_publickey": ssh.ssh_publickey,
    "ssh_ca": ssh.ssh_ca,
}


def compile_criterion(criterion: Criterion) -> Compiled:
    """The closure of a criterion. PolicyError when the criterion cannot be used."""
    check_criterion(criterion)
    compiled = COMPILERS[criterion.name](criterion)
    return replace(compiled, reads=criterion_reads(criterion))
