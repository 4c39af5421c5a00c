"""Credentials that are ours and not for applications: none reaches an upstream."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.open_routes import arrived, pomerium_headers, serving, values
from tests.support.raw_http import guarded_upstream, http1, http2, request_headers
from tests.support.upstream import EchoUpstream

pytestmark = pytest.mark.e2e


@pytest.fixture
def upstream() -> Iterator[EchoUpstream]:
    with guarded_upstream() as running:
        yield running


COOKIES = [
    (["Cookie: _pomerium=s"], []),
    (["Cookie: a=1; _pomerium=s; b=2"], ["a=1; b=2"]),
    (["Cookie: a=1", "Cookie: _pomerium=s"], ["a=1"]),
    (["Cookie: _pomerium=s", "Cookie: b=2"], ["b=2"]),
    (["Cookie: _pomerium=s;_pomerium=t;c=3"], ["c=3"]),
    (["Cookie:   _pomerium = s ; d=4"], ["d=4"]),
    (["Cookie: _pomerium_authenticate=s; e=5"], ["e=5"]),
    (["Cookie: _pomerium_csrf=s; _pomerium_login_0123456789abcdef=t; f=6"], ["f=6"]),
    (["Cookie: _pomerium_pkce_xyz=s; g=7"], ["g=7"]),
    (["Cookie: _pomerium; h=8"], ["h=8"]),
    (
        ["Cookie: _pomeriumx=1; x_pomerium=2; _pomerium_other=3"],
        ["_pomeriumx=1; x_pomerium=2; _pomerium_other=3"],
    ),
    (['Cookie: i="a, b"; j=x=y=z'], ['i="a, b"; j=x=y=z']),
]


@pytest.mark.parametrize("cookie_name", ["_pomerium", "a.b*%1"])
async def test_r18_no_cookie_of_ours_reaches_an_upstream(upstream: EchoUpstream, cookie_name: str):
    async with serving(upstream, cookie_name=cookie_name) as running:
        for sent, kept in COOKIES:
            lines = [line.replace("_pomerium", cookie_name) for line in sent]
            wanted = [line.replace("_pomerium", cookie_name) for line in kept]
            assert values(arrived(await http1(running.port, lines=lines)), "cookie") == wanted, sent
        crumbs = [("cookie", "a=1"), ("cookie", f"{cookie_name}=s"), ("cookie", "b=2")]
        seen = arrived(await http2(running.port, [*request_headers(), *crumbs]))
        assert values(seen, "cookie") == ["a=1; b=2"]


AUTHORIZATIONS = [
    (["Authorization: Pomerium x.y.z"], []),
    (["Authorization: pomerium x.y.z"], []),
    (["Authorization: Bearer Pomerium-x.y.z"], []),
    (["Authorization: bearer  pomerium-x.y.z"], []),
    (["X-Pomerium-Authorization: x.y.z"], []),
    (["Authorization: Bearer foreign"], ["Bearer foreign"]),
    (["Authorization: Basic dTpw", "Authorization: Pomerium x.y.z"], ["Basic dTpw"]),
    (["Authorization: Pomerium x.y.z", "Authorization: Basic dTpw"], ["Basic dTpw"]),
    (['Authorization: Digest username="u", realm="r"'], ['Digest username="u", realm="r"']),
    (["Authorization: Pomerium-ish x"], ["Pomerium-ish x"]),
]


async def test_r18_no_authorization_of_ours_reaches_an_upstream(upstream: EchoUpstream):
    async with serving(upstream) as running:
        for lines, kept in AUTHORIZATIONS:
            seen = arrived(await http1(running.port, lines=lines))
            assert values(seen, "authorization") == kept, lines
            assert pomerium_headers(seen) == []
            headers = running.authorize.requests[-1].attributes.request.http.headers
            name = lines[0].partition(":")[0].lower()
            assert headers[name] != "", "authorize must still see the credential"


QUERIES = [
    ("/a?pomerium_session=x", "/a"),
    ("/a?pomerium_session=x&b=1", "/a?b=1"),
    ("/a?b=1&pomerium_session=x", "/a?b=1"),
    ("/a?b=1&pomerium_session=x&pomerium_session=y&c=2", "/a?b=1&c=2"),
    ("/a?pomerium%5Fsession=x&b=1", "/a?b=1"),
    ("/a?%70omerium_session=x", "/a"),
    ("/a?pomerium_session", "/a"),
    ("/a?b=pomerium_session=x", "/a?b=pomerium_session=x"),
    ("/a?pomerium_sessions=x&&c", "/a?pomerium_sessions=x&&c"),
    ("/a?", "/a?"),
    ("/a?b=1?pomerium_session=x", "/a?b=1?pomerium_session=x"),
    ("/a?b=%zz&pomerium_session=x", "/a?b=%zz"),
]


async def test_r18_no_query_credential_of_ours_reaches_an_upstream(upstream: EchoUpstream):
    async with serving(upstream) as running:
        for sent, kept in QUERIES:
            assert arrived(await http1(running.port, sent))["path"] == kept, sent
            assert running.authorize.requests[-1].attributes.request.http.path == sent
