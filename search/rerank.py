"""Re-ranking, items instead of pictures as answers, and several pictures as one query.

Each engine here wraps another one, so that they can be combined. Re-ranking relies on the first
answers: it improves queries with many correct pictures (a category) and harms those with one or two
(an item). `python -m tools.query_ablation` measures that.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.spatial.distance import pdist, squareform

from features.database import unit_rows
from search.engine import Answer, Engine
from search.signals import Signal

SAME = 0.01  # relative: features whose lengths differ by less are normalised, in bfloat16 too
SHORTLIST = 100  # answers that are re-ranked


def k_reciprocal_distances(
    distances: np.ndarray, k1: int = 20, k2: int = 6, weight_of_original: float = 0.3
) -> np.ndarray:
    """Distances by shared neighbours: of pictures that are each among the other's nearest.

    Zhong, Zheng, Cao and Li, Re-ranking Person Re-identification with k-reciprocal Encoding (CVPR
    2017), equations 2 to 12. Where the paper leaves it open: a picture is its own first neighbour,
    equal distances stand in order of their places, and half of k1 is rounded down.

    Parameters
    ----------
    distances : M x M, symmetric, no NaN; the first row is the query, the others are the gallery
    k1 : neighbours of a picture, besides itself, that may be reciprocal
    k2 : pictures, itself among them, whose encodings are averaged; 1 for none but its own
    weight_of_original : lambda, 0 to 1; 1 gives the order of `distances`

    Returns
    -------
    M - 1, float64, in 0 to 1
    """
    # exp(-d) and the sum with Jaccard's 0 to 1 need one scale, and a sum of any metrics has
    # none, so each row is divided by its greatest, as the authors do; they square Euclidean
    # distances first, which other metrics give no reason for (measured: no difference).
    greatest = distances.max(axis=1, keepdims=True)
    scaled = distances / np.where(greatest > 0, greatest, 1)
    ranks = _neighbour_ranks(distances)
    encodings = np.where(_neighbour_sets(ranks, k1), np.exp(-scaled), 0)
    # The sum serves as well as the mean of equation 11: Jaccard's ratio has no scale.
    encodings = (ranks < k2) @ encodings
    query, gallery = encodings[0], encodings[1:]
    shared = np.minimum(query, gallery).sum(axis=1)
    jaccard = 1 - shared / (query.sum() + gallery.sum(axis=1) - shared)
    return (1 - weight_of_original) * jaccard + weight_of_original * scaled[0, 1:]


def _neighbour_ranks(distances: np.ndarray) -> np.ndarray:
    """Place of each picture among a picture's neighbours, itself at 0: M x M, int64."""
    distances = distances.copy()
    np.fill_diagonal(distances, -np.inf)
    return distances.argsort(axis=1, kind="stable").argsort(axis=1)


def _neighbour_sets(ranks: np.ndarray, k1: int) -> np.ndarray:
    """The robust set R* of each picture (equation 4): M x M bool, a row for each."""
    mutual = np.maximum(ranks, ranks.T)
    whole, half = mutual <= k1, mutual <= k1 // 2
    # In float32, which counts exactly to 2 ** 24, a product of matrices is fast.
    members = half.astype(np.float32)
    shared = whole.astype(np.float32) @ members.T
    joined = whole & (3 * shared >= 2 * members.sum(axis=1))
    return whole | (joined.astype(np.float32) @ members > 0)


