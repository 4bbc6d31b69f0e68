"""Measure extraction, training and exact search on a GPU: `make gpu`.

python -m tools.benchmark.gpu                              about 5 minutes on an H100
python -m tools.benchmark.gpu --only search large          some parts
python -m tools.benchmark.gpu --tiny --device cpu          to see that every part runs

Runs tests/gpu first, then prints a table and writes gpu.json. Nothing is downloaded: pictures and
features are made, the networks are untrained. A part that fails is reported as a row of its own;
the others go on, and the exit status is 1.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import Config
from network.device import pick_device
from search.engine import ExactEngine
from search.matrix import MatrixEngine
from search.recall import recall_of
from search.signals import Signal
from tools.benchmark.command import gpu_facts, make_parser, measure, sizes_of
from tools.benchmark.inputs import BLOCK, DIM, PALETTE, QUERIES, random_features
from tools.benchmark.network import amp_name, photos, printed_rate, training
from tools.benchmark.rows import Row, compare_rates, compare_times
from tools.benchmark.search import TOP_N, rows_of, search_one
from tools.benchmark.sizes import GPU, Sizes
from tools.benchmark.timing import ROOT, Run, interleaved, run_child, run_project
from utils import UserError, run_script

TEST_SECONDS = 240
CDIST_BYTES = 1 << 30  # distances that `torch.cdist` makes at once
COPY_BYTES = 1 << 30  # copied by one call: far more than a cache holds
WEIGHTS = {
    "deep": 1.0,
    "color": Config.model_fields["COLOR_WEIGHT"].default,
    "palette": Config.model_fields["PALETTE_WEIGHT"].default,
}


def tests(_: Path, sizes: Sizes, device: str) -> Iterator[Row]:
    """The tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/gpu"]
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, cwd=ROOT, timeout=TEST_SECONDS
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    print(*lines[-40:], sep="\n", flush=True)
    summary = lines[-1].strip("= ") if lines else "no tests"
    if done.returncode:
        raise UserError(f"exit status {done.returncode}: {summary}")
    yield Row("tests/gpu", summary, target="all pass", met=True)


def extraction(folder: Path, sizes: Sizes, device: str) -> Iterator[Row]:
    """feature_extractor.py, beside its network alone and beside its loader alone."""
    base, amp = photos(folder, sizes), amp_name(device)
    parts = run_child(base, "extraction_parts", device, amp, sizes.batches)[1]
    seconds, output = run_project(
        "feature_extractor.py", base, f"--device={device}", f"--amp={amp}"
    )
    here = printed_rate(output)
    what = f"extraction of {sizes.photos:,} pictures, {sizes.backbone}, {amp}"
    limit = "network" if parts["network"] <= parts["loader"] else "loader"
    names = {
        "network": "network alone, random pictures on the device",
        "loader": f"decoding alone, {parts['workers']} processes",
    }
    for part, name in names.items():
        target = ">= 0.9" if part == limit else ""
        yield compare_rates(what, "pictures", here, name, parts[part], target)
    yield Row(f"{what}: whole script", f"{seconds:.1f} s")


def search(_: Path, sizes: Sizes, device: str) -> Iterator[Row]:
    """Exact search by embedding, colour feature and palette."""
    deep, color = random_matrices(sizes.rows, device)
    random = np.random.default_rng(0)
    palette = np.abs(random.standard_normal((sizes.rows, PALETTE), np.float32))
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    matrices = {"deep": deep, "color": color, "palette": palette}
    queried = [x.numpy() for x in random_features(QUERIES, sizes.queries)]
    queried.append(palette[random.integers(len(palette), size=sizes.queries)])
    yield from _search(matrices, queried, sizes, device, checked=3)


def large_search(_: Path, sizes: Sizes, device: str) -> Iterator[Row]:
    """Exact search by the embedding alone in a large collection."""
    deep, _color = random_matrices(sizes.large_rows, device)
    queried = [random_features(QUERIES, sizes.queries)[0].numpy()]
    yield from _search({"deep": deep}, queried, sizes, device, checked=0)


PARTS: dict[str, Callable[[Path, Sizes, str], Iterator[Row]]] = {
    "tests": tests,
    "search": search,
    "large": large_search,
    "extraction": extraction,
    "training": training,
}


