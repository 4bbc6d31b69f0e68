"""Better answers in more time: query expansion, re-ranking, several pictures as one query.

Each engine here wraps another one, so that they can be combined. Expansion and re-ranking rely on
the first answers: they improve queries with many correct pictures (a category) and may harm those
with one or two (an item). `evaluate.py --query-ablation` measures both.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import pdist, squareform

from features.database import unit_rows
from search.engine import Answer, Engine
from search.signals import Signal

SAME = 0.01  # relative: features whose lengths differ by less are normalised, in bfloat16 too


class ExpandedEngine:
    """Searches again by the mean of the query and its first answers: alpha query expansion.

    The query weighs 1 in the mean, an answer its cosine similarity to the query (0 where that is
    negative) to the power of `alpha`: Radenović, Tolias and Chum, Fine-tuning CNN Image Retrieval
    with No Human Annotation (TPAMI 2019). The similarity is that of the first signal. Where the
    features of the query and its answers are normalised, the mean is scaled to their length.
    The distances and parts of the answers are those to the expanded query.

    Parameters
    ----------
    inner : the engine that is searched twice
    signals : of its collection; the first is a deep one
    n : number of answers to expand with; a query of the collection is one of them
    alpha : 0 weights all answers alike, greater values the more similar ones more
    """

    def __init__(
        self, inner: Engine, signals: Sequence[Signal], n: int = 5, alpha: float = 3.0
    ) -> None:
        self.inner = inner
        self.signals = signals
        self.n = n
        self.alpha = alpha

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`."""
        found = self.inner.search(queries, self.n, rows)
        if not found:
            return []
        pairs = zip(zip(*queries, strict=True), found, strict=True)
        expanded = [self._expand(query, answer) for query, answer in pairs]
        return self.inner.search([np.stack(own) for own in zip(*expanded, strict=True)], k, rows)

    def _expand(self, query: Sequence[np.ndarray], answer: Answer) -> list[np.ndarray]:
        """The features of one query, a vector of each signal, expanded with its answer."""
        deep = unit_rows(np.vstack([query[0], self.signals[0].features[answer.rows]]))
        similarity = (deep[1:] @ deep[0]).astype(np.float64)
        # Dropped, not weighted 0: the mean would be NaN where a feature is.
        near = (similarity > 0) & np.isfinite(answer.distances)
        weights = np.concatenate([[1.0], similarity[near] ** self.alpha])
        rows = answer.rows[near]
        return [
            _mean(np.vstack([own, signal.features[rows]]), weights)
            for own, signal in zip(query, self.signals, strict=True)
        ]