class RerankedEngine:
    """Sorts the first `SHORTLIST` answers of another engine by `k_reciprocal_distances`.

    Only the order changes: `distances` and `parts` stay those of the inner engine, so that they no
    longer ascend. Answers after the shortlist stay in place. Other queries have no influence.

    Parameters
    ----------
    inner : what finds the answers
    signals : of its collection, with the weights that it ranks with
    """

    def __init__(self, inner: Engine, signals: Sequence[Signal]) -> None:
        self.inner = inner
        self.signals = signals

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`; the order is the re-ranked one."""
        found = self.inner.search(queries, max(k, SHORTLIST), rows)
        return [_take(answer, self._order(answer)[:k]) for answer in found]

    def _order(self, answer: Answer) -> np.ndarray:
        """Places of the answer in their new order."""
        order = np.arange(len(answer.rows))
        # Pictures without a distance stay last.
        count = np.count_nonzero(np.isfinite(answer.distances[:SHORTLIST]))
        if count > 1:
            pairs = np.zeros((count + 1, count + 1))
            pairs[0, 1:] = pairs[1:, 0] = answer.distances[:count]
            pairs[1:, 1:] = _distances_among(self.signals, answer.rows[:count])
            order[:count] = np.argsort(k_reciprocal_distances(pairs), kind="stable")
        return order


def _distances_among(signals: Sequence[Signal], rows: np.ndarray) -> np.ndarray:
    """The weighted sum of the signals between n > 1 rows of the collection: n x n, float64."""
    pairs = np.zeros(len(rows) * (len(rows) - 1) // 2)
    for signal in signals:
        if signal.weight:
            features = signal.features[rows]
            pairs += signal.weight * pdist(features, signal.metric, **signal.parameters)
    finite = np.isfinite(pairs)
    # Some metrics have no value for two rows of zeros, which does not make them near.
    pairs[~finite] = pairs[finite].max(initial=0)
    return squareform(pairs)


class CollapsedEngine:
    """Answers with the nearest picture of each item or content, and without some pictures.

    Parameters
    ----------
    inner : what finds the pictures
    keys : each N, the items or contents of its collection, "" where unknown: such pictures all stay
    left_out : which of n rows not to answer with: n -> n, bool
    """

    def __init__(
        self,
        inner: Engine,
        *keys: np.ndarray,
        left_out: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.inner = inner
        self.keys = keys
        self.left_out = left_out

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`; `k` is a number of answers that stay."""
        wanted = k + 1  # one is often left out
        while True:
            found = self.inner.search(queries, wanted, rows)
            answers = [self._collapse(answer) for answer in found]
            short = [len(answer.rows) < k for answer in answers]
            more = [len(answer.rows) == wanted for answer in found]
            # Items of many pictures take many ranks: search for more until there are enough.
            if not np.any(np.logical_and(short, more)):
                return [_take(answer, slice(k)) for answer in answers]
            wanted *= 4

    def _collapse(self, answer: Answer) -> Answer:
        """Only the first picture of each key, and none that is left out."""
        if self.left_out:
            answer = _take(answer, ~self.left_out(answer.rows))
        for keys in self.keys:
            found = keys[answer.rows]
            first = found == found.dtype.type()
            first[np.unique(found, return_index=True)[1]] = True
            answer = _take(answer, first)
        return answer


def _take(answer: Answer, places: np.ndarray | slice) -> Answer:
    """Some places of an answer, in their order."""
    return Answer(answer.rows[places], answer.distances[places], answer.parts[places])


def join_queries(
    features: Sequence[np.ndarray], weights: Sequence[float] | None = None
) -> list[np.ndarray]:
    """Make one query of several pictures of an item: the mean of their features.

    The mean needs one search for any number of pictures, and a detail of one picture does not
    decide, as it would with the minimum of their distances. Where all features are normalised, so
    is their mean: a shorter one would change its share in the sum with the other signals.

    Parameters
    ----------
    features : for each signal its features of the Q query pictures, Q x D
    weights : Q, of the pictures in the mean; None: all alike

    Returns
    -------
    For each signal 1 x D, float32.
    """
    joined = []
    for own in features:
        mean = np.average(own.astype(np.float64), axis=0, weights=weights)[None]
        lengths = np.linalg.norm(own, axis=1)
        if np.allclose(lengths, lengths[0], rtol=SAME, atol=0):
            mean = lengths[0] * unit_rows(mean)
        joined.append(mean.astype(np.float32))
    return joined
