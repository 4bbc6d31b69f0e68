"""What a request passes before it is answered: access, limits of uploads; and security headers.

Starlette's `TrustedHostMiddleware` does not look at Origin and answers in plain text; FastAPI's
`HTTPBasic` reads ASCII passwords only, and does not cover static files.
"""

import asyncio
import base64
import binascii
import hmac
import time
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from config import Config
from server.schemas import Problem

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
ALL_NETWORKS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104, only compared with
BODY_SECONDS = 60.0  # to send a request
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


def problem(error: HTTPException, path: str) -> JSONResponse:
    """The response for an error of a request to `path`, as RFC 9457 describes it."""
    status = error.status_code
    content = Problem(
        title=HTTPStatus(status).phrase, status=status, detail=str(error.detail), instance=path
    )
    headers = ({"Retry-After": "1"} if status == 503 else {}) | dict(error.headers or {})
    return JSONResponse(content.model_dump(), status, headers, "application/problem+json")


class Guard:
    """The outermost layer: access, limits of uploads, security headers, a report of each request.

    Parameters
    ----------
    app : the application
    config : HOST, PUBLIC_URL, TOKEN, USER, PASSWORD and MAX_UPLOAD. A request that names another
        host may come from a page elsewhere whose name was made to lead here (DNS rebinding)
    observe : called with route, status and seconds of each request
    """

    def __init__(
        self, app: ASGIApp, config: Config, observe: Callable[[str, int, float], object]
    ) -> None:
        self.app = app
        self.public_host = _hostname(config.PUBLIC_URL)
        own = {config.HOST.lower(), self.public_host} - {""}
        self.hosts = None if config.HOST in ALL_NETWORKS else LOCAL_HOSTS | own
        self.token = config.TOKEN.encode()
        self.user_password = f"{config.USER}:{config.PASSWORD}".encode() if config.USER else b""
        self.max_upload = config.MAX_UPLOAD
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, prefix = time.perf_counter(), scope.get("root_path", "")
        if prefix and scope["path"].startswith(f"{prefix}{prefix}/"):  # uvicorn has added it to
            scope["path"] = scope["path"].removeprefix(prefix)  # a path that had it already
        path = scope["path"]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = DOCS_POLICY if path.startswith(f"{prefix}/docs") else POLICY
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS | {"Content-Security-Policy": policy})
                headers.setdefault("Cache-Control", "no-cache")
                route = getattr(scope.get("route"), "path", "other")
                self.observe(route, message["status"], time.perf_counter() - start)
            await send(message)

        try:
            self._check(Headers(scope=scope))
        except HTTPException as refusal:
            await problem(refusal, path)(scope, receive, send_with_headers)
        else:
            await self.app(scope, _in_time(receive), send_with_headers)

    def _check(self, headers: Headers) -> None:
        """Raise the refusal of a request that has no access, or is too much."""
        host = _hostname(f"//{headers.get('host', '')}")
        if self.hosts is not None and host not in self.hosts:
            names = ", ".join(sorted(self.hosts))
            detail = f"this server is {names}, not {host[:100]!r}; see PUBLIC_URL (--public-url)"
            raise HTTPException(403, detail)
        origin = headers.get("origin")
        if origin and _hostname(origin) not in {host, self.public_host or host}:
            detail = "pages of other hosts have no access; behind a proxy, set PUBLIC_URL"
            raise HTTPException(403, detail)
        if not self._is_authorised(headers.get("authorization", "")):
            schemes = 'Basic realm="deep-fashion-retrieval", charset="UTF-8"'
            schemes += ", Bearer" if self.token else ""
            detail = "send the token, or user and password, that the server was started with"
            raise HTTPException(401, detail, {"WWW-Authenticate": schemes})
        if "transfer-encoding" in headers:  # else the server reads no more than Content-Length
            raise HTTPException(411, "send the length of the body, not chunks of it")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.max_upload * 1_000_000:
            detail = f"more than {self.max_upload} MB; see MAX_UPLOAD (--max-upload)"
            raise HTTPException(413, detail, {"Connection": "close"})

    def _is_authorised(self, authorization: str) -> bool:
        """Whether the credentials are right; a token may also come as a Basic password."""
        if not (self.token or self.user_password):
            return True
        scheme, _, credentials = authorization.partition(" ")
        given = credentials.strip().encode()
        if scheme.lower() == "bearer":
            return _equal(given, self.token)
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(given, validate=True)
        except binascii.Error:
            return False
        password = given.partition(b":")[2]
        return _equal(password, self.token) or _equal(given, self.user_password)


def _in_time(receive: Receive) -> Receive:
    """Receive the body of a request within `BODY_SECONDS`."""
    clock = asyncio.get_running_loop().time
    end, whole = clock() + BODY_SECONDS, False

    async def received() -> Message:
        nonlocal whole
        try:
            # What comes after the body is the client's disconnection.
            message = await asyncio.wait_for(receive(), None if whole else end - clock())
        except asyncio.TimeoutError:
            detail = f"the request was not sent within {BODY_SECONDS:.0f} s"
            raise HTTPException(408, detail, {"Connection": "close"}) from None
        whole = not message.get("more_body", False)
        return message

    return received


def _equal(given: bytes, secret: bytes) -> bool:
    """Compare in a time that does not depend on the secret; an empty one equals nothing."""
    return bool(secret) and hmac.compare_digest(given, secret)


def _hostname(url: str) -> str:
    """Host of an address, in lower case, without the brackets of IPv6; "" where it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
