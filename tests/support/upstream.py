"""An upstream application that tells what reached it."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MARK = ("x-upstream", "echo")  # in every answer that is the upstream's own


class _Counting(io.RawIOBase):
    """What is read of a connection, told byte by byte whether or not it makes a request."""

    def __init__(self, raw: io.RawIOBase, tell: Callable[[int], None]) -> None:
        super().__init__()
        self._raw = raw
        self._tell = tell

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count = self._raw.readinto(buffer)
        self._tell(count or 0)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class EchoUpstream:
    """Answers every request with JSON of what it received, and remembers it."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.received = 0  # bytes, also of what never became a request
        self._counting = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                raw = self.rfile.detach()
                self.rfile = io.BufferedReader(_Counting(raw, outer._count))

            def end_headers(self) -> None:
                self.send_header(*MARK)
                super().end_headers()

            def _answer(self) -> None:
                seen = {
                    "method": self.command,
                    "path": self.path,
                    "headers": [[name.lower(), value] for name, value in self.headers.items()],
                }
                # To its end, or what is left of it would be counted while others are refused.
                sent = self._body()
                seen["body"] = (sent or b"").decode(errors="replace")
                outer.requests.append(seen)
                if sent is None:  # it broke off: nobody waits for an answer
                    self.close_connection = True
                    return
                body = json.dumps(seen).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def _body(self) -> bytes | None:
                """None when the sender left in the middle of it."""
                if "chunked" not in self.headers.get("transfer-encoding", ""):
                    return self.rfile.read(int(self.headers.get("content-length") or 0))
                body = b""
                while line := self.rfile.readline(65536):
                    size = int(line.partition(b";")[0], 16)
                    if not size:
                        while self.rfile.readline(65536).strip():  # trailers
                            pass
                        return body
                    body += self.rfile.read(size)
                    self.rfile.readline(65536)
                return None

            def log_message(self, *_arguments: Any) -> None:
                pass

        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
            setattr(Handler, f"do_{method}", Handler._answer)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]

    def _count(self, count: int) -> None:
        with self._counting:
            self.received += count

    def check_refusal(self, headers: Iterable[tuple[str, str]], received: int) -> None:
        """Unless `headers` are those of our own answer, nothing came since `received` bytes had."""
        if MARK not in headers:
            assert self.received == received, f"refused, but {self.requests[-1:]} came"

    def settle(self) -> None:
        """Wait until what others have begun has come to its end."""
        received = -1
        while received != self.received:
            received = self.received
            time.sleep(0.2)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[EchoUpstream]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join(5)


def headers_of(seen: dict[str, Any]) -> dict[str, str]:
    """Received headers as a mapping; asserts that no name came twice."""
    names = [name for name, _ in seen["headers"]]
    assert len(names) == len(set(names)), names
    return dict(seen["headers"])
