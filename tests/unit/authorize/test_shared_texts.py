"""What many sessions have in common is kept once, and what each has alone costs nothing more."""

from __future__ import annotations

from gatehouse.authorize.core.claims import ClaimsReader, SharedTexts
from gatehouse.pb.session_pb2 import Session


def a_copy(text: str) -> str:
    return bytes(text, "utf-8").decode()


def test_equal_texts_become_one() -> None:
    share = SharedTexts()
    first, second = a_copy("engineering"), a_copy("engineering")
    assert first is not second
    assert share(first) is share(second)


def test_it_holds_no_more_than_its_places() -> None:
    share = SharedTexts(places=4)
    texts = [f"text {number}" for number in range(100)]
    assert [share(text) for text in texts] == texts
    again = [share(a_copy(text)) for text in texts]
    assert again == texts
    assert sum(one is other for one, other in zip(again, texts, strict=True)) <= 4


def test_groups_of_two_sessions_are_the_same_objects() -> None:
    reader = ClaimsReader()
    session = Session()
    session.claims["groups"].values.add().string_value = "engineering"
    session.claims["groups"].values.add().string_value = "on-call"
    data = session.SerializeToString()
    one, other = (reader.read(Session.FromString(data).claims) for _ in range(2))
    pairs = zip(one.get("groups"), other.get("groups"), strict=True)
    assert one.get("groups") == ("engineering", "on-call")
    assert all(left is right for left, right in pairs)
