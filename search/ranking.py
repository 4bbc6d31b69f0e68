"""Whole galleries in order, for evaluation: matrix products instead of `cdist`.

|q - x|^2 = |q|^2 + |x|^2 - 2 q.x in float64 is off by rounding; what that could have put in another
order is ranked by `cdist` again.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from search.engine import Answer, ExactEngine
from search.signals import Signal

METRICS = ("euclidean", "cosine")
NEAR = 1e-3  # of the longest vector: shorter distances lose too many digits
TOLERANCE = 1e-8  # of the longest vector: far over the rounding of longer ones
MEMORY = 64 << 20  # bytes of a matrix of distances


class RankingEngine:
    """Ranks a whole gallery as `ExactEngine` does; distances equal to 1e-8 of the vectors' length.

    Parameters
    ----------
    signals : the terms of the distance, with a metric of `METRICS`
    """

    def __init__(self, signals: Sequence[Signal]) -> None:
        self.exact = ExactEngine(signals)
        self.weights = self.exact.weights
        self.gallery = [_prepared(signal.features, signal.metric) for signal in signals]
        # Beyond these, and for NaN, there is no telling what rounding does.
        self.sound = all(bool(torch.isfinite(norm).all()) for _, norm in self.gallery)

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`; fast where all of the gallery is asked for."""
        count = len(self.gallery[0][0])
        if rows is not None or k < count or not self.sound:
            return self.exact.search(queries, k, rows)
        answers = []
        step = max(1, MEMORY // (8 * max(count, 1)))
        for start in range(0, len(queries[0]), step):
            answers += self._ranked([features[start : start + step] for features in queries])
        return answers

    def _ranked(self, queries: Sequence[np.ndarray]) -> list[Answer]:
        total, parts, near, tolerance = None, [], None, 0.0
        for signal, weight, features, (gallery, norm) in zip(
            self.exact.signals, self.weights, queries, self.gallery, strict=True
        ):
            asked, own = _prepared(features, signal.metric)
            if not torch.isfinite(own).all():
                return self.exact.search(queries, len(gallery))
            square = torch.addmm(norm[None], asked, gallery.T, alpha=-2).add_(own[:, None])
            length = float(torch.cat([norm, own]).max()) ** 0.5
            close = square < (NEAR * length) ** 2
            cosine = signal.metric == "cosine"
            part = square.div_(2) if cosine else square.clamp_(min=0).sqrt_()
            parts.append(part)
            if weight:
                total = part * weight if total is None else total.add_(part, alpha=weight)
                near = close if near is None else near.logical_or_(close)
                tolerance += weight * TOLERANCE * length
        if total is None:
            return self.exact.search(queries, len(self.gallery[0][0]))
        return [
            self._settled(
                [features[i : i + 1] for features in queries],
                total[i].numpy(),
                torch.stack([part[i] for part in parts], 1).numpy(),
                near[i].numpy(),
                tolerance,
            )
            for i in range(len(total))
        ]

    def _settled(
        self,
        query: Sequence[np.ndarray],
        total: np.ndarray,
        parts: np.ndarray,
        near: np.ndarray,
        tolerance: float,
    ) -> Answer:
        """One query's answer: what is too near to it, or to another, is computed by `cdist`."""
        order = total.argsort()
        alike = np.diff(total[order]) <= tolerance
        doubtful = np.zeros(len(total), bool)
        doubtful[order[1:][alike]] = doubtful[order[:-1][alike]] = True
        doubtful |= near
        rows = np.flatnonzero(doubtful)
        if len(rows):
            exact = self.exact.parts(query, rows)[:, 0]
            parts[rows] = exact.T
            total[rows] = sum(w * part for w, part in zip(self.weights, exact, strict=True) if w)
            order = order[total[order].argsort(kind="stable")]  # quick, as little changes
            sorted_total = total[order]
            equal = sorted_total[1:] == sorted_total[:-1]
            tied = np.append(equal, False) | np.append(False, equal)
            order[tied] = order[tied][np.lexsort((order[tied], sorted_total[tied]))]
        return Answer(order, total[order], parts[order])


def _prepared(features: np.ndarray, metric: str) -> tuple[Tensor, Tensor]:
    """Vectors in float64, of length 1 for the cosine, and their squared lengths."""
    x = torch.from_numpy(np.asarray(features, np.float64))
    if metric == "cosine":
        x = x / x.norm(dim=1, keepdim=True)
    return x, (x**2).sum(dim=1)
