from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from gatehouse.common.errors import InvalidArgumentError
from gatehouse.common.pages import (
    Branding,
    ClaimRow,
    ErrorPage,
    GroupRow,
    Link,
    UserInfoPage,
    envoy_error_template,
    error_document,
    link_to,
    render_continue,
    render_error,
    render_portal,
    render_sign_out_confirm,
    render_signed_out,
    render_user_info,
    safe_request_id,
    security_headers,
    status_text,
)
from gatehouse.common.pages.routes_portal import PortalCard, PortalPage

ATTACK = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{7*7}}"
BRANDED = Branding(
    primary_color="#fc0",
    secondary_color="#001122",
    darkmode_primary_color="#ABCDEF",
    logo_url="https://cdn.example.com/logo.svg",
    favicon_url="data:image/png;base64,AAAA",
    error_message_first_paragraph="Call 555 & ask for <Bob>.",
)


def found(pattern, text):
    match = re.search(pattern, text, re.DOTALL)
    assert match is not None
    return match.group(1)


class Elements(HTMLParser):
    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags[-1:] and self.tags[-1][0] != "style":
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def every_page(text="plain", branding=BRANDED):
    yield render_error(
        ErrorPage(403, text, text, text, (text,), (Link(text, "/.pomerium/"),)), branding
    )
    yield render_user_info(
        UserInfoPage(
            signed_in=True,
            name=text,
            email=text,
            user_id=text,
            session_id=text,
            issued_at=text,
            expires_at=text,
            is_impersonated=True,
            groups=(GroupRow(text, text), GroupRow("g", text)),
            more_groups=3,
            claims=(ClaimRow(text, (text, text)),),
            sign_out=Link(text, "/out"),
            sign_out_everywhere=Link(text, "/all"),
            applications=Link(text, "/apps"),
            host=text,
        ),
        branding,
    )
    yield render_user_info(
        UserInfoPage(signed_in=False, sign_in=Link(text, "/"), host=text), branding
    )
    yield render_sign_out_confirm(Link(text, "/out"), Link(text, "/"), branding)
    yield render_signed_out(Link(text, "/"), branding)
    yield render_continue(Link(text, "https://app.example.com/?a=1&b=%22'x"), branding)
    yield envoy_error_template(branding)


@pytest.mark.parametrize("document", tuple(every_page()))
def test_pages_are_whole_accessible_documents(document):
    elements = Elements(document)
    assert document.startswith("<!DOCTYPE html>")
    assert elements.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in elements.all(
        "meta"
    )
    assert len(elements.all("h1")) == 1
    assert len(elements.all("main")) == 1
    assert len(elements.all("title")) == 1
    assert all("alt" in image for image in elements.all("img"))
    assert "prefers-color-scheme:dark" in document.replace(" ", "")
    assert ":focus-visible" in document


@pytest.mark.parametrize("document", tuple(every_page(branding=Branding())))
def test_pages_load_nothing_and_run_nothing(document):
    elements = Elements(document)
    for tag in ("script", "form", "iframe", "object", "embed", "base"):
        assert elements.all(tag) == []
    for _tag, attributes in elements.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert not (attributes.get("src") or "").startswith(("http", "//"))
    assert all((link["href"] or "").startswith("data:") for link in elements.all("link"))
    assert "url(" not in document
    assert "@import" not in document


def portal(text="plain", *, cards=2, page=2, pages=3, branding=BRANDED):
    card = PortalCard(
        name=text,
        address=text,
        description=text,
        logo_url="https://cdn.example.com/a.svg",
        href="https://app.example.com/",
        connect_command=text,
        needs_device=True,
    )
    plain = PortalCard(name=text, address=text)
    found = PortalPage((card, plain)[:cards], text, cards, page, pages, is_cut=True)
    return render_portal(found, branding, script="/.pomerium/index.js?v=1")


def test_the_portal_is_a_whole_accessible_document_with_one_script_file():
    document = portal()
    elements = Elements(document)
    assert [len(elements.all(tag)) for tag in ("h1", "main", "title", "form")] == [1, 1, 1, 1]
    assert elements.all("script") == [{"src": "/.pomerium/index.js?v=1", "defer": None}]
    (form,) = elements.all("form")
    assert (form["role"], form["method"]) == ("search", "get")
    labelled = {label["for"] for label in elements.all("label")}
    assert {field["id"] for field in elements.all("input")} == labelled
    assert all(nav["aria-label"] for nav in elements.all("nav"))
    ids = {attributes["id"] for _, attributes in elements.tags if "id" in attributes}
    skip = next(link for link in elements.all("a") if link.get("class") == "skip")
    assert str(skip["href"]).removeprefix("#") in ids
    assert all("alt" in image for image in elements.all("img"))
    for _tag, attributes in elements.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)


def test_r34_markup_in_the_portal_stays_text():
    document = portal(ATTACK)
    elements = Elements(document)
    assert len(elements.all("script")) == 1
    assert all("onerror" not in image for image in elements.all("img"))
    assert "49" not in "".join(elements.text)


