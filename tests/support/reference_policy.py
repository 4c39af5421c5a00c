"""A second evaluator for tests: slow, plain, read off the specification and sharing no code.

It takes the policy as decoded text, not as a tree, and facts as a dictionary.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from typing import Any
from zoneinfo import ZoneInfo

WEEK = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def same(left: Any, right: Any) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return isinstance(left, bool) and isinstance(right, bool) and left == right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def string_matches(data: Any, subject: str) -> bool:
    operators = data if isinstance(data, dict) else {"is": data}
    for name, operand in operators.items():
        if name == "is":
            good = same(subject, operand)
        elif name == "not":
            good = not same(subject, operand)
        elif name == "starts_with":
            good = subject[: len(operand)] == operand
        elif name == "ends_with":
            good = operand == "" or subject[-len(operand) :] == operand
        elif name == "contains":
            good = any(
                subject[start : start + len(operand)] == operand
                for start in range(len(subject) + 1)
            )
        elif name == "in":
            good = any(same(subject, item) for item in operand)
        elif name == "not_in":
            good = not any(same(subject, item) for item in operand)
        else:
            raise AssertionError(name)
        if not good:
            return False
    return True


def list_matches(data: Any, values: list[Any]) -> bool:
    operators = data if isinstance(data, dict) else {"has": data}
    for name, operand in operators.items():
        hits = [value for value in values if same(value, operand)]
        if name == "has" and not hits:
            return False
        if name == "is" and not (len(values) == 1 and hits):
            return False
        if name == "exclude" and hits:
            return False
    return True


def in_networks(data: Any, text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 6 and address.ipv4_mapped:
        address = address.ipv4_mapped
    for text_of_entry in data if isinstance(data, list) else [data]:
        entry = text_of_entry
        if entry.startswith("::ffff:"):
            mapped, _, bits = entry.removeprefix("::ffff:").partition("/")
            entry = f"{mapped}/{int(bits or 128) - 96}"
        network = ipaddress.ip_network(entry, strict=False)
        if address.version == network.version and address in network:
            return True
    return False


def criterion(key: str, data: Any, facts: dict[str, Any]) -> tuple[bool, str]:
    name, _, path = key.partition("/")
    signed_in = facts["session"]

    def plain(value: bool, stem: str) -> tuple[bool, str]:
        return value, f"{stem}-ok" if value else f"{stem}-unauthorized"

    def session(value: bool, stem: str) -> tuple[bool, str]:
        if not value and not signed_in:
            return False, "user-unauthenticated"
        return plain(value, stem)

    local = dt.datetime.fromtimestamp(facts["time"], dt.UTC)
    if name == "accept":
        return True, "accept"
    if name == "reject":
        return False, "reject"
    if name == "authenticated_user":
        return session(facts["user"] != "", "user")
    if name == "user":
        return session(facts["user"] != "" and string_matches(data, facts["user"]), "user")
    if name == "email":
        return session(string_matches(data, facts["email"]), "email")
    if name == "domain":
        parts = facts["email"].split("@")
        good = len(parts) == 2 and all(parts) and string_matches(data, parts[1])
        return session(good, "domain")
    if name == "groups":
        known = facts["groups"] is not None
        return session(known and list_matches(data, facts["groups"]), "groups")
    if name == "claim":
        return session(list_matches(data, facts["claims"].get(path, [])), "claim")
    if name == "http_method":
        return plain(string_matches(data, facts["method"]), "http-method")
    if name == "http_path":
        return plain(string_matches(data, facts["path"]), "http-path")
    if name == "source_ip":
        return plain(in_networks(data, facts["ip"]), "source-ip")
    if name == "cors_preflight":
        headers = facts["headers"]
        good = (
            facts["method"] == "OPTIONS"
            and headers.get("origin", "") != ""
            and headers.get("access-control-request-method", "") != ""
        )
        return good, "cors-request" if good else "non-cors-request"
    if name == "invalid_client_certificate":
        if facts["certificate"] in {"none", "valid"}:
            return False, "valid-client-certificate"
        if facts["certificate"] == "missing":
            return True, "client-certificate-required"
        return True, "invalid-client-certificate"
    if name == "device":
        return device(data, facts)
    if name == "date":
        good = ("after" not in data or local >= utc(data["after"])) and (
            "before" not in data or local < utc(data["before"])
        )
        return plain(good, "date")
    if name == "day_of_week":
        return plain(WEEK[local.weekday()] in data.split(","), "day-of-week")
    if name == "time_of_day":
        reading = local.astimezone(ZoneInfo(data["timezone"])).strftime("%H:%M")
        after, before = data["after"], data["before"]
        over_midnight = after > before
        late_or_early = reading >= after or reading < before
        return plain(late_or_early if over_midnight else after <= reading < before, "time-of-day")
    if name == "record":
        fields = facts["records"].get(data["type"])
        value = None if fields is None else fields.get(data["field"])
        good = facts["user"] != "" and signed_in and value is not None and value >= data[">="]
        return session(good, "record")
    raise AssertionError(name)


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def device(data: dict[str, Any], facts: dict[str, Any]) -> tuple[bool, str]:
    found = facts["devices"].get(data.get("type", "any"))
    good = True
    if "approved" in data:
        good = good and bool(data["approved"]) is (found is not None and found["approved_by"] != "")
    if "is" in data:
        good = good and found is not None and found["id"] == data["is"]
    if "type" in data:
        good = good and found is not None
    if good:
        return True, "device-ok"
    if not facts["session"]:
        return False, "user-unauthenticated"
    return False, "device-unauthorized" if found else "device-unauthenticated"


def either(results: list[tuple[bool, set[str]]]) -> tuple[bool, set[str]]:
    for wanted in (True, False):
        chosen = [reasons for value, reasons in results if value is wanted]
        if chosen:
            return wanted, set().union(*chosen)
    return False, set()


def operator(name: str, results: list[tuple[bool, str]]) -> tuple[bool, set[str]]:
    if name in {"not", "nor"}:
        results = [(not value, reason) for value, reason in results]
    sets = [(value, {reason}) for value, reason in results]
    if name in {"or", "nor"}:
        return either(sets)
    value, reasons = either([(not value, reasons) for value, reasons in sets])
    return not value, reasons


def evaluate(policy: Any, facts: dict[str, Any]) -> dict[str, tuple[bool, set[str]]]:
    """allow and deny, each with its reasons."""
    answers = {}
    for action in ("allow", "deny"):
        groups = []
        for rules in policy if isinstance(policy, list) else [policy]:
            body = rules.get(action, {})
            for name in ("and", "or", "not", "nor"):
                results = [
                    criterion(key, data, facts)
                    for item in body.get(name, [])
                    for key, data in item.items()
                ]
                if results:
                    groups.append(operator(name, results))
        answers[action] = either(groups)
    return answers


def outcome(policy: Any, facts: dict[str, Any]) -> str:
    """In the words of `explain.outcome_name`."""
    answers = evaluate(policy, facts)
    (allow, allow_why), (deny, deny_why) = answers["allow"], answers["deny"]
    if deny_why & {"client-certificate-required", "invalid-client-certificate"}:
        return denied(deny_why)
    if "user-unauthenticated" in allow_why | deny_why:
        return "sign-in"
    if "device-unauthenticated" in allow_why | deny_why:
        return "device"
    if deny:
        return denied(deny_why)
    if allow:
        return "allowed"
    return denied(allow_why)


def denied(reasons: set[str]) -> str:
    if "device-unauthenticated" in reasons:
        return "device"
    if "device-unauthorized" in reasons:
        return "denied 450"
    if reasons & {"client-certificate-required", "invalid-client-certificate"}:
        return "denied 495"
    return "denied 403"
