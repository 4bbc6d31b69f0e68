"""The graph (HNSW) of a feature database on disk, and the engine that walks along it.

Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical
Navigable Small World graphs", 2018.
"""

import hashlib
import json
import math
import mmap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import FiniteFloat, PositiveInt, TypeAdapter
from typing_extensions import TypedDict

from codes import METRICS
from index import Answer, Engine, ExactEngine, FeatureDatabase, Signal, unit_rows, weighted_sum
from utils import UserError, atomic_write, parsed_json, sha256_of

GRAPH = "models/graph.hnsw"
# The library is usearch: to a recall of 0.99 among 139,709 x 542 it walks 0.08 ms over 8-bit
# integers, FAISS 0.12 ms; hnswlib 0.10 to 0.15 ms over float32, which is four times the memory.
# It comes as a wheel, as hnswlib does not, and its file is mapped, not read.
LINKS = 32  # of a picture; with 16, the same recall takes four times the expansion
BUILT = 200  # expansion of the building; 400 doubles its time, and a query gains nothing
K = 10  # answers that the recall is measured of
AT_ONCE = 256  # queries
WALKED = 1 << 20  # pictures that walks reach at once
LEAST = 8  # pictures for each that is walked to, below which an exact search is faster
DIGEST = 32  # bytes of a SHA-256
_KIND = {"int8": "i8", "float16": "f16"}  # the library's names


