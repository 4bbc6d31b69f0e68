"""The distance of a picture to a query: a weighted sum of signals, smaller is nearer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial.distance import cdist

from features.database import FeatureDatabase, deep_name
from utils import UserError


@dataclass(frozen=True)
class Signal:
    """One term of the distance.

    Attributes
    ----------
    name : for the answer's parts: deep, deep_2 (of a second model) ..., color, palette
    features : N x D, the collection
    metric : of scipy.spatial.distance.cdist
    weight : factor of the metric's value
    """

    name: str
    features: np.ndarray
    metric: str
    weight: float

    def distances(self, queries: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
        """The metric's values from Q queries to some rows of the collection: Q x rows, float64."""
        return cdist(queries, self.features[rows], self.metric, **self.parameters)

    @cached_property
    def parameters(self) -> dict[str, np.ndarray]:
        """What the metric takes from the collection: variances, or the inverse covariance."""
        if self.metric == "seuclidean":
            return {"V": np.var(self.features, axis=0, ddof=1, dtype=np.float64)}
        if self.metric == "mahalanobis":
            return {"VI": np.linalg.pinv(np.atleast_2d(np.cov(self.features, rowvar=False)))}
        return {}


def signals_of(
    database: FeatureDatabase,
    metrics: tuple[str, str],
    model_weights: Sequence[float],
    color_weight: float,
    palette_weight: float,
) -> list[Signal]:
    """The signals of a feature database: a deep one for each model, colour, and palette.

    Parameters
    ----------
    database : the features
    metrics : of the deep signals, and of colour and palette
    model_weights : of each model; empty for 1 each
    color_weight, palette_weight : of the colour signals

    Raises
    ------
    UserError : another number of weights than of models
    """
    models = len(database.deep)
    weights = list(model_weights) or [1.0] * models
    if len(weights) != models:
        raise UserError(
            f"MODEL_WEIGHTS has {len(weights)} weights, the feature database {models}"
            f" model{'s' if models > 1 else ''}; give one weight for each"
        )
    deep = [
        Signal(deep_name(number), features, metrics[0], weight)
        for number, (features, weight) in enumerate(zip(database.deep, weights, strict=True))
    ]
    signals = [*deep, Signal("color", database.color, metrics[1], color_weight)]
    if database.palette is not None:
        signals.append(Signal("palette", database.palette, metrics[1], palette_weight))
    return signals


def weighted_sum(parts: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """S x Q x N values of the signals -> Q x N; signals of weight 0 are ignored, NaN included."""
    total = np.zeros(parts.shape[1:])
    for part, weight in zip(parts, weights, strict=True):
        if weight:
            total += weight * part
    return total


def describe_distance(signals: Sequence[Signal]) -> str:
    """The distance as text, as in "deep euclidean + 0.1 color euclidean"."""
    return " + ".join(
        f"{'' if s.weight == 1 else f'{s.weight:g} '}{s.name} {s.metric}" for s in signals
    )
