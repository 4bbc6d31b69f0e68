"""Calibrate on validation items: find the numbers that turn distances into probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize

from evaluation.protocols import count_relevant, of_gallery
from evaluation.tune_weights import spaced, validation_tasks
from features.database import FeatureDatabase
from search.certainty import (
    CALIBRATION,
    KINDS,
    NEIGHBOURS,
    Calibration,
    Competition,
    compete,
    density_of,
    fingerprint,
)
from search.engine import Answer, Engine
from search.matrix import MatrixEngine
from search.signals import Signal
from utils import UserError, atomic_write

MAX_QUERIES, MIN_GROUPS, FOLDS = 1000, 3, 5
POWERS: tuple[Literal[1, 2], ...] = (1, 2)
# By the log loss on several collections, see docs/results.md.
ANSWERS_SCALE, PRESENT_SCALE = 0.5, 1.0
# Logarithm of the slope, and how far "none" is above an item at the median distance.
START, BOUNDS = (1.5, -2.0), ((-5.0, 7.0), (-40.0, 40.0))
FOUND = 0.95  # share of the queries that a threshold keeps


@dataclass(frozen=True)
class Competitors:
    """What competes for Q queries, nearest first.

    Attributes
    ----------
    nearest : Q x L, distance of each label's nearest picture, infinite where there are fewer
    density : Q
    correct : Q, place of the query's label among them; L where it is not there
    groups : Q, the queries' labels
    """

    nearest: np.ndarray
    density: np.ndarray
    correct: np.ndarray
    groups: np.ndarray

    def select(self, rows: np.ndarray) -> "Competitors":
        """Some of the queries."""
        return Competitors(*(column[rows] for column in vars(self).values()))


def competitors(
    answers: Sequence[Answer], queries: np.ndarray, labels: np.ndarray, without: np.ndarray
) -> Competitors:
    """What competes for some queries, of which each has an answer without the query itself.

    Parameters
    ----------
    answers : rows of the collection
    queries : Q, their rows
    labels : of all rows
    without : Q, bool; the pictures of the query's label are taken out
    """
    nearest = np.full((len(queries), NEIGHBOURS), np.inf)
    density, correct = np.ones(len(queries)), np.full(len(queries), NEIGHBOURS)
    for i, (answer, query) in enumerate(zip(answers, queries, strict=True)):
        same = labels[answer.rows] == labels[query]
        left = np.flatnonzero(np.isfinite(answer.distances) & ~(same & without[i]))[:NEIGHBOURS]
        found, place = compete(answer.distances[left], labels[answer.rows[left]])
        nearest[i, : len(found)] = found
        density[i] = density_of(answer.distances[left])
        if same[left].any():
            correct[i] = place[same[left].argmax()]
    return Competitors(nearest, density, correct, labels[queries])


def competing_answers(
    engine: Engine,
    signals: Sequence[Signal],
    queries: np.ndarray,
    gallery: np.ndarray,
    spare: int = 0,
    places: np.ndarray | None = None,
) -> list[Answer]:
    """The nearest pictures of each query without itself, `spare` more than `NEIGHBOURS`.

    Parameters
    ----------
    engine : over the gallery
    signals : of the whole collection
    queries, gallery : rows of it
    places : in the gallery, of the pictures to search; None for all
    """
    features = [signal.features[queries] for signal in signals]
    answers = []
    answered = engine.search(features, NEIGHBOURS + 1 + spare, places)
    for query, found in zip(queries, answered, strict=True):
        rows = gallery[found.rows]
        other = rows != query
        answers.append(Answer(rows[other], found.distances[other], found.parts[other]))
    return answers


def fit(queries: Competitors, power: Literal[1, 2], scale: float) -> Competition:
    """The competition of a form with the highest likelihood.

    As in Platt scaling (1999) the targets are (n + 1) / (n + 2), of n labels: few labels do not
    give certainty.
    """
    scaled = queries.nearest[:, 0] / queries.density**scale
    unit = max(float(np.median(scaled)), 1e-12) ** power
    target = 1 - 1 / (len(np.unique(queries.groups)) + 2)

    def competition(x: np.ndarray) -> Competition:
        slope, none = float(np.exp(x[0])) / unit, float(x[1] - np.exp(x[0]))
        return Competition(power=power, scale=scale, slope=slope, none=none)

    def loss(x: np.ndarray) -> float:
        share = np.clip(_correct_shares(competition(x), queries), 1e-12, 1 - 1e-12)
        return -float(np.mean(target * np.log(share) + (1 - target) * np.log(1 - share)))

    return competition(minimize(loss, START, method="L-BFGS-B", bounds=BOUNDS).x)


def _correct_shares(competition: Competition, queries: Competitors) -> np.ndarray:
    """The probability of what is correct, of each query: its label, or none: Q."""
    shares = competition.log_shares(queries.nearest, queries.density)
    return np.exp(shares[np.arange(len(shares)), queries.correct])


def best_fit(queries: Competitors, scale: float) -> Competition:
    """The fit of the power with the least log loss, cross-validated: whole labels left out."""
    labels, group = np.unique(queries.groups, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(labels))[group] % min(FOLDS, len(labels))

    def loss(power: Literal[1, 2]) -> float:
        shares = np.empty(len(group))
        for number in range(fold.max() + 1):
            competition = fit(queries.select(fold != number), power, scale)
            shares[fold == number] = _correct_shares(competition, queries.select(fold == number))
        return float(-np.log(np.maximum(shares, 1e-12)).mean())

    return fit(queries, min(POWERS, key=loss), scale)


def calibrate(database: FeatureDatabase, signals: Sequence[Signal], val_share: float) -> None:
    """Find the numbers, store them beside the feature database, and print what they are from.

    Raises
    ------
    UserError : as of `validation_tasks`; or all validation pictures are of one category or item
    """
    found = {task.name: task for task in validation_tasks(database, val_share, whole=True)}
    same: Literal["item", "category"] = "item" if "item" in found else "category"
    gallery, labels = found[same].gallery, found[same].labels
    queries = spaced(found[same].queries, MAX_QUERIES)
    groups = len(np.unique(labels[queries]))
    if groups < MIN_GROUPS:
        raise UserError(
            f"{database.base}: {groups} validation {KINDS[same]}, but {MIN_GROUPS} are needed to"
            " calibrate; set VAL_SHARE higher, train and extract again"
        )
    mates = int(count_relevant(queries, gallery, labels).max()) if same == "item" else 0
    engine = MatrixEngine(of_gallery(signals, gallery), torch.device("cpu"))
    answers = competing_answers(engine, signals, queries, gallery, mates)
    there = competitors(answers, queries, labels, np.zeros(len(queries), bool))
    away = np.arange(2 * len(queries)) >= len(queries)
    both = competitors([*answers, *answers], np.tile(queries, 2), labels, away)
    present = best_fit(both, PRESENT_SCALE) if same == "item" else None
    thresholds: dict[Literal["probability", "distance"], float] = {}
    thresholds["distance"] = float(np.quantile(there.nearest[:, 0], FOUND))
    if present:
        none = np.exp(present.log_shares(there.nearest, there.density)[:, -1])
        thresholds["probability"] = float(np.quantile(1 - none, 1 - FOUND))
    calibration = Calibration(
        belongs_to=fingerprint(database, signals),
        same=same,
        queries=len(queries),
        groups=groups,
        answers=best_fit(there, ANSWERS_SCALE),
        present=present,
        thresholds=thresholds,
    )
    path = database.base / CALIBRATION
    with atomic_write(path) as part:
        part.write_text(calibration.model_dump_json(indent=1), "utf-8")
    print(f"{path}: {calibration.described}")
