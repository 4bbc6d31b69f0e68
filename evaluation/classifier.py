"""Accuracy of the classifier on the stored embeddings, as papers on DeepFashion report it."""

from dataclasses import replace

import numpy as np

from evaluation.metrics import top_k_metrics
from evaluation.protocols import Outcome
from features.arrays import read_archive
from features.database import CLASSIFIER, CLASSIFIER_FORMS, FeatureDatabase


def with_accuracy(database: FeatureDatabase, outcome: Outcome) -> Outcome:
    """Add the top-1, top-3 and top-5 accuracy of the first model's classifier to an outcome.

    The logits are computed from the stored embeddings. A category that the classifier was not
    trained on counts as wrong. Where it was trained on no category of the queries, no accuracy is
    added.

    Parameters
    ----------
    database : of the data set
    outcome : of the task "category"
    """
    rows = outcome.task.queries
    trained = database.metadata.models[0].network.categories
    number = {name: i for i, name in enumerate(trained)}
    targets = np.array([number.get(database.category(row), -1) for row in rows.tolist()])
    if (targets < 0).all():
        return outcome
    weight, bias = read_archive(database.base / CLASSIFIER, CLASSIFIER_FORMS).values()
    logits = database.deep[0][rows] @ weight.T + bias
    return replace(outcome, values={**outcome.values, **top_k_metrics(logits, targets)})
