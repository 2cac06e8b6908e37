"""In front of everything: which requests reach the page, from where, how large; what a browser may do."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tedm.web import limits

API = "/gradio_api"
# What the page needs. Gradio has more: any file of its cache, a proxy, remote addresses, a console.
READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/(assets|static|svelte)(/[\w.@+-]+)+"
    rf"|{API}/(theme\.css|startup-events|queue/data|upload_progress|heartbeat/\w+)"
)
WRITE = re.compile(rf"{API}/(queue/join/?|cancel|reset/?)")
UPLOAD = f"{API}/upload"
HEADERS = {
    # Nothing is fetched from anywhere else. Gradio compiles its templates in the browser, hence eval.
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:;"
    " style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval';"
    " font-src 'self' data:; connect-src 'self';"
    " object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Gate:
    """ASGI middleware.

    Args:
        app: behind the gate.
        incoming: directory where uploads arrive.
        hosts: names by which the page may be called; None: any. A page of the loopback that answers to any
            name can be read by whatever web page its user has open (DNS rebinding).
    """

    def __init__(self, app: Any, incoming: Path, hosts: Iterable[str] | None) -> None:
        self.app = app
        self.incoming = incoming.resolve()
        self.hosts = None if hosts is None else frozenset(hosts)
        self._arriving = 0  # bytes of uploads under way

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path, reading = scope["path"], scope["method"] in ("GET", "HEAD")

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        refused = self._refused(path, scope["method"], headers)
        if refused is not None:
            await _refuse(answer, *refused)
        elif reading:
            await self.app(scope, receive, answer)
        elif path != UPLOAD:
            body = await _body(receive)
            if body is None:
                return
            if not self._harmless(body):
                await _refuse(answer, 403, "Only files that were uploaded here can be used.")
                return
            await self.app(scope, _again(body, receive), answer)
        else:
            size = int(headers["content-length"])
            self._arriving += size
            try:
                await self.app(scope, receive, answer)
            finally:
                self._arriving -= size

    def _refused(self, path: str, method: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and reason, or None."""
        host = headers.get("host", "")
        if self.hosts is not None and (urlsplit(f"//{host}").hostname or "") not in self.hosts:
            return 421, "This page does not answer to that name."
        if method in ("GET", "HEAD"):
            known = READ.fullmatch(path) and ".." not in path
            return None if known else (404, "There is nothing here.")
        if method != "POST" or not (path == UPLOAD or WRITE.fullmatch(path)):
            return 404, "There is nothing here."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "Another page may not use this one."
        # Without it a body could be of any length; a browser sends it, and the server keeps to it.
        if not headers.get("content-length", "").isdecimal():
            return 411, "The request does not say how long it is."
        size = int(headers["content-length"])
        if path != UPLOAD:
            return (413, "The request is too long.") if size > limits.MAX_REQUEST else None
        if size > limits.MAX_BYTES + limits.MAX_REQUEST:
            return 413, f"The file is too large: {limits.TOO_LARGE}."
        if self._arriving + size + _size_of(self.incoming) > limits.HELD_FILES:
            return 503, "Too many files arrive at this moment. Try again in a minute."
        return None

    def _harmless(self, body: bytes) -> bool:
        """Whether a request is JSON, and names no file but such as were uploaded.

        Gradio opens what a client names, or fetches it where it is an address, before the page's own code
        runs. Mounted in another application, as here, its own check rests (`Blocks.has_launched`, 6.31).
        """
        try:
            return self._harmless_value(json.loads(body or b"null"))
        except (ValueError, RecursionError):
            return False

    def _harmless_value(self, value: Any) -> bool:
        if isinstance(value, list):
            return all(map(self._harmless_value, value))
        if not isinstance(value, dict):
            return True
        named = value.get("path")
        if named is not None and not (isinstance(named, str) and uploaded(Path(named), self.incoming)):
            return False
        return all(map(self._harmless_value, value.values()))


def uploaded(file: Path, incoming: Path) -> bool:
    """Whether a name is one that an upload was given: {directory}/{digest}/{name}, and no link."""
    folder, digest = file.parent.parent, file.parent.name
    return (
        folder == incoming
        and ".." not in file.parts
        and re.fullmatch("[0-9a-f]{64}", digest) is not None
        and not file.is_symlink()
        and not file.parent.is_symlink()
    )


async def _body(receive: Any) -> bytes | None:
    """All of a request, whose length was checked; None where the client has left."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _again(body: bytes, receive: Any) -> Any:
    """The request once more, for the application behind."""
    told = False

    async def messages() -> Any:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return messages


async def _refuse(send: Any, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # what is left of the body is not read
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _size_of(directory: Path) -> int:
    total = 0
    for file in directory.rglob("*"):
        try:
            total += file.stat().st_size
        except OSError:  # gone meanwhile
            continue
    return total
