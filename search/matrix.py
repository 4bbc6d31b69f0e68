"""Exact search of many queries at once by matrix products, on any device.

A copy of the features in low precision gives every distance up to a known error (the triangle
inequality: no more than the lengths of what rounding took from the query and the picture). The
pictures with the lowest bounds are ranked in float64: by `cdist`, or, of many queries on a GPU, on
the GPU, where `cdist` settles what lies closer together than rounding. The answer is exact once
every other picture's lower bound exceeds the k-th distance; until then more pictures are ranked.

Euclidean distances come from one product, with the squared lengths in further columns:
|q - x|^2 = [-2 q, 1, |q|^2] . [x, |x|^2, 1]. A cosine distance is half of the squared Euclidean
one between vectors of length 1.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from search.engine import Answer, ExactEngine
from search.gallery import GalleryOrder
from search.low_precision import GROUP, Copies, Copy, free_memory, round_rows
from search.quantised import METRICS
from search.signals import Signal, weighted_sum

MAX_QUERIES = {"cpu": 256, "cuda": 1024}  # at once
MAX_PRODUCTS = {"cpu": 1 << 27, "cuda": 1 << 29}  # elements held at once
POOLS = (128, 1024)  # lowest bounds looked at beside the k nearest: first try, second try
RANKED, RANKED_ON_GPU = 8, 32  # of them ranked in float64 at first
MAX_PAIRS = {"cpu": 1 << 14, "cuda": 1 << 16}  # of queries and pictures, ranked at once
MIN_QUERIES = 16  # at once, from which on a GPU ranks them itself
CLOSE = 1e-10  # relative; far over the rounding of distances in float64
MAX_MOVED = 1 << 28  # elements of a copy moved to a device, or gathered there, at once
MIN_SHARE = 64  # pictures for each answer, below which `cdist` ranks all of them


class MatrixEngine:
    """Ranks every picture as `ExactEngine` does, ties included: fastest for many queries.

    Parameters
    ----------
    signals : the terms of the distance
    device : CUDA makes the products there; others, and None, on the CPU
    copies : of the features; engines with other weights may share them
    """

    def __init__(
        self,
        signals: Sequence[Signal],
        device: torch.device | None = None,
        copies: Copies | None = None,
    ) -> None:
        self.exact = ExactEngine(signals)
        self.count = len(signals[0].features)
        self.device = device if device and device.type == "cuda" else torch.device("cpu")
        self.max_products = MAX_PRODUCTS[self.device.type]
        self.used = [i for i, signal in enumerate(signals) if signal.weight]
        self.terms = [signals[i] for i in self.used]
        self.ordered = all(signal.metric in METRICS for signal in signals)
        self.bounded = bool(self.terms) and all(
            term.metric in METRICS and term.weight > 0 for term in self.terms
        )
        self.shared = copies or Copies()
        self.weights = self._column([term.weight for term in self.terms])
        cosine = [term.metric == "cosine" for term in self.terms]
        self.cosine, self.any_cosine = self._column(cosine) > 0, any(cosine)
        self.slack = 1e-9 * sum(term.weight for term in self.terms)  # of the rounding of `cdist`

    @cached_property
    def gallery(self) -> GalleryOrder:
        """Ranks all pictures."""
        size = 8 * sum(signal.features.size for signal in self.exact.signals)
        on_gpu = self.device.type == "cuda" and size < free_memory(self.device)
        return GalleryOrder(self.exact, self.device if on_gpu else torch.device("cpu"))

    @cached_property
    def copies(self) -> list[Copy]:
        """The copies of the signals that have a weight."""
        return [self.shared.get(term, self.device) for term in self.terms]

    @cached_property
    def full(self) -> list[Tensor]:
        """The features of all signals on the GPU; none where one is not there, or has no weight."""
        found = [copy.full for copy in self.copies if copy.full is not None]
        return found if len(found) == len(self.exact.signals) else []

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=self.device, dtype=torch.float32)[:, None, None]

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`."""
        count = self.count if rows is None else len(rows)
        if self.ordered and rows is None and k >= count:
            return self.gallery.search(queries)
        if not self.bounded or count < MIN_SHARE * k:
            return self.exact.search(queries, k, rows)
        answers: list[Answer] = []
        candidates = GROUP * (k + POOLS[-1]) * len(self.terms)
        step = max(1, min(MAX_QUERIES[self.device.type], self.max_products // candidates))
        for start in range(0, len(queries[0]), step):
            block = [features[start : start + step] for features in queries]
            try:
                answers += self._search_block(block, k, rows)
            except torch.OutOfMemoryError:  # another program has taken the GPU's memory
                answers += self.exact.search(block, k, rows)
        return answers

    def _search_block(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None
    ) -> list[Answer]:
        answers: dict[int, Answer] = {}
        left = list(range(len(queries[0])))
        for size in POOLS:
            pools, lower, rest = self._candidates([q[left] for q in queries], k + size, rows)
            step = max(1, MAX_PAIRS[self.device.type] // (k + RANKED_ON_GPU))
            for start in range(0, len(left), step):
                block, some = slice(start, start + step), left[start : start + step]
                found = self._settle(
                    [q[some] for q in queries], k, pools[block], lower[block], rest[block]
                )
                answers |= {i: answer for i, answer in zip(some, found, strict=True) if answer}
            left = [i for i in left if i not in answers]
            if not left:
                break
        for i in left:
            answers[i] = self.exact.search([q[i : i + 1] for q in queries], k, rows)[0]
        return [answers[i] for i in range(len(queries[0]))]

    def _settle(
        self,
        queries: Sequence[np.ndarray],
        k: int,
        pools: np.ndarray,
        lower: np.ndarray,
        rest: np.ndarray,
    ) -> list[Answer | None]:
        """Answer Q queries by their candidates; None where another picture may be nearer."""
        on_gpu = bool(self.full) and len(pools) >= MIN_QUERIES
        near = np.sort(pools[:, : k + (RANKED_ON_GPU if on_gpu else RANKED)], axis=1)
        sound = near[:, -1] < self.count  # no padding
        near = np.minimum(near, self.count - 1)
        parts = self._parts_on_gpu(queries, near) if on_gpu else self._parts(queries, near)
        total = weighted_sum(parts, self.exact.weights)
        order = np.argsort(total, axis=1, kind="stable")[:, :k]
        limit = np.take_along_axis(total, order[:, -1:], axis=1)
        sound &= rest > limit[:, 0]  # false where it is NaN
        count = (lower <= limit).sum(axis=1)
        answers: list[Answer | None] = []
        for i, own in enumerate(order):
            if not sound[i]:
                answers.append(None)
            elif count[i] <= near.shape[1]:
                answers.append(Answer(near[i, own], total[i, own], parts[:, i, own].T))
            else:
                rows = np.sort(pools[i, : count[i]])
                rows = rows[rows < self.count]
                answers += self.exact.search([q[i : i + 1] for q in queries], k, rows)
        return answers

    def _parts(self, queries: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
        """As `ExactEngine.parts`, of R rows of its own for each query, Q x R: S x Q x R."""
        parts = np.empty((len(queries), *rows.shape))
        for signal, features, part in zip(self.exact.signals, queries, parts, strict=True):
            near = signal.features[rows]
            for i, own in enumerate(part):
                own[:] = cdist(features[i : i + 1], near[i], signal.metric, **signal.parameters)[0]
        return parts

    def _parts_on_gpu(self, queries: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
        """`_parts` by the GPU; by `cdist` where two distances differ by rounding only."""
        parts = np.empty((len(queries), *rows.shape))
        at = torch.from_numpy(rows).to(self.device)
        for x, copy, features, part in zip(self.full, self.copies, queries, parts, strict=True):
            query = torch.tensor(features, device=self.device).double()[:, None]
            part[:] = _true_distances(query, x[at], copy.metric).cpu().numpy()
        total = np.sort(weighted_sum(parts, self.exact.weights), axis=1)
        with np.errstate(invalid="ignore"):
            clear = np.diff(total, axis=1) > CLOSE * total[:, 1:] + self.slack
        unsettled = np.flatnonzero(~clear.all(axis=1))  # NaN is not clear either
        if len(unsettled):
            parts[:, unsettled] = self._parts([q[unsettled] for q in queries], rows[unsettled])
        return parts

    @torch.inference_mode()
    def _candidates(
        self, queries: Sequence[np.ndarray], size: int, rows: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The `size` pictures with the lowest bounds of each query, and what bounds all others.

        Returns
        -------
        Rows, Q x size, int64, with padding; their bounds, ascending; Q bounds of all others.
        """
        columns, lost = self._encode(queries)
        count, places = len(self.copies[0].error), None
        if rows is not None:
            count = -(-len(rows) // GROUP) * GROUP
            places = torch.full((count,), self.count)  # a row of padding
            places[: len(rows)] = torch.from_numpy(rows)
            places = places.to(self.device)
        total = len(queries[0]) * len(self.copies)
        step = self.max_products // total
        if places is not None or any(c.values.device.type != self.device.type for c in self.copies):
            step = min(step, MAX_MOVED // max(copy.values.shape[1] for copy in self.copies))
        step = max(1, step // GROUP) * GROUP
        parts = []
        for start in range(0, count, step):
            block = slice(start, min(start + step, count))
            at = block if places is None else places[block]
            lower, found, rest = self._best_of_block(columns, lost, at, size)
            found = found + start if start else found
            parts.append((lower, found if places is None else places[found], rest))
        if len(parts) > 1:
            lower, found, rest = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
            lower, found, rest = _lowest(lower, found, rest.amin(dim=1, keepdim=True), size)
        else:
            lower, found, rest = parts[0]
        # What float32 has rounded since, and `cdist` in float64.
        bounds = torch.cat([lower, rest], dim=1).cpu().double().numpy() * (1 - 1e-6) - self.slack
        order = np.argsort(bounds[:, :-1], axis=1, kind="stable")
        pools = np.take_along_axis(found.cpu().numpy(), order, axis=1)
        return pools, np.take_along_axis(bounds, order, axis=1), bounds[:, -1]

    def _encode(self, queries: Sequence[np.ndarray]) -> tuple[list[Tensor], Tensor]:
        """Q queries as columns of the module's formula, Q x K each, and `error`: S x Q x 1."""
        columns, errors = [], []
        for i, copy in zip(self.used, self.copies, strict=True):
            x = torch.tensor(np.asarray(queries[i]))  # on the CPU: many small steps
            rounded, lost, square = round_rows(x, copy.metric, copy.values.dtype)
            width = copy.values.shape[1] - x.shape[1]
            rest = torch.zeros((len(x), width), dtype=copy.values.dtype)
            rest[:, :2] = 1
            rest[:, 2:4] = square
            columns += [-2 * rounded, rest]
            errors.append(lost)
        moved = torch.cat(columns, dim=1).to(self.device)
        widths = [copy.values.shape[1] for copy in self.copies]
        error = torch.stack(errors).float()[:, :, None]
        return list(moved.split(widths, dim=1)), error.to(self.device)

    def _best_of_block(
        self, columns: Sequence[Tensor], lost: Tensor, block: slice | Tensor, size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The lowest bounds in some rows, Q x size, their places there, and the others' bound."""
        error = torch.stack([copy.error[block] for copy in self.copies])
        squares = self._squares(columns, block, error.shape[1])
        rest = torch.full((squares.shape[2], 1), torch.inf, device=self.device)
        if squares.shape[2] == 1:  # fewer steps are faster
            lower = self._lower(squares.transpose(1, 2), lost, error[:, None])
            return _lowest(lower, None, rest, size)
        # Integers order as floats do from 0 on, and their minimum is several times faster.
        bits = squares.view(torch.int16 if squares.dtype == torch.bfloat16 else torch.int32)
        least = bits.unflatten(1, (-1, GROUP)).amin(dim=2).view(squares.dtype)
        greatest = error.unflatten(1, (-1, GROUP)).amax(dim=2)
        lower = self._lower(least.transpose(1, 2), lost, greatest[:, None])
        group = torch.arange(lower.shape[1], device=self.device).expand(len(lower), -1)
        _, group, rest = _lowest(lower, group, rest, size)
        row = GROUP * group[:, :, None] + torch.arange(GROUP, device=self.device)
        row = row.flatten(1)
        query = torch.arange(len(row), device=self.device)[:, None]
        lower = self._lower(squares[:, row, query], lost, error[:, row])
        return _lowest(lower, row, rest, size)

    def _squares(self, columns: Sequence[Tensor], block: slice | Tensor, count: int) -> Tensor:
        """Squared distances in low precision, of which none is too great: S x n x Q."""
        on_cuda = self.device.type == "cuda"
        dtype = torch.float32 if on_cuda else columns[0].dtype
        shape = (len(self.copies), count, len(columns[0]))
        squares = torch.empty(shape, dtype=dtype, device=self.device)
        for out, own, copy in zip(squares, columns, self.copies, strict=True):
            at = block if isinstance(block, slice) else block.to(copy.values.device)
            x = copy.values[at].to(self.device, non_blocking=True)
            if on_cuda and own.dtype == torch.bfloat16:
                torch.mm(x, own.T, out_dtype=torch.float32, out=out)
            else:
                torch.mm(x, own.T, out=out)
        return squares

    def _lower(self, squares: Tensor, lost: Tensor, error: Tensor) -> Tensor:
        """Lower bounds of the distance: S x Q x n squares, errors of queries and rows -> Q x n."""
        lower = squares.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if squares.dtype == torch.bfloat16:  # rounded once more
            lower *= 1 - 2.0**-8
        lower = lower.clamp_(min=0).sqrt_().sub_(lost).sub_(error).clamp_(min=0)
        if self.any_cosine:
            lower = torch.where(self.cosine, lower.square() / 2, lower)
        return lower.mul_(self.weights).sum(dim=0)


def _true_distances(query: Tensor, x: Tensor, metric: str) -> Tensor:
    """Distances in float64 of queries, Q x 1 x D, to R pictures each, Q x R x D: Q x R."""
    x = x.double()
    if metric == "euclidean":
        return (x - query).norm(dim=2)
    return 1 - (x * query).sum(dim=2) / (x.norm(dim=2) * query.norm(dim=2))


def _lowest(
    lower: Tensor, places: Tensor | None, rest: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The `size` lowest bounds of Q x n, their places, and the bound of all others.

    `places` are 0 to n - 1 where they are None.
    """
    size = min(size, lower.shape[1])
    values, order = lower.topk(min(size + 1, lower.shape[1]), dim=1, largest=False)
    if values.shape[1] > size:
        rest = torch.minimum(rest, values[:, size:])
    order = order[:, :size]
    return values[:, :size], order if places is None else places.gather(1, order), rest
