"""Exact search by a scan of 8-bit features; what their error cannot exclude is ranked exactly.

The distance of a query to a picture differs from that to the picture's quantised features (see
`quantised.py`) by no more than their error: the triangle inequality. So the scan reads a quarter of
the bytes, and few pictures are left to rank by their true distances.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from features.database import FeatureDatabase
from search.engine import Answer, Engine, ExactEngine
from search.low_precision import Copies
from search.matrix import MIN_SHARE, MatrixEngine
from search.quantised import METRICS, ROUNDING, Quantised, open_quantised, quantise
from search.signals import Signal

MIN_QUERIES = 64  # from which on matrix products are faster than a scan for each
MAX_COPY = 4 << 30  # bytes of float32 features, beyond which a copy would take too much memory

Places = Sequence[Any]  # of the quantised features: slices, or one tensor of places


@dataclass(frozen=True)
class _Query:
    """One quantised query of one signal; `slack` is the error of distances that comes from it."""

    column: Tensor  # D x 1, int8
    step: float
    norm: float
    slack: float  # infinite where a scan cannot bound the query's distances


def _quantise(query: np.ndarray, quantised: Quantised) -> _Query:
    """A query, 1 x D."""
    one = quantise(query, quantised.metric)
    step, norm, lost = float(one.scale), float(one.norm), float(one.error)
    both = quantised.max_norm + norm
    if quantised.metric == "cosine":
        # |x q - x' q'| <= |x - x'| |q| + |x'| |q - q'|, and x' may be longer than 1
        slack = lost * max(1.0, quantised.max_norm**0.5) * (1 + 1e-6) + 16 * ROUNDING * both
    else:  # the error of a square root is at most the square root of the error
        slack = lost + (16 * ROUNDING * both) ** 0.5 + 8 * ROUNDING * both**0.5
    return _Query(one.values.T, step, norm, slack)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _take(tensor: Tensor, places: Places) -> Tensor:
    """Rows of a tensor; a view where they are one range."""
    return _joined([tensor[place] for place in places])


def _distances(quantised: Quantised, query: _Query, places: Places) -> Tensor:
    """Distances of quantised pictures to a quantised query: n, float32."""
    # Range by range: a copy of the features would cost as much as their scan.
    products = [torch._int_mm(quantised.values[place], query.column) for place in places]
    dot = _joined(products)[:, 0].float().mul_(_take(quantised.scale, places))
    if quantised.metric == "cosine":
        return dot.mul_(-query.step).add_(1)
    norm = _take(quantised.norm, places)
    return dot.mul_(-2 * query.step).add_(norm).add_(query.norm).relu_().sqrt_()


class ScanEngine:
    """Ranks every picture as `ExactEngine` does, ties included, and reads less to do so.

    Parameters
    ----------
    signals : the terms of the distance
    quantised : of each signal that has a weight, in their order
    order : see `open_quantised`
    copies : see `MatrixEngine`, which answers many queries at once
    """

    def __init__(
        self,
        signals: Sequence[Signal],
        quantised: Sequence[Quantised],
        order: np.ndarray | None = None,
        copies: Copies | None = None,
    ) -> None:
        self.exact = ExactEngine(signals)
        self.matrix = MatrixEngine(signals, copies=copies)
        self.quantised = quantised
        self.order = order
        self.used = [i for i, signal in enumerate(signals) if signal.weight]
        self.weights = [signals[i].weight for i in self.used]
        self.radius = torch.zeros(len(signals[0].features))
        for own, weight in zip(quantised, self.weights, strict=True):
            self.radius.add_(own.error, alpha=weight * (1 + 4 * ROUNDING))
        self.gaps = bool(self.radius.isinf().any())

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`."""
        count = len(self.radius) if rows is None else len(rows)
        if count < MIN_SHARE * k:
            return self.exact.search(queries, k, rows)
        size = sum(self.exact.signals[i].features.nbytes for i in self.used)
        if len(queries[0]) >= MIN_QUERIES and size <= MAX_COPY:
            return self.matrix.search(queries, k, rows)
        places: Places = [slice(0, count) if rows is None else torch.from_numpy(rows)]
        each = range(len(queries[0]))
        return [self.search_places([q[i : i + 1] for q in queries], k, places) for i in each]

    def search_places(self, query: Sequence[np.ndarray], k: int, places: Places) -> Answer:
        """The nearest of one query among the pictures at some places of the quantised features."""
        pairs = zip(self.used, self.quantised, strict=True)
        queries = [_quantise(query[i], own) for i, own in pairs]
        if all(np.isfinite(one.slack) for one in queries):
            left = self._by_first(query, queries[0], k, places)
            if len(queries) > 1 and len(left) > MIN_SHARE * k:
                left = self._by_all(queries, k, left)
        else:
            left = _take(torch.arange(len(self.radius)), places)
        (answer,) = self.exact.search(query, k, np.sort(self._rows(left)))
        return answer

    def _rows(self, places: Tensor) -> np.ndarray:
        """Rows of the collection at places of the quantised features."""
        return places.numpy() if self.order is None else self.order[places.numpy()]

    def _by_first(
        self, query: Sequence[np.ndarray], first: _Query, k: int, places: Places
    ) -> Tensor:
        """The places that the first signal alone cannot exclude from the k nearest of one query.

        The other signals add to the distance. The k nearest by the first one bound the k-th
        distance by that of all signals.
        """
        quantised, weight = self.quantised[0], self.weights[0]
        near = _distances(quantised, first, places)
        size = max(1, min(32, len(near) // (4 * k)))
        known = near
        if self.gaps:  # a picture without a distance bounds nothing
            known = near.masked_fill(_take(self.radius, places).isinf(), torch.inf)
        groups = known[: len(near) // size * size].view(-1, size)
        group = groups.amin(dim=1).topk(k, largest=False).indices
        best = _place(places, size * group + groups[group].argmin(dim=1))
        total = self.exact.distances(query, self._rows(best))[0]
        most = np.where(np.isnan(total), np.inf, total).max()  # NaN comes after all others
        most += 1e-9 * (sum(self.weights) + abs(most))  # the rounding of `cdist`
        limit = (most / weight + first.slack) * (1 + 4 * ROUNDING)
        lower = near.sub_(_take(quantised.error, places), alpha=1 + 4 * ROUNDING)
        return _place(places, torch.nonzero(lower <= limit)[:, 0])

    def _by_all(self, queries: Sequence[_Query], k: int, places: Tensor) -> Tensor:
        """The places that all signals together cannot exclude.

        A picture's true distance lies within `radius` and the queries' slack of the quantised one;
        a picture is out if k others have an upper bound below its lower bound.
        """
        total = torch.zeros(len(places))
        for quantised, weight, query in zip(self.quantised, self.weights, queries, strict=True):
            total.add_(_distances(quantised, query, [places]), alpha=weight)
        slack = sum(w * query.slack for w, query in zip(self.weights, queries, strict=True))
        radius = self.radius[places]
        limit = (total + radius).topk(k, largest=False).values[-1]
        return places[total - radius <= limit + 2 * slack * (1 + 4 * ROUNDING)]


def exact_engine(
    database: FeatureDatabase,
    signals: Sequence[Signal],
    device: torch.device | None = None,
    copies: Copies | None = None,
) -> Engine:
    """The fastest engine that ranks every picture of a feature database.

    Parameters
    ----------
    database : the features
    signals : of them
    device, copies : see `MatrixEngine`
    """
    if device and device.type == "cuda" and all(signal.metric in METRICS for signal in signals):
        return MatrixEngine(signals, device, copies)
    quantised = open_quantised(database, signals)
    return ScanEngine(signals, quantised, copies=copies) if quantised else ExactEngine(signals)


def _place(places: Places, near: Tensor) -> Tensor:
    """Places of pictures that are numbered within some places."""
    if len(places) == 1:
        (first,) = places
        return first[near] if isinstance(first, Tensor) else near + first.start
    ends = np.cumsum([place.stop - place.start for place in places])
    shift = np.array([place.stop for place in places]) - ends
    return near + torch.from_numpy(shift[np.searchsorted(ends, near.numpy(), side="right")])
