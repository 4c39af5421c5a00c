"""A TLS server for *.localhost that answers with canned pages and says how it was reached."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gatehouse.cli.demo.certificates import Certificates, ensure_certificates


@dataclass
class LocalSite:
    """`pages` maps a path to status and body; any other path tells host and SNI as JSON."""

    certificates: Certificates
    pages: dict[str, tuple[int, str]] = field(default_factory=dict)
    port: int = 0
    requests: list[str] = field(default_factory=list)
    connections: int = 0
    _names: dict[ssl.SSLObject, str] = field(default_factory=dict)

    def url(self, host: str, path: str = "/") -> str:
        return f"https://{host}:{self.port}{path}"

    def context(self) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(self.certificates.certificate, self.certificates.key)

        def remember(connection, name, _context) -> None:
            self._names[connection] = name

        made.sni_callback = remember
        return made

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests without bodies on one connection."""
        self.connections += 1
        sni = self._names.pop(writer.get_extra_info("ssl_object"), "")
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines if line)
                path = first.split(" ")[1]
                self.requests.append(path)
                told = json.dumps({"host": headers["host"], "sni": sni})
                status, body = self.pages.get(path, (200, told))
                writer.write(
                    f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def local_site(directory: Path) -> AsyncIterator[LocalSite]:
    """Run one on a free port."""
    site = LocalSite(ensure_certificates(directory))
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=site.context())
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        await server.wait_closed()
