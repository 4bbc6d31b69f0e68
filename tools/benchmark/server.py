"""Measure the server: its start, what the interface adds to a query, and many clients at once.

    python -m tools.benchmark.server --dataset-base data/demo

Starts web.py on a collection and searches with the collection's own pictures.
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
from pictures.folder import picture_file
from tools.benchmark.command import positive
from tools.benchmark.timing import ROOT, run_python
from utils import UserError, evenly_spaced, parse_args, run_script

MAX_PICTURES = 64  # different queries
BOUNDARY = "picture-of-the-benchmark"
LOADING = "import sys; from search import Searcher; Searcher(sys.argv[1])"


@dataclass
class Load:
    """What many clients met: the `seconds` of each answer, and how often each HTTP status came."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)


@contextmanager
def server(base: Path) -> Iterator[tuple[int, int, float]]:
    """Run web.py; yields its port, its process number and the seconds until it was ready."""
    command = [sys.executable, str(ROOT / "web.py"), "--dataset-base", str(base), "--port", "0"]
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


def form_of(picture: Path) -> bytes:
    """A search with one picture, as multipart/form-data."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="picture"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    return head.encode() + picture.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()


def search(connection: HTTPConnection, form: bytes) -> tuple[str, float, float]:
    """Search; returns the HTTP status, the seconds it took, and those of the server's steps."""
    start = time.perf_counter()
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    connection.request("POST", "/api/search", form, headers)
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


def load_server(port: int, forms: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Let several clients search without a pause, each as soon as it has its last answer."""
    load, end = Load(), time.monotonic() + seconds

    def run(number: int) -> None:
        connection = _connect(port)
        while time.monotonic() < end:
            try:
                status, taken, _ = search(connection, forms[number % len(forms)])
            except OSError as error:
                load.statuses[type(error).__name__] += 1
                connection = _connect(port)
                continue
            load.statuses[status] += 1
            load.seconds.append(taken)
            number += clients

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load


def memory(pid: int) -> float:
    """MB that a process holds of its own, without the pages of mapped files."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+)", text)
    return int(found[1]) / 1024 if found else 0.0


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--clients", type=positive, default=16, help="at once (default: 16)")
    add("--seconds", type=float, default=60, help="of the load (default: 60)")
    add("--single", type=positive, default=40, help="queries of a single client (default: 40)")
    add("--warm-up", type=positive, default=300,
        help="queries before, after which caches no longer grow (default: 300)")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse_args(argv, __doc__ or "", ("DATASET_BASE",), _arguments)
    base = config.DATASET_BASE.resolve()
    paths = open_database(base).paths
    rows = evenly_spaced(len(paths), MAX_PICTURES)
    forms = [form_of(picture_file(base, paths[row])) for row in rows]
    loading, _ = run_python(base, "-c", LOADING, str(base))
    with server(base) as (port, pid, ready):
        print(f"ready after {ready:.2f} s; loading alone {loading:.2f} s")
        connection, searches = _connect(port), 0
        while searches < args.warm_up:
            searches += len(load_server(port, forms, args.clients, min(5, args.seconds)).seconds)
        alone = [search(connection, forms[i % len(forms)]) for i in range(args.single)]
        single = median(seconds for _, seconds, _ in alone)
        added = median(seconds - steps for _, seconds, steps in alone)
        print(f"one client: {1000 * single:.1f} ms, of which the interface {1000 * added:.1f} ms")
        before = memory(pid)
        load = load_server(port, forms, args.clients, args.seconds)
        after = memory(pid)
    p50, p95 = np.quantile(load.seconds, [0.5, 0.95])
    share = args.clients * single
    statuses = ", ".join(f"{count:,} x {status}" for status, count in load.statuses.items())
    rate = len(load.seconds) / args.seconds
    print(f"{args.clients} clients, {args.seconds:g} s: {statuses}; {rate:.1f} answers a second")
    print(
        f"median {1000 * p50:.0f} ms, p95 {1000 * p95:.0f} ms: {p95 / share:.2f} times"
        f" {args.clients} x {1000 * single:.1f} ms"
    )
    print(f"memory: {before:.0f} MB before, {after:.0f} MB after")


if __name__ == "__main__":
    run_script(main)
