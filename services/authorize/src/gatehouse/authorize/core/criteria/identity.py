"""Criteria about who is asking."""

from __future__ import annotations

import functools

from gatehouse.authorize.core.criteria.facts import Compiled, about_session
from gatehouse.authorize.core.identity import Identity
from gatehouse.common.policy.ast import Criterion
from gatehouse.common.policy.matchers import parse_list_matcher, parse_string_matcher
from gatehouse.common.policy.matching import list_predicate, string_predicate


def authenticated_user(criterion: Criterion) -> Compiled:
    """Any session that has a user."""
    del criterion
    return about_session("user", lambda identity: bool(identity.user_id))


def user(criterion: Criterion) -> Compiled:
    """The user id. Without one nothing matches, `not_in` included."""
    matches = string_predicate(parse_string_matcher(criterion.data))
    return about_session(
        "user", lambda identity: bool(identity.user_id) and matches(identity.user_id)
    )


def email(criterion: Criterion) -> Compiled:
    """The email: the directory's, else the user's, else "" (also for anonymous requests)."""
    matches = string_predicate(parse_string_matcher(criterion.data))
    return about_session("email", lambda identity: matches(identity.email))


def domain(criterion: Criterion) -> Compiled:
    """The part of the email after its only `@`. Without one nothing matches (security R41)."""
    matches = string_predicate(parse_string_matcher(criterion.data, strings_only=True))

    def condition(identity: Identity) -> bool:
        found = email_domain(identity.email)
        return found is not None and matches(found)

    return about_session("domain", condition)


def groups(criterion: Criterion) -> Compiled:
    """The directory's group ids. A user it does not know matches nothing, `exclude` included."""
    matches = list_predicate(parse_list_matcher(criterion.data))

    def condition(identity: Identity) -> bool:
        return identity.group_ids is not None and matches(identity.group_ids)

    return about_session("groups", condition)


def claim(criterion: Criterion) -> Compiled:
    """The values of one claim, by its flattened name; a missing claim is an empty list."""
    matches = list_predicate(parse_list_matcher(criterion.data))
    name = criterion.sub_path
    return about_session("claim", lambda identity: matches(identity.claims.get(name, ())))


@functools.lru_cache(maxsize=4096)
def email_domain(address: str) -> str | None:
    """The domain of an address with exactly one `@` and nothing invisible in it, else None."""
    local, at, found = address.partition("@")
    if not at or not local or not found or "@" in found:
        return None
    if any(character.isspace() or not character.isprintable() for character in address):
        return None
    return found
