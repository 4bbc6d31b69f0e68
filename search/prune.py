"""Which pictures may be among the nearest of many queries: one matrix product, and its signs.

For a picture of 8-bit codes c (x' = s c, true to e) and a query q, "the Euclidean distance may be T
or less" reads |q - x'| <= T + e, which is

    q.c + (T^2 - |q|^2)/2 * 1/s + T * e/s + 1/2 * (e^2 - |x'|^2)/s >= 0

a product of the codes and three more columns with the query and three more values. The processor
multiplies 16-bit numbers several times faster than 32-bit ones; the columns are split in two such
numbers, and T is raised by what that rounds away. A cosine distance d is the Euclidean one
(2 d)^(1/2) of vectors of length 1.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from search.quantised import Codes

BLOCK = 4096  # pictures whose products stay in the cache
GROUP = 16  # pictures looked at together first
SAMPLED = 1 << 14  # pictures that tell how near the nearest ones are ...
TERMS = 8192  # distances computed at once
SHARE = 8  # ... or one in so many of the collection, where that is more


class Pruner:
    """Excludes pictures by one signal of the distance.

    Parameters
    ----------
    codes : of that signal
    """

    def __init__(self, codes: Codes) -> None:
        self.codes = codes
        step, error = codes.scale.double(), codes.error.double()
        known = torch.isfinite(error)
        error = torch.where(known, error, 0)
        self.always = torch.nonzero(~known).flatten()  # their distance is not known at all
        self.rows = torch.stack([1 / step, error / step, (error**2 - codes.norm) / step])
        self.rows[:, ~known] = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)[:, None]
        self.error = float(error.max())

    def sample(self, queries: Tensor, k: int) -> Tensor:
        """Pictures near to each query, of an evenly spread part of the collection: k x Q."""
        count = len(self.codes.values)
        rows = torch.arange(0, count, max(1, min(SHARE, count // SAMPLED)))
        halved = torch.where(self.codes.error[rows].isinf(), 1e38, self.codes.norm[rows] / 2)
        best = torch.full((k, len(queries)), -torch.inf)
        found = torch.zeros((k, len(queries)), dtype=torch.int64)
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            near = (self.codes.values[block].bfloat16() @ queries.T).float()
            near.mul_(self.codes.scale[block, None])
            near.sub_(halved[start : start + BLOCK, None])
            place = torch.arange(len(near))[:, None].expand_as(near)
            if len(near) >= GROUP * k:  # the nearest of each few are enough to choose from
                near, place = _winners(near, k)
            best, top = torch.cat([best, near]).topk(k, dim=0)
            found = torch.cat([found, block[place]]).gather(0, top)
        return found

    def candidates(self, queries: Tensor, missed: Tensor, most: Tensor) -> list[Tensor] | None:
        """Pictures that may be as near as each query wants them.

        Parameters
        ----------
        queries : Q x D, bfloat16; for the cosine of length 1 before they were rounded
        missed : Q, float64; the distance of each from the true query
        most : Q, float64; the distance

        Returns
        -------
        Of each query the rows, ascending; None where they are too many for this to be worth it,
        or the numbers too large.
        """
        columns = self._columns(queries, missed, most)
        if columns is None:
            return None
        rows = _split(self.rows)
        # (high + low) (high + low), without what is lost by rounding anyway
        more = torch.cat([rows[0], rows[0], rows[1]]).T.contiguous()
        asked = torch.cat([queries.T, columns[0], columns[1], columns[0]]).contiguous()
        count, dim = self.codes.values.shape
        left = torch.empty((BLOCK, dim + more.shape[1]), dtype=torch.bfloat16)
        products = torch.zeros((BLOCK, len(queries)), dtype=torch.bfloat16)
        places, found, seen = [], [], 0
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            left[:size, :dim] = self.codes.values[start : start + size]
            left[:size, dim:] = more[start : start + size]
            torch.mm(left[:size], asked, out=products[:size])
            products[size:] = -1
            signs = products.view(torch.int16)  # integers order as these floats do about 0
            groups = signs.view(BLOCK // GROUP, GROUP, -1).amax(dim=1)
            group, query = torch.nonzero(groups >= 0, as_tuple=True)
            row = GROUP * group[:, None] + torch.arange(GROUP)
            kept, within = torch.nonzero(signs[row, query[:, None]] >= 0, as_tuple=True)
            places.append(start + row[kept, within])
            found.append(query[kept])
            seen += len(kept)
            if seen > len(queries) * max(0.02 * (start + size), 1000):
                return None
        if len(self.always):
            each = torch.arange(len(queries))
            places.append(self.always.repeat(len(each)))
            found.append(each.repeat_interleave(len(self.always)))
        place, query = torch.cat(places), torch.cat(found)
        query, by_query = query.sort(stable=True)
        sizes = torch.bincount(query, minlength=len(queries)).tolist()
        return [part.sort().values for part in place[by_query].split(sizes)]

    def _columns(self, queries: Tensor, missed: Tensor, most: Tensor) -> tuple[Tensor, ...] | None:
        """The queries' factors of the three columns, raised by what rounding may take."""
        length = queries.double().norm(dim=1)
        far = missed + ((2 * most.clamp(min=0)).sqrt() if self.codes.metric == "cosine" else most)
        norm, error = self.codes.most, self.error
        columns = torch.stack([(far**2 - length**2) / 2, far, torch.full_like(far, 0.5)])
        size = length * norm**0.5 + (far**2 + length**2 + error**2 + norm) / 2 + far * error
        # 2^-16 of each product for the split, and float32 sums of as many as there are columns.
        columns[0] += size * (2.0**-13 + (queries.shape[1] + 9) * 2.0**-23)
        if not (size / min(1.0, float(self.codes.scale.min()))).max() < 1e30:
            return None
        return _split(columns)


