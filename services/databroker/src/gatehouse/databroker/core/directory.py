"""From a document to the directory: who is there, and in which groups.

JSON: `{"groups": [{"id", "name"?}], "users": [{"id", "email"?, "name"?, "groups": [id, ...]}]}`.
CSV, with a header line: `id,groups` and perhaps `email,name`; groups are separated by `;`.
A document with a mistake is refused as a whole: what it says of the others may be wrong as well.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gatehouse.common.errors import InvalidArgumentError

MAX_DOCUMENT_BYTES: Final = 32 << 20
MAX_ENTRIES: Final = 200_000  # users, and groups
MAX_GROUPS_OF_ONE: Final = 1_000
MAX_ID_BYTES: Final = 512
MAX_TEXT: Final = 1_000
_MISTAKES_SHOWN: Final = 10

_USER_KEYS: Final = frozenset({"id", "email", "name", "groups"})
_GROUP_KEYS: Final = frozenset({"id", "name"})


@dataclass(frozen=True, slots=True)
class DirectoryUser:
    """A person. `email` None: the directory does not say."""

    id: str
    email: str | None
    name: str
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DirectoryGroup:
    """A group."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Directory:
    """All of a document, by id."""

    users: Mapping[str, DirectoryUser]
    groups: Mapping[str, DirectoryGroup]


class DirectoryError(InvalidArgumentError):
    """The document is no directory; the message says where and why, without whole lines of it."""

    default_reason = "directory-document"


