"""How sure an answer is: its distance and those of the others -> a probability.

The items near a query compete. An item whose nearest picture is at distance d has the weight
exp(-slope * (d / density ^ scale) ^ power), "none of them" has exp(none), and a probability is a
share of the sum: near alone is not sure, near with nothing else near is. `evaluate.py --calibrate`
finds the numbers on validation items and stores them beside the feature database.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from features.database import FeatureDatabase
from features.metadata import Record, Sha256
from search.engine import Answer
from search.signals import Signal
from utils import command, print_once

CALIBRATION = "all_feat.calibration.json"
KINDS = {"item": "items", "category": "categories"}
NEIGHBOURS = 64  # pictures that compete
DENSE = slice(9, 50)  # of these, whose median distance says how dense the collection is there

_Number = Annotated[float, Field(allow_inf_nan=False)]


class Competition(Record):
    """Distances -> shares, see the module.

    Attributes
    ----------
    power, scale, slope, none : see the module; the density is the median distance of the 10th to
        50th neighbour
    """

    power: Literal[1, 2]
    scale: Annotated[_Number, Field(ge=0, le=1)]
    slope: Annotated[_Number, Field(gt=0)]
    none: _Number

    def log_shares(
        self, nearest: np.ndarray, density: np.ndarray, competing: int | None = None
    ) -> np.ndarray:
        """Logarithms of the shares of L items and of none: Q x L and Q -> Q x (L + 1).

        `nearest` are distances of the items' nearest pictures, infinite where there are fewer; the
        first `competing` make the sum.
        """
        weights = -self.slope * (nearest / density[:, None] ** self.scale) ** self.power
        none = np.full((len(weights), 1), self.none)
        sums = np.logaddexp.reduce(np.hstack([weights[:, :competing], none]), axis=1, keepdims=True)
        return np.hstack([weights, none]) - sums


class Calibration(Record):
    """What `evaluate.py --calibrate` has found.

    Attributes
    ----------
    belongs_to : the models, metrics and weights, see `fingerprint`
    same : what an answer with a probability has in common with the query
    queries, groups : number of validation queries, and of their items (or categories)
    answers : gives the probability of each answer, if the collection has the query's item
    present : gives the probability that it has, where half of the queries' items are there; None
        for categories
    thresholds : the least probability of being there, and the greatest distance of the first
        answer, of 95% of the validation queries
    """

    belongs_to: Sha256
    same: Literal["item", "category"]
    queries: int
    groups: int
    answers: Competition
    present: Competition | None
    thresholds: dict[Literal["probability", "distance"], _Number]

    @property
    def described(self) -> str:
        """What it was found on, as text."""
        of = f"{self.queries:,} validation queries of {self.groups:,} {KINDS[self.same]}"
        return f"calibrated on {of}"

    def labels(self, database: FeatureDatabase) -> np.ndarray:
        """The label of each picture of a database: its item, or the number of its category."""
        return database.items if self.same == "item" else np.asarray(database.categories)


@dataclass(frozen=True)
class Certainty:
    """How sure one query's answers are.

    Attributes
    ----------
    of_rows : probability of each row that was found near the query
    present : probability that the collection has the query's item; None: not known
    """

    of_rows: dict[int, float]
    present: float | None


def fingerprint(database: FeatureDatabase, signals: Sequence[Signal]) -> str:
    """SHA-256 of what distances depend on, besides the pictures: models, settings, distance."""
    metadata, machine = database.metadata, {"EXTRACT_BATCH_SIZE", "DEVICE", "AMP"}
    facts = [
        [model.sha256 for model in metadata.models],
        metadata.settings.model_dump(exclude=machine),
        [[signal.name, signal.metric, float(signal.weight)] for signal in signals],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def open_calibration(database: FeatureDatabase, signals: Sequence[Signal]) -> Calibration | None:
    """The calibration of a feature database; None, with one line, where it cannot be used.

    Where there is none, nothing is said.
    """
    path = database.base / CALIBRATION
    again = f"no probabilities; run: {command('evaluate.py --calibrate', database.base)}"
    try:
        calibration = Calibration.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        print_once(f"{path}: damaged, or of another version: {again}")
        return None
    if calibration.belongs_to != fingerprint(database, signals):
        print_once(f"{path}: of another model, distance or weights: {again}")
        return None
    return calibration


def as_percent(probability: float) -> str:
    """A probability as text; nothing is 0% or 100%."""
    return ">99%" if probability > 0.99 else "<1%" if probability < 0.01 else f"{probability:.0%}"


def describe_presence(present: float) -> str:
    """What is said of a query's item, of which half a chance is not called probable."""
    how = "probably not" if present < 1 / 3 else "probably" if present > 2 / 3 else "perhaps"
    return f"{how} in this collection ({as_percent(present)})"


def compete(distances: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels among n neighbours, by distance.

    Parameters
    ----------
    distances : n, ascending
    labels : n, items or categories; "" or -1: unknown, which is a label of its own

    Returns
    -------
    The distance of each label's nearest neighbour, ascending, and each neighbour's place there.
    """
    unknown = labels < 0 if labels.dtype.kind == "i" else labels == ""
    _, code = np.unique(labels, return_inverse=True)
    code = np.where(unknown, len(labels) + np.arange(len(labels)), code)
    _, first, place = np.unique(code, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return distances[first[order]], np.argsort(order)[place]


def density_of(distances: np.ndarray) -> float:
    """Median distance of the 10th to 50th of some neighbours; of fewer than 10, that of the last.

    Above 0; 1 where there is no neighbour.
    """
    dense = distances[DENSE] if len(distances) > DENSE.start else distances[-1:]
    return max(float(np.median(dense)), 1e-12) if len(dense) else 1.0


def certainty_of(calibration: Calibration, near: Answer, labels: np.ndarray) -> Certainty:
    """Judge the neighbours of one query.

    Parameters
    ----------
    near : the nearest pictures, without the query itself; `NEIGHBOURS` or more compete
    labels : of all rows of the collection: items or categories, as `Calibration.same` says
    """
    rows = near.rows[np.isfinite(near.distances)]
    distances = near.distances[np.isfinite(near.distances)]
    nearest, place = compete(distances, labels[rows])
    competing = int(place[:NEIGHBOURS].max(initial=-1)) + 1
    density = np.array([density_of(distances[:NEIGHBOURS])])

    def shares(competition: Competition) -> np.ndarray:
        return np.exp(competition.log_shares(nearest[None], density, competing)[0])

    answers, there = shares(calibration.answers)[place], calibration.present
    of_rows = dict(zip(rows.tolist(), answers.tolist(), strict=True))
    return Certainty(of_rows, 1 - float(shares(there)[-1]) if there else None)
