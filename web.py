"""Serve a page that searches the collection, and a JSON interface to the same.

    pip install -r requirements-web.txt
    python web.py

The page is at http://127.0.0.1:8000, the interface's description at /docs. Whoever can reach the
address can search: with another HOST than this machine's own, set TOKEN, or USER and PASSWORD.
"""

import ipaddress
import socket
import sys
from collections.abc import Sequence

from config import DISTANCE, MILVUS, SERVER, Config
from network.device import pick_device
from utils import UserError, parse_args, run_script

GRACE_SECONDS = 2  # for requests in flight when the system ends the server
BACKLOG = 128  # connections that may wait

USES = (
    *("DATASET_BASE", "DUMPED_MODEL", "MODELS", *DISTANCE, "NPROBE", "TARGET_RECALL"),
    *(*MILVUS, "DEVICE", *SERVER),
)


def _listen(host: str, port: int) -> socket.socket:
    """Open the port, so that what is wrong with it is told before anything is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, 0, socket.SOCK_STREAM, socket.IPPROTO_TCP, socket.AI_PASSIVE
        )[0]
        # With its protocol, or asyncio does not switch Nagle's algorithm off: 40 ms an answer.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise UserError(
            f"HOST {host}, PORT {port}: {error.strerror or error}; choose others (--host, --port)"
        ) from None
    return listener


def _open_to_all(config: Config) -> bool:
    """Whether other machines can ask without showing anything."""
    if config.TOKEN or config.USER:
        return False
    try:
        return not ipaddress.ip_address(config.HOST).is_loopback
    except ValueError:
        return config.HOST != "localhost"


def _missing(error: ImportError) -> UserError:
    return UserError(
        f"the page needs more packages ({error}); run: pip install -r requirements-web.txt"
    )


def main(argv: Sequence[str] | None = None) -> None:
    config, _ = parse_args(argv, __doc__ or "", USES)
    if bool(config.USER) != bool(config.PASSWORD):
        raise UserError("USER and PASSWORD go together; set both, or none")
    listener = _listen(config.HOST, config.PORT)
    try:
        import python_multipart  # noqa: F401, else missed when the first upload comes
        import uvicorn

        from server.api import build_app
        from server.collection import Living
    except ImportError as error:
        raise _missing(error) from None
    living = Living(config, pick_device(config.DEVICE))
    server = uvicorn.Server(
        uvicorn.Config(
            build_app(config, living),
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
    port = listener.getsockname()[1]
    host = f"[{config.HOST}]" if ":" in config.HOST else config.HOST
    if _open_to_all(config):
        print(
            f"everybody who can reach {config.HOST} can search and see these pictures; set TOKEN"
            " (--token), or USER and PASSWORD",
            file=sys.stderr,
        )
    print(f"{len(living.collection):,} pictures: http://{host}:{port}", flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    run_script(main)