def random_matrices(rows: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and colour features in main memory, made on the device, where it is faster."""
    deep = np.empty((rows, DIM), np.float32)
    color: list[Tensor] = []
    for start in range(0, rows, BLOCK):
        block = slice(start, min(start + BLOCK, rows))
        made = random_features(start, block.stop - start, device)
        torch.from_numpy(deep[block]).copy_(made[0])
        color.append(made[1].cpu())
    return deep, torch.cat(color).numpy()


def _search(
    matrices: dict[str, np.ndarray],
    queried: list[np.ndarray],
    sizes: Sizes,
    device: str,
    checked: int,
) -> Iterator[Row]:
    """One query and many at once, beside a copy on the device, `torch.cdist` and FAISS.

    Parameters
    ----------
    matrices : of each signal its features, N x D, float32
    queried : of each signal its features of the queries, Q x D
    sizes : how many runs
    device : the name of the device
    checked : queries whose answers must be those of `ExactEngine`
    """
    where = pick_device(device)
    signals = [Signal(n, x, "euclidean", WEIGHTS[n]) for n, x in matrices.items()]
    engine, plain = MatrixEngine(signals, where), PlainSearch(signals, where)
    exact = ExactEngine(signals)
    for i in range(checked):
        found, true = (search_one(e, queried, i, TOP_N).rows.tolist() for e in (engine, exact))
        if found != true:
            raise RuntimeError(f"the answer is {found}, that of cdist {true}")
    recall = recall_of(rows_of(engine.search(queried, TOP_N)), list(plain.search(queried, TOP_N)))
    if recall < 0.99:
        raise RuntimeError(f"only {recall:.3f} of the answers of torch.cdist are found")

    rows, width = len(matrices["deep"]), sum(x.shape[1] for x in matrices.values())
    size = 2 * rows * width  # in bf16
    copy = Copy(size, where)
    one: dict[str, Run] = {
        "here": lambda i: search_one(engine, queried, i, TOP_N),
        "plain": lambda i: plain.search([x[[i]] for x in queried], TOP_N),
        "copy": lambda _: copy(),
    }
    many: dict[str, Run] = {
        "here": lambda _: engine.search(queried, TOP_N),
        "plain": lambda _: plain.search(queried, TOP_N),
    }
    one |= {"faiss": flat} if (flat := _faiss_gpu(matrices, queried, device)) else {}
    single = interleaved(one, 5 * sizes.rounds)
    batch = interleaved(many, min(3, sizes.rounds))
    count = len(queried[0])
    collection = f"{rows:,} x {'+'.join(str(x.shape[1]) for x in matrices.values())}"
    copied = f"copy of {size / 1e9:.2f} GB on the device"
    what = f"one exact query, {collection}"
    yield compare_times(what, single["here"], copied, single["copy"], "<= 1.5")
    yield compare_times(what, single["here"], "torch.cdist and topk", single["plain"])
    if "faiss" in single:
        yield compare_times(what, single["here"], "FAISS GpuIndexFlatL2", single["faiss"])
    what = f"{count:,} exact queries at once, {collection}"
    yield compare_times(what, batch["here"], "torch.cdist and topk", batch["plain"], "<= 1")
    each = batch["here"] / count
    yield compare_times(f"{what}: each", each, copied, single["copy"], "<= 1.5")


class Copy:
    """A copy within the device's memory, as fast as it can be.

    Parameters
    ----------
    size : bytes
    device : where
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = max(1, size // COPY_BYTES)
        self.source = torch.zeros(size // self.count, dtype=torch.uint8, device=device)
        self.target = torch.empty_like(self.source)

    def __call__(self) -> None:
        for _ in range(self.count):
            self.target.copy_(self.source)


class PlainSearch:
    """Search by `torch.cdist` and `topk` in float32, on the device.

    Parameters
    ----------
    signals : the terms of the distance
    device : where
    """

    def __init__(self, signals: Sequence[Signal], device: torch.device) -> None:
        self.device = device
        self.weights = [signal.weight for signal in signals]
        self.features = [torch.from_numpy(signal.features).to(device) for signal in signals]

    def search(self, queries: Sequence[np.ndarray], k: int) -> np.ndarray:
        """Rows of the k nearest: Q x k, int64."""
        queried = [torch.from_numpy(q).to(self.device) for q in queries]
        rows, step = len(self.features[0]), max(k, CDIST_BYTES // (4 * len(queried[0])))
        found: list[tuple[Tensor, Tensor]] = []
        for start in range(0, rows, step):
            distances = sum(
                weight * torch.cdist(q, x[start : start + step])
                for weight, q, x in zip(self.weights, queried, self.features, strict=True)
            )
            best = torch.as_tensor(distances).topk(min(k, rows - start), largest=False)
            found.append((best.values, best.indices + start))
        values, indices = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        return indices.gather(1, values.topk(k, largest=False).indices).cpu().numpy()


def _faiss_gpu(
    matrices: dict[str, np.ndarray], queried: list[np.ndarray], device: str
) -> Run | None:
    """A query in FAISS on the GPU, by the embedding alone; None where it is not installed."""
    try:
        import faiss

        resources = faiss.StandardGpuResources()
    except (ImportError, AttributeError):  # the package for CPUs has no such class
        return None
    index = faiss.GpuIndexFlatL2(resources, DIM)
    index.add(matrices["deep"])
    return lambda i: index.search(queried[0][[i]], TOP_N)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__ or "", PARTS, "gpu.json")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    args = parser.parse_args(argv)
    facts = gpu_facts(pick_device(args.device))
    sizes = sizes_of(args, GPU)
    parts = {name: partial(PARTS[name], args.folder, sizes, args.device) for name in args.only}
    return measure(parts, facts, args.output)


if __name__ == "__main__":
    run_script(main)