def test_the_portal_without_anything():
    assert "There is nothing that you may open" in portal("", cards=0, pages=1, page=1)
    assert "Show all applications" in portal("wiki", cards=0, pages=1, page=1)


@pytest.mark.parametrize("document", tuple(every_page(ATTACK)))
def test_r34_markup_in_any_field_stays_text(document):
    elements = Elements(document)
    assert elements.all("script") == []
    assert all("onerror" not in image for image in elements.all("img"))
    assert "{{7*7}}" in document or "RESPONSE_CODE" in document
    assert "49" not in "".join(elements.text)


@pytest.mark.parametrize("branding", [Branding(), BRANDED])
def test_the_content_security_policy_allows_exactly_the_style_sheet(branding):
    headers = security_headers(branding)
    policy = dict(
        part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert "unsafe-inline" not in headers["content-security-policy"]
    assert policy["frame-ancestors"] == "'none'"
    for document in every_page(branding=branding):
        style = found(r"<style>(.*?)</style>", document)
        if "%RESPONSE_CODE%" in document:
            style = style.replace("%%", "%")
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert policy["style-src"] == f"'sha256-{digest}'"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"


def test_an_error_page_says_what_went_wrong_and_what_to_do():
    page = ErrorPage(
        403,
        "You may not see this",
        "req-1",
        "Rules say no.",
        ("Ask Ada.",),
        (Link("Session", "/.pomerium/"),),
    )
    text = "".join(Elements(render_error(page)).text)
    for part in ("403", "Forbidden", "You may not see this", "Rules say no.", "Ask Ada.", "req-1"):
        assert part in text
    assert error_document(page) == {
        "Status": 403,
        "description": "You may not see this: Rules say no.",
        "RequestID": "req-1",
    }


def test_the_envoy_template_keeps_its_operators_and_doubles_every_other_percent_sign():
    template = envoy_error_template()
    operators = ("%RESPONSE_CODE%", "%RESPONSE_CODE_DETAILS%", "%STREAM_ID%", "%RESPONSE_FLAGS%")
    assert all(operator in template for operator in operators)
    rest = template
    for operator in operators:
        rest = rest.replace(operator, "")
    assert "%%" in rest
    assert "%" not in rest.replace("%%", "")


@pytest.mark.parametrize(
    "href",
    [
        "javascript:alert(1)", "//evil.example", "data:text/html,x", "", "relative", "https://",
        'https://a/"onx=', "https://a/\n", "/a b", "https:evil", "/\\evil",
    ],
)  # fmt: skip
def test_links_lead_only_to_paths_and_web_addresses(href):
    with pytest.raises(InvalidArgumentError):
        Link("x", href)


@pytest.mark.parametrize(
    "changes",
    [
        {"primary_color": "red;}body{display:none"},
        {"primary_color": ""},
        {"darkmode_primary_color": "#12"},
        {"logo_url": "http://cdn.example.com/x"},
        {"logo_url": "javascript:alert(1)"},
        {"favicon_url": "data:text/html,x"},
        {"error_message_first_paragraph": "x" * 3000},
    ],
)
def test_branding_is_checked(changes):
    with pytest.raises(InvalidArgumentError):
        Branding(**changes)


@pytest.mark.parametrize("colour", ["#6F43E7", "#49AAA1", "#ffffff", "#000000", "#fc0", "#888"])
def test_text_on_the_accent_colour_is_readable(colour):
    """WCAG 2.2 AA: 4.5 to 1."""
    document = render_signed_out(None, Branding(primary_color=colour, secondary_color=colour))
    ink = found(r"--accent-ink:(#[0-9a-f]{6})", document)

    def luminance(text):
        digits = text.lstrip("#")
        digits = "".join(d * 2 for d in digits) if len(digits) == 3 else digits
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    light, dark = sorted((luminance(colour), luminance(ink)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_the_continue_page_goes_on_by_itself():
    elements = Elements(render_continue(Link("Go on", "https://app.example.com/?a=1&b='x;y")))
    assert {
        "http-equiv": "refresh",
        "content": "0; url=https://app.example.com/?a=1&b='x;y",
    } in elements.all("meta")


def test_links_to_addresses_of_a_request_are_encoded_or_left_out():
    link = link_to("x", "https://app.example.com/?q=\"<a>'")
    assert link == Link("x", "https://app.example.com/?q=%22%3Ca%3E'")
    for url in ("", "javascript:alert(1)", "//evil", "https://a b/"):
        assert link_to("x", url) is None


def test_request_ids_are_plain():
    assert safe_request_id("a3c1-F.9_:x") == "a3c1-F.9_:x"
    for bad in (None, "", "a b", "<x>", "x" * 129, "a\n", "ä"):
        assert safe_request_id(bad) == ""


def test_own_statuses_have_names():
    assert status_text(404) == "Not Found"
    assert status_text(450) == "Device Not Authorized"
    assert status_text(495) == "Client Certificate Required"
    assert status_text(799) == "Error"
