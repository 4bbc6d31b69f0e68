"""Recall of an engine: what share of the true nearest pictures it finds."""

from collections.abc import Sequence

import numpy as np

from search.engine import Engine
from search.signals import Signal


def nearest_others(
    exact: Engine, signals: Sequence[Signal], rows: np.ndarray, k: int
) -> list[np.ndarray]:
    """The true k nearest neighbours of some pictures of the collection, without themselves.

    Parameters
    ----------
    exact : ranks the whole collection by `signals`
    rows : Q rows of the collection, used as queries

    Returns
    -------
    Of each query up to k rows, int64, nearest first.
    """
    answers = exact.search([signal.features[rows] for signal in signals], k + 1)
    pairs = zip(rows, answers, strict=True)
    return [answer.rows[answer.rows != row][:k] for row, answer in pairs]


def recall_of(found: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float:
    """Mean share of the true neighbours that were found, 0 to 1; 1 where there are none.

    Parameters
    ----------
    found : of each query the rows that the engine answered with, in any order
    truth : of each query the rows of its true nearest neighbours
    """
    pairs = zip(found, truth, strict=True)
    shares = [np.isin(true, rows).mean() for rows, true in pairs if len(true)]
    return float(np.mean(shares)) if shares else 1.0
