"""Spellings of redirect targets that lead elsewhere, made by rule from one good host (R26)."""

from __future__ import annotations

from itertools import product

EVIL = "evil.example.net"


def hostile_targets(good: str) -> list[str]:
    """Several hundred targets none of which may be followed where only https://`good` may."""
    found: list[str] = []
    # what a naive prefix or suffix comparison accepts
    found += [
        f"https://{name}{path}"
        for name, path in product(
            (
                f"{good}.{EVIL}",
                f"{EVIL}.{good.partition('.')[2]}.{EVIL}",
                f"x{good}",
                f"{good}x",
                f"{good}-{EVIL}",
                good.replace(".", "-", 1),
                good.replace(".", "x", 1),
                EVIL,
                f"{good}%2e{EVIL}",
                f"{good}%00.{EVIL}",
                f"{EVIL}%23.{good}",
                f"{EVIL}%2f.{good}",
                f"{EVIL}#{good}",
                f"{EVIL}?{good}",
                f"{EVIL}/{good}",
                f"{EVIL}\\{good}",
                f"{EVIL}\\@{good}",
                f"{good}\\@{EVIL}",
            ),
            ("", "/", "/path", "/?q=1", f"/#https://{good}"),
        )
    ]
    # userinfo
    found += [
        f"https://{user}@{host}/"
        for user, host in product(
            (good, f"{good}:443", f"{good}%3a443", "a:b", "", f"{good}%2f"), (EVIL, good)
        )
    ]
    # schemes and missing slashes
    found += [
        f"{scheme}{slashes}{host}/"
        for scheme, slashes, host in product(
            ("", "https:", "HTTPS:", "http:", "javascript:", "data:", "ftp:", "//", "https"),
            ("", "/", "//", "///", "\\", "\\\\", "/\\", "\\/", "%2f%2f", "////"),
            (EVIL, good),
        )
        if not (scheme.lower() == "https:" and slashes == "//" and host == good)
    ]
    # control characters and blanks, in every place
    for code in (*range(0x20), 0x20, 0x7F, 0x85, 0xA0, 0xAD, 0x200B, 0x2028, 0x3000, 0xFEFF):
        character = chr(code)
        found += [
            f"{character}https://{EVIL}/",
            f"https:{character}//{good}/",
            f"https://{character}{good}/",
            f"https://{good}{character}.{EVIL}/",
            f"https://{good}/{character}",
        ]
    # names that only look alike
    found += [
        f"https://{good.replace('e', 'е', 1)}/",  # Cyrillic  # noqa: RUF001
        f"https://{good.replace('.', '。', 1)}/",
        f"https://{good.replace('.', '．', 1)}/",  # noqa: RUF001
        f"https://{good.replace('a', 'ａ', 1)}/",  # noqa: RUF001
        f"https://xn--{good}/",
    ]
    # addresses in odd spellings
    found += [
        f"https://{address}/"
        for address in (
            "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]",
            "[::ffff:127.0.0.1]", "169.254.169.254", "0", "[fe80::1%25eth0]", "[", "]", "[::1",
        )
    ]  # fmt: skip
    # ports
    found += [f"https://{good}:{port}/" for port in ("0", "65536", "99999999", "-1", "4a", "443:1")]
    # paths that another parser takes for a host
    found += [
        f"https://{good}{path}"
        for path in (f"//{EVIL}", f"/%2f{EVIL}", f"/%5c{EVIL}", f"/\\{EVIL}", "/%0d%0aLocation:x")
    ]
    found += ["", "/", "//", "?", "#", "https://", "https:///", "https://.", "https://:443/"]
    return list(dict.fromkeys(found))
