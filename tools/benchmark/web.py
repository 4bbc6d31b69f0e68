"""Measure the page's server: its start, what the interface adds to a query, and many clients.

    python -m tools.benchmark.web --dataset-base data/demo

Starts web.py on a collection and asks with its own pictures: first one client, then many at once.
"""

import argparse
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

import numpy as np

from features.database import open_database
from pictures.collection import picture_file
from utils import UserError, parse_args, run_script

HERE = Path(__file__).parent.parent.parent
ROUNDS = 40  # queries of the single client
PICTURES = 64  # that are asked with
WARM = 300  # queries, after which what the server keeps is as large as it gets
BOUNDARY = "picture-of-the-benchmark"
LOADING = (
    "import sys; from pathlib import Path; from config import Config; from web_collection import"
    " open_collection; from device import pick_device; c = Config(DATASET_BASE=Path(sys.argv[1]));"
    " open_collection(c, pick_device(c.DEVICE))"
)


@dataclass
class Load:
    """What many clients met: `seconds` of each answer by its status, and the network's share."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)


@contextmanager
def server(base: Path) -> Iterator[tuple[int, int, float]]:
    """Run web.py; yields its port, its process number and the seconds until it was ready."""
    command = [sys.executable, str(HERE / "web.py"), "--dataset-base", str(base), "--port", "0"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        line = process.stdout.readline() if process.stdout else ""
        seconds = time.perf_counter() - start
        port = re.search(r":(\d+)$", line.strip())
        if not port:
            raise UserError(f"web.py did not start: {line}")
        yield int(port[1]), process.pid, seconds
    finally:
        process.kill()
        process.wait()


def loading_seconds(base: Path) -> float:
    """The time a process takes that loads the same packages, networks and features alone."""
    start = time.perf_counter()
    command = [sys.executable, "-c", LOADING, str(base.resolve())]
    subprocess.run(command, check=True, cwd=HERE)  # noqa: S603
    return time.perf_counter() - start


def _body(picture: Path) -> bytes:
    """A search with one picture of a data set, as multipart/form-data."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="picture"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    return head.encode() + picture.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()


def ask(connection: HTTPConnection, body: bytes) -> tuple[str, float, float]:
    """Search; returns the status, the seconds it took, and those that its steps took."""
    start = time.perf_counter()
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    connection.request("POST", "/api/search", body, headers)
    answer = connection.getresponse()
    content = answer.read()
    seconds = time.perf_counter() - start
    steps = sum(json.loads(content)["seconds"].values()) if answer.status == 200 else 0.0
    return str(answer.status), seconds, steps


def _connect(port: int) -> HTTPConnection:
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def many(port: int, bodies: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Let clients search without a break, each after its last answer."""
    load, until = Load(), time.monotonic() + seconds

    def run(number: int) -> None:
        connection, place = _connect(port), number
        while time.monotonic() < until:
            try:
                status, took, _ = ask(connection, bodies[place % len(bodies)])
            except OSError as error:
                load.statuses[type(error).__name__] += 1
                connection = _connect(port)
                continue
            load.statuses[status] += 1
            load.seconds.append(took)
            place += clients

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load


def memory(pid: int) -> float:
    """MB that a process holds of its own, without the pages of mapped files."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=16, help="at once (default: 16)")
    parser.add_argument("--seconds", type=float, default=60, help="how long (default: 60)")


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse_args(argv, __doc__ or "", ("DATASET_BASE",), _arguments)
    base = config.DATASET_BASE
    paths = open_database(base).paths
    rows = np.linspace(0, len(paths) - 1, min(PICTURES, len(paths))).astype(int).tolist()
    bodies = [_body(picture_file(base, paths[row])) for row in rows]
    loading = loading_seconds(base)
    with server(base) as (port, pid, ready):
        print(f"ready after {ready:.2f} s; loading alone {loading:.2f} s")
        connection = _connect(port)
        asked = 0
        while asked < WARM:
            asked += len(many(port, bodies, args.clients, 5).seconds)
        alone = [ask(connection, bodies[i % len(bodies)]) for i in range(ROUNDS)]
        single = median(seconds for _, seconds, _ in alone)
        added = median(seconds - steps for _, seconds, steps in alone)
        print(f"one client: {1000 * single:.1f} ms, of which the interface {1000 * added:.1f} ms")
        before = memory(pid)
        load = many(port, bodies, args.clients, args.seconds)
        after = memory(pid)
    p50, p95 = np.quantile(load.seconds, [0.5, 0.95])
    share = args.clients * single
    told = ", ".join(f"{count:,} x {status}" for status, count in load.statuses.items())
    rate = len(load.seconds) / args.seconds
    print(f"{args.clients} clients, {args.seconds:.0f} s: {told}; {rate:.1f} answers a second")
    print(
        f"median {1000 * p50:.0f} ms, p95 {1000 * p95:.0f} ms: {p95 / share:.2f} times"
        f" {args.clients} x {1000 * single:.1f} ms"
    )
    print(f"memory: {before:.0f} MB before, {after:.0f} MB after")


if __name__ == "__main__":
    run_script(main)
