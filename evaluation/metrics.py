"""Retrieval metrics as the literature defines them: from ranked hits to means with intervals.

Recall@K of in-shop retrieval is that of DeepFashion (Liu et al., CVPR 2016): the share of queries
with a correct answer among the first K. mAP@R is that of Musgrave et al., A Metric Learning
Reality Check (ECCV 2020).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu

RECALL_AT = (1, 10, 20, 30, 40, 50)
RESAMPLES, BINS = 1000, 10


@dataclass(frozen=True)
class Figure:
    """The mean of a metric over the queries.

    Attributes
    ----------
    value : in 0 to 1
    ci95 : the 95% bootstrap interval of the value
    """

    value: float
    ci95: tuple[float, float]


def first_hit(hits: np.ndarray) -> np.ndarray:
    """Rank of the first correct answer, from 1: Q x N bool -> Q int64, 0 where there is none."""
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)


def average_precision(hits: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Average precision over the whole ranking.

    Parameters
    ----------
    hits : Q x N, bool; whether the answer at each rank is correct
    relevant : Q, number of correct pictures in the gallery, found or not

    Returns
    -------
    Q, float64: the sum of the precisions at the ranks of the correct answers, divided by
    `relevant`; 0 where that is 0.
    """
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    return (precision * hits).sum(axis=1) / np.maximum(relevant, 1)


def average_precision_at_r(hits: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """AP@R: as `average_precision`, but of the first R answers only, where R is `relevant`."""
    longest = int(relevant.max(initial=0))
    ranks = np.arange(1, longest + 1)
    early = hits[:, :longest] & (ranks[: hits.shape[1]] <= relevant[:, None])
    return average_precision(early, relevant)


def item_metrics(hits: np.ndarray, relevant: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of in-shop retrieval, of each query: recall@K, map@r and mrr, Q each."""
    rank = first_hit(hits)
    found = rank > 0
    values = {f"recall@{k}": found & (rank <= k) for k in RECALL_AT}
    values["map@r"] = average_precision_at_r(hits, relevant)
    values["mrr"] = np.where(found, 1 / np.maximum(rank, 1), 0.0)
    return {name: value.astype(np.float64) for name, value in values.items()}


def category_metrics(hits: np.ndarray, relevant: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of retrieval by category, of each query: p@1, p@10 and map, Q each."""
    return {**color_metrics(hits, relevant), "map": average_precision(hits, relevant)}


def color_metrics(hits: np.ndarray, relevant: np.ndarray) -> dict[str, np.ndarray]:
    """Colour agreement: share of the query's colour among the first answers, p@1 and p@10, Q."""
    return {f"p@{k}": hits[:, :k].mean(axis=1) for k in (1, 10)}


def top_k_metrics(logits: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Whether the correct category is among the first 1, 3 and 5: top1, top3 and top5, Q each.

    Parameters
    ----------
    logits : Q x K
    targets : Q, the correct category's number; -1 where the classifier does not have it: wrong
    """
    target_logits = np.take_along_axis(logits, np.maximum(targets, 0)[:, None], axis=1)
    # Equal logits count against it: a classifier whose logits are all equal knows nothing.
    rank = (logits >= target_logits).sum(axis=1)
    return {f"top{k}": ((rank <= k) & (targets >= 0)).astype(np.float64) for k in (1, 3, 5)}


def validation_score(hits: np.ndarray, relevant: np.ndarray, by_item: bool) -> tuple[float, int]:
    """The score by which the best epoch and the weights of the signals are chosen.

    Parameters
    ----------
    hits, relevant : as for `average_precision`
    by_item : mean reciprocal rank, since one picture of the item is enough; else mAP@R

    Returns
    -------
    The score, in 0 to 1, over the queries that have a correct picture in the gallery, and the
    number of those queries; 0 and 0 where there are none.
    """
    hits, relevant = hits[relevant > 0], relevant[relevant > 0]
    if not len(hits):
        return 0.0, 0
    values = (
        item_metrics(hits, relevant)["mrr"] if by_item else average_precision_at_r(hits, relevant)
    )
    return float(values.mean()), len(hits)


def balanced_score(scores: Sequence[tuple[float, int]]) -> float:
    """The mean over the tasks that have queries; 0 where none has.

    Parameters
    ----------
    scores : of each task its score and its number of queries, see `validation_score`
    """
    found = [score for score, queries in scores if queries]
    return sum(found) / len(found) if found else 0.0


def bootstrap_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Means of bootstrap samples of whole groups (Efron, Annals of Statistics 1979).

    Parameters
    ----------
    values : Q or Q x M, float64, of each query
    groups : Q; queries of one group (the views of an item) are not independent, so whole groups
        are drawn

    Returns
    -------
    `RESAMPLES` or `RESAMPLES` x M, float64; the same in every run.
    """
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group)
    sums = np.zeros((len(sizes), *values.shape[1:]))
    np.add.at(sums, group, values)
    rng = np.random.default_rng(0)
    chances = np.full(len(sizes), 1 / len(sizes))
    means = np.empty((RESAMPLES, *values.shape[1:]))
    for i in range(RESAMPLES):
        counts = rng.multinomial(len(sizes), chances)
        means[i] = counts @ sums / (counts @ sizes)
    return means


def summarise(values: np.ndarray, groups: np.ndarray) -> Figure:
    """Mean and 95% percentile bootstrap interval.

    Parameters
    ----------
    values : Q, of each query; the difference of two rankings' values gives a paired interval
    groups : as for `bootstrap_means`
    """
    low, high = np.percentile(bootstrap_means(values, groups), [2.5, 97.5])
    return Figure(float(values.mean()), (float(low), float(high)))


def reliability(probabilities: np.ndarray, correct: np.ndarray) -> list[tuple[float, float, int]]:
    """The reliability curve: of each of `BINS` equal bins with answers, from 0 to 1.

    `probabilities` and `correct` (bool) are of the same shape. A bin has the mean probability, the
    share of correct answers, and the number of answers.
    """
    place = _bins(probabilities)
    of_bin = [place == i for i in range(BINS)]
    return [
        (float(probabilities[one].mean()), float(correct[one].mean()), int(one.sum()))
        for one in of_bin
        if one.any()
    ]


def _bins(probabilities: np.ndarray) -> np.ndarray:
    return np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)


def calibration_error(probabilities: np.ndarray, correct: np.ndarray, groups: np.ndarray) -> Figure:
    """Expected calibration error (Naeini et al., AAAI 2015) in `BINS` bins of equal width.

    The mean over the answers of | share of correct answers - mean probability | of their bin.

    Parameters
    ----------
    probabilities, correct : Q x M, of the answers to each query
    groups : as for `bootstrap_means`
    """
    excess = np.zeros((len(probabilities), BINS))
    place = np.arange(len(excess))[:, None]
    np.add.at(excess, (place, _bins(probabilities)), (correct - probabilities) / correct.shape[1])
    errors = np.abs(bootstrap_means(excess, groups)).sum(axis=1)
    low, high = np.percentile(errors, [2.5, 97.5])
    return Figure(float(np.abs(excess.mean(axis=0)).sum()), (float(low), float(high)))


def auroc(scores: np.ndarray, correct: np.ndarray) -> float | None:
    """The chance that a correct answer has a higher score than a wrong one; None without both."""
    right = np.asarray(correct, bool)
    pairs = int(right.sum()) * int((~right).sum())
    return float(mannwhitneyu(scores[right], scores[~right]).statistic / pairs) if pairs else None
