"""What a request has to pass before it is answered, and how it is told that it may not."""

import asyncio
import base64
import binascii
import hmac
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.schemas import Problem

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
EVERYWHERE = frozenset({"0.0.0.0", "::", ""})  # noqa: S104, compared with only
AT_ONCE = 48  # searches that are read and answered at once; each may hold an upload
RETRY_SECONDS = 1
BODY_SECONDS = 60.0  # that a client may take to send a request: it takes the place of others
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none';"
    " form-action 'self'; frame-ancestors 'none'"
)
DOCS_POLICY = POLICY + "; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def problem(
    status: int, detail: str, instance: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error as RFC 9457 describes it."""
    content = Problem(
        title=HTTPStatus(status).phrase, status=status, detail=detail, instance=instance
    )
    return JSONResponse(
        content.model_dump(), status, headers, media_type="application/problem+json"
    )


class Guard:
    """The outermost layer: who may ask, how much, how many at once; headers and times.

    Parameters
    ----------
    app : what answers
    host : address it is served at; another name in a request than that or this machine's is
        refused, as a page elsewhere may have made it up
    token, user, password : what a request has to show; all empty: nothing
    most_bytes : of a body
    observe : is told method, route, status and seconds of each request
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        token: str,
        user: str,
        password: str,
        most_bytes: int,
        observe: Callable[[str, str, int, float], object],
    ) -> None:
        self.app = app
        self.hosts = None if host in EVERYWHERE else LOCAL | {host.lower()}
        self.token = token.encode()
        self.pair = f"{user}:{password}".encode() if user else b""
        self.most_bytes = most_bytes
        self.too_large = f"more than {most_bytes / 1e6:.0f} MB; see MAX_UPLOAD (--max-upload)"
        self.observe = observe
        self.searches = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status, started = 500, False

        async def watched(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                docs = scope["path"].startswith("/docs")
                headers["Content-Security-Policy"] = DOCS_POLICY if docs else POLICY
            await send(message)

        try:
            await self._answer(scope, receive, watched)
        except Exception:  # a bug: the answer is to have the headers, too
            if not started:
                fault = problem(500, "a fault of the server; its log has more", scope["path"])
                await fault(scope, receive, watched)
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.observe(scope["method"], route, status, time.perf_counter() - start)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal:
            await refusal(scope, receive, send)
            return
        search = scope["method"] == "POST"
        if search and self.searches >= AT_ONCE:
            detail = "too many searches at once; ask again"
            busy = problem(503, detail, scope["path"], {"Retry-After": str(RETRY_SECONDS)})
            await busy(scope, receive, send)
            return
        self.searches += search
        left, until = self.most_bytes, asyncio.get_running_loop().time() + BODY_SECONDS
        whole = False

        async def counted() -> Message:
            nonlocal left, whole
            if whole:  # what comes now is the client's leave
                return await receive()
            try:
                message = await asyncio.wait_for(
                    receive(), until - asyncio.get_running_loop().time()
                )
            except asyncio.TimeoutError:
                detail = f"the request was not sent within {BODY_SECONDS:.0f} s"
                raise HTTPException(408, detail, {"Connection": "close"}) from None
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, self.too_large, {"Connection": "close"})
            whole = not message.get("more_body", False)
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self.searches -= search

    def _refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        """The answer to a request that may not pass."""
        path = scope["path"]
        host = _hostname(headers.get("host", ""))
        if self.hosts is not None and host not in self.hosts:
            detail = f"this server is {', '.join(sorted(self.hosts))}, not {host[:100]!r}"
            return problem(403, detail, path)
        origin = headers.get("origin")
        if origin and _hostname(origin.split("://")[-1]) != host:
            return problem(403, "pages of other hosts may not ask", path)
        if not self._known(headers.get("authorization", "")):
            schemes = 'Basic realm="deep-fashion-retrieval", charset="UTF-8"'
            schemes += ", Bearer" if self.token else ""
            detail = "show the token, or user and password, that the server was started with"
            return problem(401, detail, path, {"WWW-Authenticate": schemes})
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.most_bytes:
            return problem(413, self.too_large, path, {"Connection": "close"})
        return None

    def _known(self, authorization: str) -> bool:
        """Whether a request shows what it has to; a token may also come as a Basic password."""
        if not (self.token or self.pair):
            return True
        scheme, _, shown = authorization.partition(" ")
        given = shown.strip().encode()
        if scheme.lower() == "bearer":
            return bool(self.token) and hmac.compare_digest(given, self.token)
        if scheme.lower() != "basic":
            return False
        try:
            pair = base64.b64decode(given, validate=True)
        except binascii.Error:
            return False
        password = pair.partition(b":")[2]
        by_token = bool(self.token) and hmac.compare_digest(password, self.token)
        return by_token or (bool(self.pair) and hmac.compare_digest(pair, self.pair))


def _hostname(authority: str) -> str:
    """Host of host:port, in small letters, without the brackets of IPv6."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].partition("/")[0].lower()


def as_problem(request: Request, status: int, detail: Any) -> JSONResponse:
    """The answer for an error that was met while answering."""
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None
    return problem(status, str(detail), request.url.path, headers)