def _winners(near: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The greatest of the best k groups of rows, n x Q: their values and rows, k x Q."""
    groups = near[: len(near) // GROUP * GROUP].view(-1, GROUP, near.shape[1])
    top = groups.amax(dim=1).topk(min(k, len(groups)), dim=0).indices
    value, place = groups[top, :, torch.arange(near.shape[1])].max(dim=2)
    return value, GROUP * top + place


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """A float64 tensor as the sum of two bfloat16 ones."""
    high = x.bfloat16()
    return high, (x - high.double()).bfloat16()


def bounded(queries: np.ndarray, metric: str) -> tuple[Tensor, Tensor]:
    """Queries, Q x D, in bfloat16, and how far off that is; cosine: of length 1."""
    exact = torch.from_numpy(np.asarray(queries, np.float64))
    if metric == "cosine":
        exact = exact / exact.norm(dim=1, keepdim=True)
    rounded = exact.bfloat16()
    return rounded, (exact - rounded.double()).norm(dim=1) * (1 + 1e-9)


def farthest(
    signals: Sequence[tuple[np.ndarray, np.ndarray, str, float]], rows: np.ndarray
) -> np.ndarray:
    """The greatest distance of each query to some pictures of its own.

    Parameters
    ----------
    signals : queries Q x D, features N x D, metric and weight of each
    rows : k x Q

    Returns
    -------
    Q, float64, rounded up.
    """
    total = np.zeros(rows.shape)
    step = max(1, TERMS // rows.shape[1])
    for queries, features, metric, weight in signals:
        q = np.asarray(queries, np.float64)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            x = features[some.ravel()].astype(np.float64).reshape(*some.shape, -1)
            if metric == "cosine":
                length = np.linalg.norm(q, axis=1) * np.linalg.norm(x, axis=2)
                with np.errstate(invalid="ignore", divide="ignore"):
                    near = 1 - (q * x).sum(axis=2) / length
            else:
                near = np.linalg.norm(q - x, axis=2)
            total[start : start + step] += weight * near
    # NaN is as far as can be; the rounding of a cosine is of the size of its weight.
    most = np.where(np.isnan(total), np.inf, total).max(axis=0)
    return most + 1e-9 * (sum(weight for *_, weight in signals) + np.abs(most))
