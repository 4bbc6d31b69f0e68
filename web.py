"""Serve a page that searches the collection, and a JSON interface.

    pip install -r requirements-web.txt
    python web.py

The page is at http://127.0.0.1:8000, the description of the interface at /docs. Everybody who can
reach the address can search: for another HOST than this machine's own, set TOKEN, or USER and
PASSWORD.
"""

import socket
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from config import DISTANCE, MILVUS, SERVER, WORDS, Config
from utils import UserError, parse_args, run_script

GRACE_SECONDS = 2  # for running requests when the server ends
MAX_CONNECTIONS = 256  # at once; each may hold an upload

USES = (
    *("DATASET_BASE", "TRUNCATED", "DUMPED_MODEL", "MODELS", *DISTANCE, "NPROBE", "TARGET_RECALL"),
    *(*WORDS, *MILVUS, "DEVICE", *SERVER),
)


def _listen(host: str, port: int) -> socket.socket:
    """Open the port, so that an error of it is reported before anything is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise UserError(
            f"HOST {host}, PORT {port}: {reason}; choose others (--host, --port)"
        ) from None
    # Connections inherit it. Else Nagle's algorithm delays each response by 40 ms: asyncio switches
    # it off only for sockets that name their protocol.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def main(argv: Sequence[str] | None = None) -> None:
    config, _ = parse_args(argv, __doc__ or "", USES)
    if bool(config.USER) != bool(config.PASSWORD):
        raise UserError("USER and PASSWORD go together; set both, or none")
    with _listen(config.HOST, config.PORT) as listener:
        _serve(config, listener)


def _serve(config: Config, listener: socket.socket) -> None:
    try:
        import python_multipart  # noqa: F401, else missing only at the first upload
        import uvicorn

        from server.api import build_app
        from server.guard import LOCAL_HOSTS
        from server.live import LiveCollection
    except ImportError as error:
        raise UserError(
            f"the page needs more packages ({error}); run: pip install -r requirements-web.txt"
        ) from None
    live = LiveCollection(config)
    settings = uvicorn.Config(
        build_app(config, live),
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        limit_concurrency=MAX_CONNECTIONS,
        root_path=urlsplit(config.PUBLIC_URL).path.rstrip("/"),
    )
    port = listener.getsockname()[1]
    host = f"[{config.HOST}]" if ":" in config.HOST else config.HOST
    is_public = config.PUBLIC_URL or config.HOST not in LOCAL_HOSTS
    if is_public and not (config.TOKEN or config.USER):
        print(
            f"everybody who can reach {config.PUBLIC_URL or config.HOST} can search and see these"
            " pictures; set TOKEN (--token), or USER and PASSWORD",
            file=sys.stderr,
        )
    print(f"{len(live.collection):,} pictures: http://{host}:{port}", flush=True)
    uvicorn.Server(settings).run(sockets=[listener])


if __name__ == "__main__":
    run_script(main)
