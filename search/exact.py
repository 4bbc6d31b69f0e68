"""Exact search by a scan of 8-bit features; what their error cannot exclude is ranked exactly.

The distance of a query to a picture differs from that to the picture's codes (see `codes.py`) by no
more than their error: the triangle inequality. So the scan reads a quarter of the bytes, and few
pictures are left to rank by their true distances.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from features.database import FeatureDatabase
from network.device import cpu_has_bf16
from search.engine import Answer, Engine, ExactEngine
from search.prune import Pruner, bounded, farthest
from search.quantised import ENCODED, FAR, LEVELS, ROUNDING, Codes, open_codes
from search.signals import Signal

SCANNED = 1 << 19  # distances scanned at once, so that they stay in the processor's cache
AT_ONCE = 64  # queries
MANY = 128  # queries, from which on they are pruned together where 16-bit products are quick
PRUNED = 1024  # queries pruned at once
LEAST = 64  # pictures for each answer, below which a scan does not pay


@dataclass(frozen=True)
class _Asked:
    """Q queries of one signal, coded; `slack` is how much the scan may be off because of them."""

    columns: Tensor  # D x Q, int8
    step: Tensor  # Q
    norm: Tensor  # Q
    slack: np.ndarray  # Q


def _ask(queries: np.ndarray, codes: Codes) -> _Asked:
    """Queries, Q x D, without NaN, infinity or (cosine) zero length."""
    q = np.asarray(queries, np.float64)
    if codes.metric == "cosine":
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
    step = np.maximum(np.abs(q).max(axis=1), 1e-15) / LEVELS
    step = step.astype(np.float32).astype(np.float64)
    whole = np.rint(q / step[:, None]).clip(-LEVELS, LEVELS)
    decoded = whole * step[:, None]
    norm = (decoded**2).sum(axis=1)
    missed = np.linalg.norm(q - decoded, axis=1)
    both = codes.most + norm
    if codes.metric == "cosine":
        # |x q - x' q'| <= |x - x'| |q| + |x'| |q - q'|, and x' may be longer than 1
        slack = missed * max(1.0, codes.most**0.5) * (1 + 1e-6) + 16 * ROUNDING * both
    else:  # the error of a square root is at most the square root of the error
        slack = missed + np.sqrt(16 * ROUNDING * both) + 8 * ROUNDING * np.sqrt(both)
    return _Asked(
        torch.from_numpy(whole.astype(np.int8)).T,
        torch.from_numpy(step.astype(np.float32)),
        torch.from_numpy(norm.astype(np.float32)),
        slack,
    )


Places = Sequence[slice] | Tensor  # of pictures among the codes: stretches, or one by one


def _take(tensor: Tensor, places: Places) -> Tensor:
    """Rows of a tensor; a view where they are one stretch."""
    if isinstance(places, Tensor):
        return tensor[places]
    parts = [tensor[place] for place in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _chunks(places: Places, size: int) -> list[Places]:
    """The places in parts of up to `size` each; together where they are no more than that."""
    if isinstance(places, Tensor):
        return list(places.split(size))
    if sum(place.stop - place.start for place in places) <= size:
        return [places]
    return [
        [slice(start, min(start + size, place.stop))]
        for place in places
        for start in range(place.start, place.stop, size)
    ]


def _distances(codes: Codes, asked: _Asked, places: Places) -> Tensor:
    """Distances of coded pictures to coded queries: n x Q, float32."""
    if isinstance(places, Tensor):
        products = torch._int_mm(codes.values[places], asked.columns)
    else:  # stretch by stretch: a copy of the codes would cost as much as their scan
        parts = [torch._int_mm(codes.values[place], asked.columns) for place in places]
        products = parts[0] if len(parts) == 1 else torch.cat(parts)
    dot = products.float().mul_(_take(codes.scale, places)[:, None])
    if codes.metric == "cosine":
        return dot.mul_(-asked.step).add_(1)
    norm = _take(codes.norm, places)[:, None]
    return torch.addcmul(norm, dot, -2 * asked.step, out=dot).add_(asked.norm).relu_().sqrt_()


class ScanEngine:
    """Ranks every picture as `ExactEngine` does, ties included, and reads less to do so.

    Parameters
    ----------
    signals : the terms of the distance
    codes : of each signal that has a weight, in their order
    order : see `open_codes`
    """

    def __init__(
        self, signals: Sequence[Signal], codes: Sequence[Codes], order: np.ndarray | None = None
    ) -> None:
        self.exact = ExactEngine(signals)
        self.codes = codes
        self.order = order
        self.used = [i for i, signal in enumerate(signals) if signal.weight]
        self.weights = [signals[i].weight for i in self.used]
        self.radius = torch.zeros(len(signals[0].features))
        for code, weight in zip(codes, self.weights, strict=True):
            self.radius.add_(code.error, alpha=weight * (1 + 4 * ROUNDING))
        self.gaps = bool(self.radius.isinf().any())

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`."""
        count = len(self.radius) if rows is None else len(rows)
        if count < LEAST * k:
            return self.exact.search(queries, k, rows)
        places = [slice(0, count)] if rows is None else torch.from_numpy(rows)
        answers: list[Answer] = []
        for block in _parts(queries, PRUNED):
            many = rows is None and len(block[0]) >= MANY and cpu_has_bf16()
            found = self._search_many(block, k) if many else None
            if found is None:
                found = [
                    a for few in _parts(block, AT_ONCE) for a in self.search_places(few, k, places)
                ]
            answers += found
        return answers

    def _search_many(self, queries: Sequence[np.ndarray], k: int) -> list[Answer] | None:
        """The nearest of the whole collection; None where pruning does not pay."""
        asked = [queries[i] for i in self.used]
        pairs = list(zip(asked, self.codes, strict=True))
        if not all(_scannable(q, code.metric).all() for q, code in pairs):
            return None
        main, code = pairs[0]
        rounded, missed = bounded(main, code.metric)
        near = self.pruner.sample(rounded, k).numpy()
        most = torch.from_numpy(self._farthest(asked, near) / self.weights[0])
        found = self.pruner.candidates(rounded, missed, most)
        if found is None:
            return None
        answers = []
        for i, places in enumerate(found):
            rows = places.numpy()
            rows = rows if self.order is None else np.sort(self.order[rows])
            answers += self.exact.search([q[i : i + 1] for q in queries], k, rows)
        return answers

    @cached_property
    def pruner(self) -> Pruner:
        """Of the first signal, by which many queries are pruned."""
        return Pruner(self.codes[0])

    def search_places(self, queries: Sequence[np.ndarray], k: int, places: Places) -> list[Answer]:
        """The nearest among the pictures at some places of the codes; see `Engine.search`."""
        asked = [queries[i] for i in self.used]
        scannable = np.logical_and.reduce(
            [_scannable(q, code.metric) for q, code in zip(asked, self.codes, strict=True)]
        )
        able = [q[scannable] for q in asked]
        if len(able[0]) == 1:
            left = self._by_first(able, k, places)
            many = len(self.codes) > 1 and len(left) > LEAST * k
            found = iter(self._candidates(able, k, left) if many else [left.numpy()])
        else:
            found = iter(self._candidates(able, k, places))
        answers = []
        for i, can in enumerate(scannable.tolist()):
            left = next(found) if can else _take(torch.arange(len(self.radius)), places).numpy()
            rows = left if self.order is None else self.order[left]
            answers += self.exact.search([q[i : i + 1] for q in queries], k, np.sort(rows))
        return answers

    def _by_first(self, query: Sequence[np.ndarray], k: int, places: Places) -> Tensor:
        """The places that the first signal alone cannot exclude from the k nearest of one query.

        The other signals add to the distance; the k nearest by the first one, with all signals,
        tell how far a picture may be.
        """
        code, weight = self.codes[0], self.weights[0]
        own = _ask(query[0], code)
        near = [_distances(code, own, chunk) for chunk in _chunks(places, SCANNED)]
        near = near[0][:, 0] if len(near) == 1 else torch.cat(near)[:, 0]
        few = max(1, min(32, len(near) // (4 * k)))
        known = near
        if self.gaps:  # a picture without a distance tells nothing of how far others may be
            known = near.masked_fill(_take(self.radius, places).isinf(), torch.inf)
        groups = known[: len(near) // few * few].view(-1, few)
        group = groups.amin(dim=1).topk(k, largest=False).indices
        best = _place(places, few * group + groups[group].argmin(dim=1)).numpy()
        most = self._farthest(query, best[:, None])[0] / weight
        limit = (most + own.slack[0]) * (1 + 4 * ROUNDING)
        lower = near.sub_(_take(code.error, places), alpha=1 + 4 * ROUNDING)
        return _place(places, torch.nonzero(lower <= limit)[:, 0])

    def _farthest(self, asked: Sequence[np.ndarray], places: np.ndarray) -> np.ndarray:
        """The greatest distance, Q, of queries to some pictures of their own, k x Q places."""
        rows = places if self.order is None else self.order[places]
        terms = [
            (q, self.exact.signals[i].features, code.metric, weight)
            for q, i, code, weight in zip(asked, self.used, self.codes, self.weights, strict=True)
        ]
        return farthest(terms, rows)

    def _candidates(
        self, queries: Sequence[np.ndarray], k: int, places: Places
    ) -> list[np.ndarray]:
        """Of each query the places that may be among its k nearest.

        A picture's true distance is at most `upper` and at least `lower`; whoever has k others
        with an upper bound below its own lower bound is out.
        """
        count = len(queries[0])
        if not count:
            return []
        asked = [_ask(q, code) for q, code in zip(queries, self.codes, strict=True)]
        slack = sum(w * a.slack for w, a in zip(self.weights, asked, strict=True))
        slack = torch.from_numpy(np.asarray(slack, np.float32) * (1 + 4 * ROUNDING))
        best = torch.full((k, count), torch.inf)
        left = []
        for chunk in _chunks(places, max(SCANNED // count, ENCODED)):
            terms = zip(self.codes, self.weights, asked, strict=True)
            code, weight, own = next(terms)
            total = _distances(code, own, chunk)
            total = total if weight == 1 else total.mul_(weight)
            for code, weight, own in terms:
                total.add_(_distances(code, own, chunk), alpha=weight)
            radius = _take(self.radius, chunk)[:, None]
            upper = total + radius
            # The nearest of each few pictures are enough, as each bounds a picture of its own.
            few = max(1, min(32, len(upper) // (4 * k)))
            nearest = upper[: len(upper) // few * few].view(-1, few, count).amin(dim=1)
            best = torch.cat([best, nearest]).topk(k, dim=0, largest=False).values
            lower = total.sub_(radius)
            near, query = torch.nonzero(lower <= best[k - 1] + 2 * slack, as_tuple=True)
            left.append((_place(chunk, near), query, lower[near, query]))
        place, query, lower = (torch.cat(parts) for parts in zip(*left, strict=True))
        kept = lower <= (best[k - 1] + 2 * slack)[query]
        place, query = place[kept].numpy(), query[kept].numpy()
        by_query = np.argsort(query, kind="stable")
        ends = np.bincount(query, minlength=count).cumsum()
        return np.split(place[by_query], ends[:-1])


def exact_engine(database: FeatureDatabase, signals: Sequence[Signal]) -> Engine:
    """The fastest engine that ranks every picture of a feature database."""
    codes = open_codes(database, signals)
    return ScanEngine(signals, codes) if codes else ExactEngine(signals)


def _parts(queries: Sequence[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Queries of all signals, up to `size` at once."""
    for start in range(0, len(queries[0]), size):
        yield [features[start : start + size] for features in queries]


def _place(chunk: Places, near: Tensor) -> Tensor:
    """Places among the codes of pictures that are numbered within a chunk."""
    if isinstance(chunk, Tensor):
        return chunk[near]
    if len(chunk) == 1:
        return near + chunk[0].start
    ends = np.cumsum([place.stop - place.start for place in chunk])
    shift = np.array([place.stop for place in chunk]) - ends
    return near + torch.from_numpy(shift[np.searchsorted(ends, near.numpy(), side="right")])


def _scannable(queries: np.ndarray, metric: str) -> np.ndarray:
    """Whether a scan can bound a query's distances: Q, bool."""
    most = np.abs(queries).max(axis=1)
    return (most < FAR) & ((most > 0) | (metric != "cosine"))
