"""A whole collection in order: distances of matrix products in float64, settled by `cdist`.

|q - x|^2 = |q|^2 + |x|^2 - 2 q.x is off by rounding; pictures that this could put in another order
are ranked again by `cdist`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from search.engine import Answer, ExactEngine
from search.signals import weighted_sum

MIN_DISTANCE = 1e-3  # of the longest vector: shorter distances lose too many digits
TOLERANCE = 1e-8  # of the longest vector: far over the rounding of longer distances
MEMORY = 64 << 20  # bytes of a matrix of distances


class GalleryOrder:
    """Orders all pictures as `cdist` and a stable `argsort` do.

    Parameters
    ----------
    exact : ranks the same pictures by Euclidean and cosine distances
    device : where the products are made; it must know float64
    """

    def __init__(self, exact: ExactEngine, device: torch.device) -> None:
        self.exact = exact
        self.device = device
        self.gallery = [self._prepared(s.features, s.metric) for s in exact.signals]
        # Of infinity and NaN, and of squares beyond float64, no rounding is known.
        self.finite = all(bool(torch.isfinite(norm).all()) for _, norm in self.gallery)

    def search(self, queries: Sequence[np.ndarray]) -> list[Answer]:
        """All pictures for each query; the distances are true to 1e-8 of the longest vector."""
        count = len(self.exact.signals[0].features)
        if not self.finite:
            return self.exact.search(queries, count)
        step = max(1, MEMORY // (8 * max(count, 1)))
        answers = []
        for start in range(0, len(queries[0]), step):
            answers += self._ordered([features[start : start + step] for features in queries])
        return answers

    def _prepared(self, features: np.ndarray, metric: str) -> tuple[Tensor, Tensor]:
        """Vectors in float64, of length 1 for the cosine, and their squared lengths."""
        x = torch.tensor(np.asarray(features, np.float64), device=self.device)
        if metric == "cosine":
            x /= x.norm(dim=1, keepdim=True)
        return x, x.square().sum(dim=1)

    @torch.inference_mode()
    def _ordered(self, queries: Sequence[np.ndarray]) -> list[Answer]:
        shape = (len(queries[0]), len(self.exact.signals[0].features))
        total = torch.zeros(shape, dtype=torch.float64, device=self.device)
        near = torch.zeros(shape, dtype=torch.bool, device=self.device)
        parts, tolerance = [], 0.0
        for signal, features, (gallery, norm) in zip(
            self.exact.signals, queries, self.gallery, strict=True
        ):
            q, own = self._prepared(features, signal.metric)
            if not torch.isfinite(own).all():
                return self.exact.search(queries, len(gallery))
            square = torch.addmm(norm[None], q, gallery.T, alpha=-2).add_(own[:, None])
            length = float(torch.cat([norm, own]).max()) ** 0.5
            close = square < (MIN_DISTANCE * length) ** 2
            cosine = signal.metric == "cosine"
            parts.append(square.div_(2) if cosine else square.clamp_(min=0).sqrt_())
            if signal.weight:
                total.add_(parts[-1] * signal.weight)
                near.logical_or_(close)
                tolerance += abs(signal.weight) * TOLERANCE * length
        columns = (total.cpu().numpy(), torch.stack(parts, 2).cpu().numpy(), near.cpu().numpy())
        return [
            self._settled([f[i : i + 1] for f in queries], *own, tolerance)
            for i, own in enumerate(zip(*columns, strict=True))
        ]

    def _settled(
        self,
        query: Sequence[np.ndarray],
        total: np.ndarray,
        parts: np.ndarray,
        near: np.ndarray,
        tolerance: float,
    ) -> Answer:
        """One query's answer; `cdist` computes what is too near to it, or to another distance."""
        order = total.argsort()
        alike = np.diff(total[order]) <= tolerance
        doubtful = near.copy()
        doubtful[order[1:][alike]] = doubtful[order[:-1][alike]] = True
        rows = np.flatnonzero(doubtful)
        if len(rows):
            exact = self.exact.parts(query, rows)
            parts[rows] = exact[:, 0].T
            total[rows] = weighted_sum(exact, self.exact.weights)[0]
            order[doubtful[order]] = rows  # equal distances stay in order of their rows
            order = order[total[order].argsort(kind="stable")]  # fast, as little changes
        return Answer(order, total[order], parts[order])