def _mean(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of n features, D, float32; of their length where they all have one."""
    mean = weights @ features / weights.sum()
    lengths = np.linalg.norm(features, axis=1)
    if np.allclose(lengths, lengths[0], rtol=SAME, atol=0):
        # A shorter deep feature would change its share in the sum with the other signals.
        mean = lengths[0] * unit_rows(mean[None])[0]
    return mean.astype(np.float32)


def k_reciprocal_distances(
    distances: np.ndarray, queries: int, k1: int = 20, k2: int = 6, weight_of_original: float = 0.3
) -> np.ndarray:
    """Distances by shared neighbours: of pictures that are each among the other's nearest.

    Zhong, Zheng, Cao and Li, Re-ranking Person Re-identification with k-reciprocal Encoding (CVPR
    2017), equations 2 to 12. Where the paper leaves it open: a picture is its own first neighbour,
    equal distances stand in order of their places, and half of k1 is rounded down.

    Parameters
    ----------
    distances : M x M, symmetric, no NaN; the first rows are the queries, the others the gallery
    queries : Q, at least 1. Queries are each other's neighbours, too: pass one at a time where
        answers must not depend on other queries
    k1 : neighbours of a picture, besides itself, that may be reciprocal
    k2 : pictures, itself among them, whose encodings are averaged; 1 for none but its own
    weight_of_original : lambda, 0 to 1; 1 gives the order of `distances`

    Returns
    -------
    Q x (M - Q), float64, in 0 to 1
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
    jaccard = _jaccard_distances(encodings[:queries], encodings[queries:])
    original = scaled[:queries, queries:]
    return (1 - weight_of_original) * jaccard + weight_of_original * original


def _neighbour_ranks(distances: np.ndarray) -> np.ndarray:
    """Place of each picture among a picture's neighbours, itself at 0: M x M, int64."""
    distances = distances.copy()
    np.fill_diagonal(distances, -np.inf)
    order = np.argsort(distances, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(len(order))[None], axis=1)
    return ranks


def _neighbour_sets(ranks: np.ndarray, k1: int) -> np.ndarray:
    """The robust set R* of each picture (equation 4): M x M bool, a row for each."""
    mutual = np.maximum(ranks, ranks.T)
    whole, half = mutual <= k1, mutual <= k1 // 2
    # In float32, which counts exactly to 2 ** 24, a product of matrices is fast.
    members = half.astype(np.float32)
    shared = whole.astype(np.float32) @ members.T
    joined = whole & (3 * shared >= 2 * members.sum(axis=1))
    return whole | (joined.astype(np.float32) @ members > 0)


def _jaccard_distances(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Jaccard distance of encodings (equation 10): Q x M and N x M -> Q x N."""
    result = np.empty((len(queries), len(gallery)))
    sizes = gallery.sum(axis=1)
    for row, query in zip(result, queries, strict=True):
        shared = np.minimum(query, gallery).sum(axis=1)
        row[:] = 1 - shared / (query.sum() + sizes - shared)
    return result


class RerankedEngine:
    """Sorts the first answers of another engine by `k_reciprocal_distances`.

    Only the order changes: `distances` and `parts` stay those of the inner engine, so that they no
    longer ascend. Answers after the shortlist stay in place. Other queries have no influence.

    Parameters
    ----------
    inner : what finds the answers
    signals : of its collection, with the weights that it ranks with
    shortlist : number of answers to sort
    k1, k2, weight_of_original : see `k_reciprocal_distances`
    """

    def __init__(
        self,
        inner: Engine,
        signals: Sequence[Signal],
        shortlist: int = 100,
        k1: int = 20,
        k2: int = 6,
        weight_of_original: float = 0.3,
    ) -> None:
        self.inner = inner
        self.signals = signals
        self.shortlist = shortlist
        self.settings = (k1, k2, weight_of_original)

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`; the order is the re-ranked one."""
        found = self.inner.search(queries, max(k, self.shortlist), rows)
        return [_take(answer, self._order(answer)[:k]) for answer in found]

    def _order(self, answer: Answer) -> np.ndarray:
        """Places of the answer in their new order."""
        order = np.arange(len(answer.rows))
        # Pictures without a distance stay last.
        count = np.count_nonzero(np.isfinite(answer.distances[: self.shortlist]))
        if count > 1:
            pairs = np.zeros((count + 1, count + 1))
            # Distances to the query as the inner engine has it: expanded, perhaps.
            pairs[0, 1:] = pairs[1:, 0] = answer.distances[:count]
            pairs[1:, 1:] = _distances_among(self.signals, answer.rows[:count])
            mended = k_reciprocal_distances(pairs, 1, *self.settings)[0]
            order[:count] = np.argsort(mended, kind="stable")
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
    """Answers with items: the nearest picture of each.

    Parameters
    ----------
    inner : what finds the pictures
    items : N, str; of each picture of its collection, "" where unknown: such pictures all stay
    """

    def __init__(self, inner: Engine, items: np.ndarray) -> None:
        self.inner = inner
        self.items = items

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`; `k` is a number of items."""
        wanted = k
        while True:
            found = self.inner.search(queries, wanted, rows)
            answers = [self._collapse(answer) for answer in found]
            short = [len(answer.rows) < k for answer in answers]
            more = [len(answer.rows) == wanted for answer in found]
            # Items of many pictures take many ranks: search for more until there are enough.
            if wanted >= len(self.items) or not np.any(np.logical_and(short, more)):
                return [_take(answer, slice(k)) for answer in answers]
            wanted *= 4

    def _collapse(self, answer: Answer) -> Answer:
        """Only the first picture of each item."""
        found = self.items[answer.rows]
        first = found == ""
        first[np.unique(found, return_index=True)[1]] = True
        return _take(answer, first)


def improved(engine: Engine, signals: Sequence[Signal], expand: int, rerank: bool) -> Engine:
    """An engine that expands a query with `expand` answers, 0 for none, and may re-rank."""
    if expand > 0:
        engine = ExpandedEngine(engine, signals, expand)
    return RerankedEngine(engine, signals) if rerank else engine


def _take(answer: Answer, places: np.ndarray | slice) -> Answer:
    """Some places of an answer, in their order."""
    return Answer(answer.rows[places], answer.distances[places], answer.parts[places])


def join_queries(features: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Make one query of several pictures of an item: the mean of their features.

    The mean needs one search for any number of pictures, and a detail of one picture does not
    decide, as it would with the minimum of their distances. Where all features are normalised, so
    is their mean.

    Parameters
    ----------
    features : for each signal its features of the Q query pictures, Q x D

    Returns
    -------
    For each signal 1 x D, float32.
    """
    return [_mean(own, np.ones(len(own)))[None] for own in features]
