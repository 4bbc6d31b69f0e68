"""Which signals a database has, their weights, and how the distance is named."""

from pathlib import Path

import numpy as np
import pytest

from features.database import FeatureDatabase
from search.signals import describe_distance, signals_of
from utils import UserError


def database(palette: bool) -> FeatureDatabase:
    """Two models' features of 12 pictures, without files."""
    matrix = np.zeros((12, 3), np.float32)
    return FeatureDatabase(
        base=Path("data"),
        deep=(matrix, matrix),
        color=matrix,
        palette=matrix if palette else None,
        paths=[""] * 12,
        categories=np.zeros(12, np.int16),
        category_names=["all"],
        items=np.full(12, ""),
        metadata=None,
    )


def test_each_model_and_each_colour_feature_is_a_signal() -> None:
    found = signals_of(database(True), ("cosine", "euclidean"), (1, 0.5), 0.25, 3)
    assert describe_distance(found) == (
        "deep cosine + 0.5 deep_2 cosine + 0.25 color euclidean + 3 palette euclidean"
    )
    found = signals_of(database(True), ("cosine", "cosine"), (), 0, 0)
    assert [signal.weight for signal in found] == [1, 1, 0, 0]
    found = signals_of(database(False), ("cosine", "cosine"), (), 1, 1)
    assert [signal.name for signal in found] == ["deep", "deep_2", "color"]


def test_a_weight_for_each_model_or_none() -> None:
    with pytest.raises(UserError, match="MODEL_WEIGHTS has 3 weights, the feature database 2"):
        signals_of(database(True), ("cosine", "cosine"), (1, 1, 1), 0, 0)
