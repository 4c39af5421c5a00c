"""The table that remembering rests on names every criterion there is."""

from __future__ import annotations

from gatehouse.authorize.core.criteria import COMPILERS, compile_criterion
from gatehouse.common.policy.ast import Criterion, freeze
from gatehouse.common.policy.criteria import CRITERIA
from gatehouse.common.policy.facts import NOTHING, READS, Fact, criterion_reads


def test_every_criterion_is_in_the_table() -> None:
    assert READS.keys() == COMPILERS.keys() == CRITERIA


def test_only_constants_read_nothing() -> None:
    assert {name for name, reads in READS.items() if reads == NOTHING} == {"accept", "reject"}


def test_authorize_compiles_by_the_table() -> None:
    assert compile_criterion(Criterion("http_path", "", "/a")).reads == Fact.PATH


def test_a_record_by_email_reads_what_makes_the_email() -> None:
    data = {"type": "t", "field": "f", "is": 1}
    by_id = criterion_reads(Criterion("record", "", freeze(data)))
    by_email = criterion_reads(
        Criterion("record", "", freeze({**data, "foreign_key": "user.email"}))
    )
    assert by_email == by_id | Fact.USER | Fact.DIRECTORY
