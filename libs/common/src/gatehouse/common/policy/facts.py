"""Which facts each criterion reads to come to its answer.

Remembering a decision rests on this table: what is not declared here is not part of what a
remembered decision is found by, so a criterion must read nothing else. Authorize compiles by it,
the proxy builds the search key by it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from gatehouse.common.policy.ast import Criterion, Policy
from gatehouse.common.policy.records import parse_record_matcher


class Fact(enum.Flag):
    """Kinds of facts. A criterion's outcome may change only with those it declares."""

    SESSION = enum.auto()  # that there is one, its user id and its claims
    USER = enum.auto()  # the user's email and claims
    DIRECTORY = enum.auto()  # the directory's email and groups
    DEVICE = enum.auto()  # the session's device credentials and their enrolments
    RECORDS = enum.auto()  # the user's records of external data sources
    METHOD = enum.auto()
    PATH = enum.auto()
    CORS_HEADERS = enum.auto()  # Origin and Access-Control-Request-Method
    SOURCE_IP = enum.auto()
    CLIENT_CERTIFICATE = enum.auto()  # presented, and the leaf
    CERTIFICATE_VALIDITY = enum.auto()
    TIME = enum.auto()  # the moment of the request
    MCP = enum.auto()  # method and tool of an MCP request
    SSH = enum.auto()  # user name and key of an SSH login


NOTHING: Final = Fact(0)

READS: Final[Mapping[str, Fact]] = {
    "accept": NOTHING,
    "reject": NOTHING,
    "http_method": Fact.METHOD,
    "http_path": Fact.PATH,
    "cors_preflight": Fact.METHOD | Fact.CORS_HEADERS,
    "source_ip": Fact.SOURCE_IP,
    "authenticated_user": Fact.SESSION,
    "user": Fact.SESSION,
    "email": Fact.SESSION | Fact.USER | Fact.DIRECTORY,
    "domain": Fact.SESSION | Fact.USER | Fact.DIRECTORY,
    "groups": Fact.SESSION | Fact.DIRECTORY,
    "claim": Fact.SESSION | Fact.USER,
    "client_certificate": Fact.CLIENT_CERTIFICATE,
    "invalid_client_certificate": Fact.CLIENT_CERTIFICATE | Fact.CERTIFICATE_VALIDITY,
    "device": Fact.SESSION | Fact.DEVICE,
    "record": Fact.SESSION | Fact.RECORDS,  # and more where its key is the email
    "date": Fact.TIME,
    "day_of_week": Fact.TIME,
    "time_of_day": Fact.TIME,
    "mcp_tool": Fact.MCP,
    "ssh_username": Fact.SSH,
    "ssh_username_matches_email": Fact.SESSION | Fact.SSH | Fact.USER | Fact.DIRECTORY,
    "ssh_username_matches_claim": Fact.SESSION | Fact.SSH | Fact.USER,
    "ssh_publickey": Fact.SSH,
    "ssh_ca": Fact.SSH | Fact.TIME,
}


def criterion_reads(criterion: Criterion) -> Fact:
    """What one checked criterion reads. KeyError for a name that is not in the table."""
    reads = READS[criterion.name]
    if criterion.name == "record" and (
        parse_record_matcher(criterion.data).foreign_key == "user.email"
    ):
        reads |= Fact.USER | Fact.DIRECTORY
    return reads


def policy_reads(policy: Policy) -> Fact:
    """What any criterion of a policy reads."""
    reads = NOTHING
    for criterion in policy.criteria():
        reads |= criterion_reads(criterion)
    return reads
