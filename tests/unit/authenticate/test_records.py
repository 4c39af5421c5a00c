from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict

from gatehouse.authenticate.core.records import session_record, user_record
from gatehouse.common.identity.tokens import Identity, IdToken, OAuthTokens
from gatehouse.pb.user_pb2 import User

NOW = 1_800_000_000.0


def identity(**changes):
    values: dict[str, Any] = {
        "user_id": "user-1",
        "subject": "sub-1",
        "name": "Ada",
        "email": "ada@example.com",
        "claims": {"jti": ["theirs"], "idp_id": ["theirs"], "groups": ["a", "b"], "n": [1]},
        "user_claims": {"groups": ["a", "b"]},
        "id_token": IdToken("raw", "https://idp", "sub-1", NOW + 300, NOW),
        "tokens": OAuthTokens("access", "Bearer", "refresh", NOW + 600),
    }
    return Identity(**(values | changes))


def stored(**changes):
    return session_record(
        identity(**changes),
        session_id="ours",
        idp_id="idp",
        audience=("a", "b"),
        expire_s=3600.0,
        now_s=NOW,
    )


def test_a_session_holds_what_the_specification_lists():
    assert MessageToDict(stored()) == {
        "id": "ours",
        "userId": "user-1",
        "idpId": "idp",
        "issuedAt": "2027-01-15T08:00:00Z",
        "accessedAt": "2027-01-15T08:00:00Z",
        "expiresAt": "2027-01-15T09:00:00Z",
        "audience": ["a", "b"],
        "idToken": {
            "raw": "raw",
            "issuer": "https://idp",
            "subject": "sub-1",
            "expiresAt": "2027-01-15T08:05:00Z",
            "issuedAt": "2027-01-15T08:00:00Z",
        },
        "oauthToken": {
            "accessToken": "access",
            "tokenType": "Bearer",
            "refreshToken": "refresh",
            "expiresAt": "2027-01-15T08:10:00Z",
        },
        "claims": {
            "jti": ["theirs"],
            "idp_id": ["theirs"],
            "groups": ["a", "b"],
            "n": [1.0],
        },
    }


def test_a_provider_that_names_no_expiry_leaves_it_unset():
    session = stored(tokens=OAuthTokens("access", "Bearer", "", None))
    assert not session.oauth_token.HasField("expires_at")


def test_what_the_provider_says_no_more_is_forgotten_and_devices_stay():
    known = User(id="user-1", name="Old", email="old@example.com", device_credential_ids=["d1"])
    known.claims["groups"].extend(["admins"])
    known.claims["department"].extend(["x"])
    user = user_record(known, identity(user_claims={"locale": ["en"]}))
    assert MessageToDict(user) == {
        "id": "user-1",
        "name": "Ada",
        "email": "ada@example.com",
        "claims": {"locale": ["en"]},
        "deviceCredentialIds": ["d1"],
    }
    assert list(user_record(None, identity()).claims) == ["groups"]
