"""Exact search by a scan of 8-bit features; what their error cannot exclude is ranked exactly.

The distance of a query to a picture differs from that to the picture's quantised features (see
`quantised.py`) by no more than their error: the triangle inequality. So the scan reads a quarter of
the bytes, and few pictures are left to rank by their true distances.
"""

from collections.abc import Sequence
from functools import lru_cache
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


def _slack(query: Quantised, quantised: Quantised) -> float:
    """The error of distances that comes from one quantised query; infinite where it has none."""
    lost, both = float(query.error), quantised.max_norm + query.max_norm
    if quantised.metric == "cosine":
        # |x q - x' q'| <= |x - x'| |q| + |x'| |q - q'|, and x' may be longer than 1
        return lost * max(1.0, quantised.max_norm**0.5) * (1 + 1e-6) + 16 * ROUNDING * both
    # The error of a square root is at most the square root of the error.
    return lost + (16 * ROUNDING * both) ** 0.5 + 8 * ROUNDING * both**0.5


def _take(tensor: Tensor, places: Places) -> Tensor:
    """Rows of a tensor; a view where they are one range."""
    parts = [tensor[place] for place in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _distances(query: Quantised, quantised: Quantised, places: Places) -> Tensor:
    """Distances of a quantised query to quantised pictures: n, float32."""
    # Range by range: a copy of the features would cost as much as their scan.
    products = [torch._int_mm(quantised.values[place], query.values.T) for place in places]
    dot = torch.cat(products)[:, 0].float().mul_(_take(quantised.scale, places))
    if quantised.metric == "cosine":
        return dot.mul_(-query.scale).add_(1)
    norm = _take(quantised.norm, places)
    return dot.mul_(-2 * query.scale).add_(norm).add_(query.norm).relu_().sqrt_()


@lru_cache(1)  # one for all engines of a collection
def _places(count: int) -> Tensor:
    return torch.arange(count)


def _few_smallest(values: Tensor, k: int) -> Tensor:
    """Places of k small values of n, one of each group: sooner found than the k smallest."""
    size = max(1, min(32, len(values) // (4 * k)))
    groups = values[: len(values) // size * size].view(-1, size)
    group = groups.amin(dim=1).topk(k, largest=False).indices
    return size * group + groups[group].argmin(dim=1)


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
        self.places = _places(len(signals[0].features))
        self.order = self.places.numpy() if order is None else order
        self.used = [i for i, signal in enumerate(signals) if signal.weight]
        self.weights = [signals[i].weight for i in self.used]
        self.quantised = quantised

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`."""
        count = len(self.places) if rows is None else len(rows)
        if count < MIN_SHARE * k:
            return self.exact.search(queries, k, rows)
        size = sum(self.exact.signals[i].features.nbytes for i in self.used)
        if len(queries[0]) >= MIN_QUERIES and size <= MAX_COPY:
            return self.matrix.search(queries, k, rows)
        places: Places = [slice(0, count) if rows is None else torch.from_numpy(rows)]
        each = range(len(queries[0]))
        return [self.search_places([q[i : i + 1] for q in queries], k, places) for i in each]

    def search_places(self, query: Sequence[np.ndarray], k: int, places: Places) -> Answer:
        """The nearest of one query among the pictures at some places of the quantised features.

        Signal by signal, what the sum so far excludes from the k nearest is dropped: the others add
        to it, and the true distances of any k pictures bound that of the k-th.
        """
        left, slack = _take(self.places, places), 0.0
        total, radius = torch.zeros(1), torch.zeros(1)
        for i, weight, own in zip(self.used, self.weights, self.quantised, strict=True):
            one = quantise(query[i], own.metric)
            total = _distances(one, own, places).mul_(weight).add_(total)
            slack += weight * _slack(one, own)
            error = _take(own.error, places)
            radius = torch.add(radius, error, alpha=weight * (1 + 4 * ROUNDING))
            near = left[_few_smallest(total + radius, k)]
            true = self.exact.distances(query, self.order[near.numpy()])
            most = np.where(np.isnan(true), np.inf, true).max()  # NaN comes after all others
            most += 1e-9 * (sum(self.weights) + abs(most))  # the rounding of `cdist`
            kept = torch.nonzero(total - radius <= (most + slack) * (1 + 4 * ROUNDING))[:, 0]
            left, total, radius = left[kept], total[kept], radius[kept]
            places = [left]
            if len(left) <= MIN_SHARE * k:
                break
        (answer,) = self.exact.search(query, k, np.sort(self.order[left.numpy()]))
        return answer


def exact_engine(
    database: FeatureDatabase,
    signals: Sequence[Signal],
    device: torch.device | None = None,
    copies: Copies | None = None,
) -> Engine:
    """The fastest engine that ranks every picture; `device` and `copies`: see `MatrixEngine`."""
    if device and device.type == "cuda" and all(signal.metric in METRICS for signal in signals):
        return MatrixEngine(signals, device, copies)
    quantised = open_quantised(database, signals)
    return ScanEngine(signals, quantised, copies=copies) if quantised else ExactEngine(signals)