def parse_directory(data: bytes) -> Directory:
    """Read a document: JSON when it begins with a brace, else CSV. Raises DirectoryError."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DirectoryError(f"the document has more than {MAX_DOCUMENT_BYTES >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DirectoryError(f"line {line}: not UTF-8") from None
    reader = _Reader()
    if text.lstrip()[:1] == "{":
        reader.read_json(text)
    else:
        reader.read_csv(text)
    return reader.result()


class _Reader:
    """Collects entries and every mistake."""

    def __init__(self) -> None:
        self._users: dict[str, tuple[DirectoryUser, str]] = {}
        self._groups: dict[str, tuple[DirectoryGroup, str]] = {}
        self._mistakes: list[str] = []
        self._count = 0

    def result(self) -> Directory:
        if self._count:
            more = self._count - len(self._mistakes)
            text = "; ".join(self._mistakes)
            raise DirectoryError(f"{text}{f'; and {more} more mistakes' if more else ''}")
        return Directory(
            {id_: user for id_, (user, _) in self._users.items()},
            {id_: group for id_, (group, _) in self._groups.items()},
        )

    def _mistake(self, where: str, what: str) -> None:
        self._count += 1
        if len(self._mistakes) < _MISTAKES_SHOWN:
            self._mistakes.append(f"{where}: {what}")

    # JSON

    def read_json(self, text: str) -> None:
        try:
            document = json.loads(text, object_pairs_hook=_unique)
        except json.JSONDecodeError as error:
            raise DirectoryError(f"line {error.lineno}: not JSON: {error.msg}") from None
        except (ValueError, RecursionError) as error:
            raise DirectoryError(f"not JSON that can be read: {error}") from None
        unknown = sorted(document.keys() - {"users", "groups"})
        if unknown:
            self._mistake("document", f"unknown key {unknown[0][:100]!r}; expected users, groups")
        if "users" not in document:
            self._mistake("document", "users is missing: a list, perhaps empty")
        for key, read, keys in (
            ("groups", self._json_group, _GROUP_KEYS),
            ("users", self._json_user, _USER_KEYS),
        ):
            entries = document.get(key, [])
            if not isinstance(entries, list):
                self._mistake(key, "is no list")
                continue
            if len(entries) > MAX_ENTRIES:
                raise DirectoryError(f"{key}: more than {MAX_ENTRIES}")
            for number, entry in enumerate(entries):
                where = f"{key}[{number}]"
                if not isinstance(entry, dict):
                    self._mistake(where, "is no object")
                elif odd := sorted(entry.keys() - keys):
                    expected = ", ".join(sorted(keys))
                    self._mistake(where, f"unknown key {odd[0][:100]!r}; expected {expected}")
                else:
                    read(where, entry)

    def _json_group(self, where: str, entry: Mapping[str, Any]) -> None:
        name = entry.get("name", "")
        if self._is_text(where, "name", name):
            self._add_group(where, entry.get("id"), name)

    def _json_user(self, where: str, entry: Mapping[str, Any]) -> None:
        email, name, groups = entry.get("email"), entry.get("name", ""), entry.get("groups")
        if groups is None:
            # Missing could mean "none" or "not told": the first would take rights away.
            self._mistake(where, "groups is missing: a list of group ids, perhaps empty")
            return
        if not isinstance(groups, list):
            self._mistake(where, "groups is no list of group ids")
            return
        if (email is None or self._is_text(where, "email", email)) and self._is_text(
            where, "name", name
        ):
            self._add_user(where, entry.get("id"), email, name, groups)

    # CSV

    def read_csv(self, text: str) -> None:
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            header = [cell.strip().lower() for cell in next(lines, [])]
            missing = {"id", "groups"} - set(header)
            odd = [name for name in header if name not in _USER_KEYS]
            if missing or odd or len(set(header)) != len(header):
                raise DirectoryError(
                    "line 1: the header must name id and groups, and may name email and name, "
                    "each once"
                )
            for cells in lines:
                where = f"line {lines.line_num}"
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    self._mistake(where, f"{len(cells)} fields, the header has {len(header)}")
                    continue
                self._csv_user(where, dict(zip(header, cells, strict=True)))
        except csv.Error as error:
            raise DirectoryError(f"line {lines.line_num}: not CSV: {error}") from None

    def _csv_user(self, where: str, cells: Mapping[str, str]) -> None:
        groups = [part.strip() for part in cells["groups"].split(";") if part.strip()]
        email, name = cells.get("email", "").strip(), cells.get("name", "").strip()
        if self._is_text(where, "email", email) and self._is_text(where, "name", name):
            self._add_user(where, cells["id"].strip(), email or None, name, groups)
        for group in groups:
            # Named by those who are in it, and only by them: said many times, it is one group.
            if group not in self._groups and _id_problem(group) is None:
                self._groups[group] = (DirectoryGroup(group, group), where)

    # Both

    def _is_text(self, where: str, key: str, value: object) -> bool:
        if isinstance(value, str) and len(value) <= MAX_TEXT and (not value or value.isprintable()):
            return True
        self._mistake(where, f"{key} is no line of text of at most {MAX_TEXT} characters")
        return False

    def _add_group(self, where: str, group_id: object, name: str) -> None:
        if problem := _id_problem(group_id):
            self._mistake(where, f"id {problem}")
            return
        assert isinstance(group_id, str)
        if group_id in self._groups:
            self._mistake(where, f"group {group_id!r} is there twice: {self._groups[group_id][1]}")
            return
        self._groups[group_id] = (DirectoryGroup(group_id, name or group_id), where)

    def _add_user(
        self, where: str, user_id: object, email: str | None, name: str, groups: list[Any]
    ) -> None:
        if problem := _id_problem(user_id):
            self._mistake(where, f"id {problem}")
            return
        assert isinstance(user_id, str)
        if user_id in self._users:
            self._mistake(where, f"user {user_id!r} is there twice: {self._users[user_id][1]}")
            return
        if len(self._users) >= MAX_ENTRIES:
            raise DirectoryError(f"{where}: more than {MAX_ENTRIES} users")
        if len(groups) > MAX_GROUPS_OF_ONE:
            self._mistake(where, f"in more than {MAX_GROUPS_OF_ONE} groups")
            return
        for group in groups:
            if problem := _id_problem(group):
                self._mistake(where, f"a group id {problem}")
                return
        user = DirectoryUser(user_id, email, name, tuple(dict.fromkeys(groups)))
        self._users[user_id] = (user, where)


def _id_problem(value: object) -> str | None:
    if not isinstance(value, str) or not value:
        return "is missing or no text"
    if len(value.encode("utf-8", "replace")) > MAX_ID_BYTES:
        return f"is longer than {MAX_ID_BYTES} bytes"
    if not value.isprintable() or value != value.strip():
        return "holds blanks at its ends or characters that cannot be seen"
    return None


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:100]!r} is there twice in one object")
        found[key] = value
    return found


def entries(directory: Directory) -> Iterator[DirectoryUser | DirectoryGroup]:
    """Groups first: who is told of a user's groups may want their names."""
    yield from directory.groups.values()
    yield from directory.users.values()
