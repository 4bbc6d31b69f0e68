"""Recall of an engine by hand."""

import numpy as np
import pytest

from search.engine import ExactEngine
from search.recall import nearest_others, recall_of
from search.signals import Signal


def test_recall_is_the_mean_share_of_the_true_neighbours() -> None:
    truth = [np.array([3, 1]), np.array([5, 2]), np.array([], int)]
    found = [np.array([1, 9, 3]), np.array([5, 0]), np.array([4])]
    assert recall_of(found, truth) == pytest.approx((1 + 1 / 2) / 2)
    assert recall_of([], []) == 1


def test_a_picture_is_not_its_own_neighbour() -> None:
    """Pictures 0 and 1 are the same: a query at 1 finds 0 first, and not itself."""
    signals = [Signal("deep", np.float32([[0], [0], [1], [5]]), "euclidean", 1.0)]
    found = nearest_others(ExactEngine(signals), signals, np.array([1, 3]), 2)
    assert [rows.tolist() for rows in found] == [[0, 2], [2, 0]]
