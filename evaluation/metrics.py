"""Retrieval measures as the literature defines them: from ranked hits to figures with intervals.

Recall@K of in-shop retrieval is that of DeepFashion (Liu et al., CVPR 2016): the share of queries
with a right answer among the first K. mAP@R is that of Musgrave et al., A Metric Learning Reality
Check (ECCV 2020).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RECALL_AT = (1, 10, 20, 30, 40, 50)
RESAMPLES = 1000


@dataclass(frozen=True)
class Figure:
    """The mean of a measure over the queries.

    Attributes
    ----------
    value : in 0 to 1
    ci95 : the 95% bootstrap interval of the value
    """

    value: float
    ci95: tuple[float, float]

    def as_json(self) -> dict[str, object]:
        """The figure as plain values."""
        return {"value": self.value, "ci95": list(self.ci95)}


def first_hit(hits: np.ndarray) -> np.ndarray:
    """Rank of the first right answer, from 1: Q x N bool -> Q int64, N + 1 where there is none."""
    found = hits.any(axis=1)
    return np.where(found, hits.argmax(axis=1), hits.shape[1]) + 1


def precision_at(hits: np.ndarray, k: int) -> np.ndarray:
    """Share of right ones among the first k answers, or among all where there are fewer: Q."""
    return hits[:, :k].mean(axis=1)


def average_precision(hits: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Average precision over the whole ranking.

    Parameters
    ----------
    hits : Q x N, bool; whether the answer of each rank is right
    relevant : Q, number of right pictures in the gallery, found or not

    Returns
    -------
    Q, float64: the sum of the precisions at the ranks of the right answers, over `relevant`; 0
    where that is 0.
    """
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    return (precision * hits).sum(axis=1) / np.maximum(relevant, 1)


def average_precision_at_r(hits: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """AP@R: as `average_precision`, but of the first R answers alone, where R = `relevant`."""
    most = int(relevant.max(initial=0))
    ranks = np.arange(1, most + 1)
    early = hits[:, :most] & (ranks[: hits.shape[1]] <= relevant[:, None])
    return average_precision(early, relevant)


def item_measures(hits: np.ndarray, relevant: np.ndarray) -> dict[str, np.ndarray]:
    """What in-shop retrieval reports, query by query: recall@K, map@r and mrr, Q each."""
    rank = first_hit(hits)
    found = hits.any(axis=1)
    values = {f"recall@{k}": (rank <= k) & found for k in RECALL_AT}
    values["map@r"] = average_precision_at_r(hits, relevant)
    values["mrr"] = np.where(found, 1 / rank, 0.0)
    return {name: value.astype(np.float64) for name, value in values.items()}


def held_out_score(hits: np.ndarray, relevant: np.ndarray, of_items: bool) -> tuple[float, int]:
    """What epochs and weights are chosen by, over the queries that have an answer.

    Parameters
    ----------
    hits, relevant : as for `average_precision`
    of_items : mean reciprocal rank, since one picture of the item is enough; else mAP@R

    Returns
    -------
    The score, in 0 to 1, and the number of queries that have an answer; the score is 0 where none
    has.
    """
    hits, relevant = hits[relevant > 0], relevant[relevant > 0]
    if not len(hits):
        return 0.0, 0
    values = (
        item_measures(hits, relevant)["mrr"] if of_items else average_precision_at_r(hits, relevant)
    )
    return float(values.mean()), len(hits)


def pooled_score(scores: Sequence[tuple[float, int]]) -> float:
    """The mean over all queries of several tasks; 0 where there is no query.

    Parameters
    ----------
    scores : of each task its score and its number of queries, see `held_out_score`
    """
    queries = sum(count for _, count in scores)
    return sum(score * count for score, count in scores) / queries if queries else 0.0


def category_measures(hits: np.ndarray, relevant: np.ndarray) -> dict[str, np.ndarray]:
    """What retrieval by category reports, query by query: p@1, p@10 and map, Q each."""
    return {
        "p@1": precision_at(hits, 1),
        "p@10": precision_at(hits, 10),
        "map": average_precision(hits, relevant),
    }


def color_measures(hits: np.ndarray, relevant: np.ndarray) -> dict[str, np.ndarray]:
    """Colour agreement: shares of the query's colour among the first answers, p@1 and p@10, Q."""
    return {"p@1": precision_at(hits, 1), "p@10": precision_at(hits, 10)}


def top_k_measures(logits: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Whether the right category is among the first 1, 3 and 5: top1, top3 and top5, Q each.

    Parameters
    ----------
    logits : Q x K
    targets : Q, the right one's number; -1 where the classifier does not know it: always wrong
    """
    own = np.take_along_axis(logits, np.maximum(targets, 0)[:, None], axis=1)
    better = (logits > own).sum(axis=1)
    # Equal logits count against it, or a classifier that says nothing would be right.
    rank = better + (logits == own).sum(axis=1)
    return {f"top{k}": ((rank <= k) & (targets >= 0)).astype(np.float64) for k in (1, 3, 5)}


def resampled(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """Means of bootstrap samples of whole groups (Efron 1979).

    Parameters
    ----------
    values : Q or Q x M, float64, of each query
    groups : Q; queries of one group (the views of an item) are not independent, so whole groups
        are drawn
    seed : of the resampling

    Returns
    -------
    `RESAMPLES` or `RESAMPLES` x M, float64.
    """
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group)
    sums = np.zeros((len(sizes), *values.shape[1:]))
    np.add.at(sums, group, values)
    rng = np.random.default_rng(seed)
    chances = np.full(len(sizes), 1 / len(sizes))
    means = np.empty((RESAMPLES, *values.shape[1:]))
    for i in range(RESAMPLES):
        counts = rng.multinomial(len(sizes), chances)
        means[i] = counts @ sums / (counts @ sizes)
    return means


def summarise(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> Figure:
    """Mean and 95% percentile bootstrap interval.

    Parameters
    ----------
    values : Q, of each query; a difference of two rankings' values gives a paired interval
    groups, seed : as for `resampled`
    """
    low, high = np.percentile(resampled(values, groups, seed), [2.5, 97.5])
    return Figure(float(values.mean()), (float(low), float(high)))