@dataclass(frozen=True)
class Space:
    """Where the graph lies: the signals side by side in one vector, of integers or halves.

    The squared distance of two vectors stands for the weighted sum of the signals' distances. With
    the typical distance m of neighbours, w d is about w d² / 2m and a constant; a cosine distance
    is w |u - v|² / 2 for vectors u and v of length 1.

    Attributes
    ----------
    names, metrics : of the signals, those that have a weight
    factor, offset : D, float64; a vector is features * factor - offset
    dtype : int8; float16 where neighbours lie too close together for that
    """

    names: list[str]
    metrics: list[str]
    factor: np.ndarray
    offset: np.ndarray
    dtype: str

    def place(self, features: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors of Q rows before they are rounded: Q x D, float64."""
        pairs = zip(features, self.metrics, strict=True)
        rows = [unit_rows(x.astype(np.float64)) if m == "cosine" else x for x, m in pairs]
        vectors = np.concatenate(rows, axis=1, dtype=np.float64)
        vectors *= self.factor
        vectors -= self.offset
        return vectors

    def encode(self, features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of Q rows, Q x D, and whether they stand for them: Q, bool.

        They do not where a value is NaN, or beyond those of the collection; it is cut off then.
        """
        with np.errstate(invalid="ignore"):
            vectors = self.place(features)
        if self.dtype == "float16":
            vectors /= 128
        most = 127 if self.dtype == "int8" else 65504
        sound = np.abs(vectors).max(axis=1) <= most
        if not sound.all():
            vectors = np.fmax(np.fmin(vectors, most), -most)
        if self.dtype == "int8":
            np.rint(vectors, out=vectors)
        return vectors.astype(self.dtype), sound


class _Space(TypedDict):
    names: list[str]
    metrics: list[Literal["euclidean", "cosine"]]
    factor: list[FiniteFloat]
    offset: list[FiniteFloat]
    dtype: Literal["int8", "float16"]


class _Told(TypedDict):
    space: _Space
    expansion: PositiveInt
    candidates: PositiveInt
    recall: float
    distance: str
    features: dict[str, str]


_TOLD = TypeAdapter(_Told)


@dataclass(frozen=True)
class Graph:
    """A graph of a collection's pictures.

    Attributes
    ----------
    index : the usearch.index.Index; its keys are rows of the collection
    space : of its vectors
    expansion : pictures that the walk of a query for `K` answers keeps in sight
    candidates : of those, the nearest ones, ranked exactly
    recall : recall@10 of that against the exact engine, of queries like the collection's pictures;
        NaN where it could not be measured
    distance : in words, the distance that `recall` was measured with
    features : SHA-256 of each matrix of the feature database
    memory : what the index lies in, where it was opened
    """

    index: Any
    space: Space
    expansion: int
    candidates: int
    recall: float
    distance: str
    features: dict[str, str]
    memory: Any = field(default=None, compare=False)


def library() -> Any:
    try:
        import usearch.index
    except ImportError as error:
        raise UserError(
            f"the graph engine needs usearch ({error}); run: pip install -r requirements-graph.txt"
        ) from None
    return usearch.index


def used_signals(signals: Sequence[Signal]) -> list[Signal]:
    """The signals that have a weight; a UserError where a graph cannot stand for their metrics."""
    used = [signal for signal in signals if signal.weight]
    other = [f"{signal.name} {signal.metric}" for signal in used if signal.metric not in METRICS]
    if other or not used:
        raise UserError(
            f"a graph stands for {' and '.join(METRICS)} distances only, not for"
            f" {', '.join(other) or 'none'}: choose another --distance-metric or engine"
        )
    return used


def new_index(space: Space) -> Any:
    # A walk's expansion is the answers it is asked for: one number, that no other query changes.
    return library().Index(
        ndim=len(space.factor),
        metric="l2sq",
        dtype=_KIND[space.dtype],
        connectivity=LINKS,
        expansion_add=BUILT,
        expansion_search=1,
        enable_key_lookups=False,
    )


def save_graph(base: Path, graph: Graph) -> Path:
    """Write models/graph.hnsw: the library's file, then the rest as JSON, its length, a SHA-256."""
    path = base / GRAPH
    told = {name: getattr(graph, name) for name in vars(graph) if name not in ("index", "memory")}
    told["space"] = asdict(graph.space)
    text = json.dumps(told, default=np.ndarray.tolist).encode()
    with atomic_write(path) as part:
        try:
            graph.index.save(part)
        except RuntimeError as error:  # the library's word for a full disk
            raise UserError(f"{path}: cannot be written ({error})") from None
        with open(part, "ab") as file:
            file.write(text + len(text).to_bytes(8, "little"))
        digest = bytes.fromhex(sha256_of(part))
        with open(part, "ab") as file:
            file.write(digest)
    return path


def open_graph(database: FeatureDatabase, signals: Sequence[Signal]) -> Graph:
    """Map models/graph.hnsw, once its SHA-256 is seen to be right, which takes 0.1 s for 120 MB:
    on a damaged file the library may crash.

    Raises
    ------
    UserError : it is missing, damaged or of other features; the library is missing; a metric is
        neither euclidean nor cosine
    """
    library()
    used_signals(signals)
    path = database.base / GRAPH
    again = f"run: python graph.py --dataset-base {database.base}"
    if not path.is_file():
        raise UserError(f"{path}: no graph; {again}")
    try:
        with open(path, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        end = len(memory) - DIGEST
        with memoryview(memory) as view:
            if hashlib.sha256(view[:end]).digest() != view[end:]:
                raise ValueError("its SHA-256 is not the one it names")
        start = end - 8 - int.from_bytes(memory[end - 8 : end], "little")
        told = _TOLD.validate_python(parsed_json(memory[start : end - 8]))
        space = dict(told["space"])
        for name in ("factor", "offset"):
            space[name] = np.array(space[name], np.float64)
        told["space"] = Space(**space)
        index = new_index(told["space"])
        index.view(memory)
        graph = Graph(index=index, memory=memory, **told)
    except Exception as error:  # a damaged file raises many types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason}); {again}") from None
    widths = {signal.name: signal.features.shape[1] for signal in signals}
    width = sum(widths.get(name, -1) for name in graph.space.names)
    sizes = {width, len(graph.space.factor), len(graph.space.offset), index.ndim}
    counts = {len(graph.space.names), len(graph.space.metrics)}
    other = len(index) > len(signals[0].features)
    if graph.features != database.info["sha256"] or len(sizes) + len(counts) > 2 or other:
        raise UserError(f"{path}: a graph of other features; {again}")
    return graph


def walk(index: Any, vectors: np.ndarray, expansion: int) -> list[np.ndarray]:
    """Of each vector the rows that a walk along the graph reaches, nearest first: int64."""
    threads = min(torch.get_num_threads(), len(vectors))
    found = index.search(vectors, expansion, threads=threads)
    keys = found.keys.view(np.int64)
    if len(vectors) == 1:  # the library leaves this axis out
        return [keys]
    return [own[:count] for own, count in zip(keys, found.counts.tolist(), strict=True)]


class GraphEngine:
    """Ranks the pictures that a walk along the graph reaches, exactly.

    Parameters
    ----------
    signals : the terms of the distance; it may be another one than the graph was made for
    graph : of their features
    exact : answers where a walk does not pay or lead anywhere; None: an `ExactEngine`
    """

    def __init__(
        self, signals: Sequence[Signal], graph: Graph, exact: Engine | None = None
    ) -> None:
        self.signals = signals
        self.weights = [signal.weight for signal in signals]
        self.graph = graph
        self.exact = exact or ExactEngine(signals)
        names = [signal.name for signal in signals]
        self.used = [names.index(name) for name in graph.space.names]

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`; what the walk does not reach is missed.

        With `rows`, it goes on until enough of them are reached. An answer is exact where the
        candidates cannot tell it: where the last of them are as near as the k-th.
        """
        member = None
        if rows is not None:
            member = np.zeros(len(self.signals[0].features), bool)
            member[rows] = True
        answers = []
        for start in range(0, len(queries[0]), AT_ONCE):
            block = [features[start : start + AT_ONCE] for features in queries]
            answers += self._search(block, k, rows, member)
        return answers

    def _search(
        self,
        queries: Sequence[np.ndarray],
        k: int,
        rows: np.ndarray | None,
        member: np.ndarray | None,
    ) -> list[Answer]:
        total = len(self.signals[0].features)
        count = total if rows is None else len(rows)
        more = max(k / K, 1.0)
        wanted = math.ceil(self.graph.candidates * more)
        expansion = math.ceil(self.graph.expansion * more * total / max(count, 1))
        answers: list[Answer | None] = [None] * len(queries[0])
        vectors, sound = self.graph.space.encode([queries[i] for i in self.used])
        left = sound.nonzero()[0].tolist()
        while left and LEAST * expansion <= count:
            short = []
            step = max(1, WALKED // expansion)
            for start in range(0, len(left), step):
                some = left[start : start + step]
                found = walk(self.graph.index, vectors[some], expansion)
                for i, near in zip(some, found, strict=True):
                    own = near if member is None else near[member[near]]
                    if len(own) < wanted:
                        short.append(i)
                    else:
                        query = [features[i : i + 1] for features in queries]
                        answers[i] = self._rank(query, np.sort(own[:wanted]), k)
            left, expansion = short, 2 * expansion
        rest = [i for i, answer in enumerate(answers) if answer is None]
        if rest:
            exact = self.exact.search([features[rest] for features in queries], k, rows)
            for i, answer in zip(rest, exact, strict=True):
                answers[i] = answer
        return answers

    def _rank(self, query: Sequence[np.ndarray], rows: np.ndarray, k: int) -> Answer | None:
        """The k nearest of some more rows, ascending; None where others may be as near as those."""
        pairs = zip(self.signals, query, strict=True)
        parts = np.concatenate([signal.distances(features, rows) for signal, features in pairs])
        distances = weighted_sum(parts, self.weights)
        order = np.argsort(distances, kind="stable")
        if not distances[order[k - 1]] < distances[order[-1]]:
            return None
        order = order[:k]
        return Answer(rows[order], distances[order], parts[:, order].T)
