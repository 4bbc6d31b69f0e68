"""The metrics compared with values by hand, plain loops, scikit-learn and theory."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, roc_auc_score, top_k_accuracy_score

from evaluation.metrics import (
    auroc,
    average_precision,
    average_precision_at_r,
    balanced_score,
    calibration_error,
    category_metrics,
    first_hit,
    item_metrics,
    reliability,
    summarise,
    top_k_metrics,
    validation_score,
)

HITS = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]], bool)


def test_average_precision_by_hand() -> None:
    # (1/1 + 2/3) / 2, 1/4, nothing found of 1, all found first
    relevant = np.array([2, 1, 1, 2])
    assert average_precision(HITS, relevant) == pytest.approx([5 / 6, 1 / 4, 0, 1])
    # One more correct picture that the engine did not find counts as missed.
    assert average_precision(HITS[:1], np.array([3])) == pytest.approx([5 / 9])


def test_average_precision_at_r_by_hand() -> None:
    """Only the first R ranks count, and the sum is divided by R (Musgrave et al., section 3.2)."""
    relevant = np.array([2, 1, 1, 2])
    assert average_precision_at_r(HITS, relevant) == pytest.approx([1 / 2, 0, 0, 1])
    # R = 3: hits at ranks 1 and 3 count with precision 1 and 2/3.
    assert average_precision_at_r(HITS[:1], np.array([3])) == pytest.approx([5 / 9])
    # R beyond the number of answers.
    assert average_precision_at_r(HITS[3:], np.array([8])) == pytest.approx([2 / 8])


def test_item_metrics_by_hand() -> None:
    hits = np.zeros((3, 60), bool)
    hits[0, 0] = hits[1, 9] = hits[2, 10] = True
    values = item_metrics(hits, np.array([1, 1, 1]))
    assert values["recall@1"].tolist() == [1, 0, 0]
    assert values["recall@10"].tolist() == [1, 1, 0]
    assert values["recall@20"].tolist() == [1, 1, 1]
    assert values["mrr"] == pytest.approx([1, 1 / 10, 1 / 11])
    nothing = item_metrics(np.zeros((1, 5), bool), np.array([1]))
    assert {name: value[0] for name, value in nothing.items()} == dict.fromkeys(nothing, 0)


def test_a_short_gallery_does_not_make_recall_perfect() -> None:
    """With 5 answers, none of them correct, recall@10 is 0."""
    assert first_hit(np.zeros((1, 5), bool)).tolist() == [0]
    assert item_metrics(np.zeros((1, 5), bool), np.array([1]))["recall@10"] == 0


def test_the_validation_score_is_of_those_with_an_answer_and_says_how_many() -> None:
    relevant = np.array([2, 1, 0, 2])
    assert validation_score(HITS, relevant, by_item=False) == pytest.approx(
        ((1 / 2 + 0 + 1) / 3, 3)
    )
    assert validation_score(HITS, relevant, by_item=True) == pytest.approx(((1 + 1 / 4 + 1) / 3, 3))
    assert validation_score(HITS[2:3], np.array([0]), by_item=True) == (0, 0)


def test_tasks_are_pooled_by_their_queries() -> None:
    assert balanced_score([(0.5, 30), (0.8, 10), (0.9, 0)]) == pytest.approx(0.65)
    assert balanced_score([(0.5, 0)]) == balanced_score([]) == 0


def test_category_metrics_equal_scikit_learn(rng: np.random.Generator) -> None:
    scores = rng.normal(size=(40, 90))
    correct = rng.random((40, 90)) < 0.2
    order = np.argsort(-scores, axis=1)
    hits = np.take_along_axis(correct, order, axis=1)
    values = category_metrics(hits, correct.sum(1))
    expected = [average_precision_score(correct[i], scores[i]) for i in range(40)]
    assert values["map"] == pytest.approx(expected)
    assert values["p@10"] == pytest.approx([correct[i, order[i, :10]].mean() for i in range(40)])


def test_top_k_equals_scikit_learn(rng: np.random.Generator) -> None:
    logits, targets = rng.normal(size=(300, 12)), rng.integers(12, size=300)
    values = top_k_metrics(logits, targets)
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(targets, logits, k=k, labels=np.arange(12))
        assert values[f"top{k}"].mean() == pytest.approx(expected)
    assert top_k_metrics(np.zeros((1, 12)), np.array([0]))["top5"] == 0
    assert top_k_metrics(np.ones((1, 2)), np.array([-1]))["top5"] == 0


def test_the_interval_is_the_binomial_one_for_single_queries() -> None:
    values = np.repeat([0.0, 1.0], [700, 300])
    figure = summarise(values, np.arange(1000))
    assert figure.value == pytest.approx(0.3)
    spread = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert figure.ci95 == pytest.approx((0.3 - spread, 0.3 + spread), abs=0.004)


def test_views_of_an_item_do_not_make_the_interval_narrower() -> None:
    """Ten copies of each query hold no more than one: the interval stays as wide."""
    values = np.repeat([0.0, 1.0], [70, 30])
    one = summarise(values, np.arange(100))
    ten = summarise(np.repeat(values, 10), np.repeat(np.arange(100), 10))
    assert ten.ci95 == pytest.approx(one.ci95)
    apart = summarise(np.repeat(values, 10), np.arange(1000))
    assert np.ptp(apart.ci95) < 0.5 * np.ptp(one.ci95)


def test_calibration_error_and_curve_equal_scikit_learn(rng: np.random.Generator) -> None:
    p = rng.random((200, 3))
    correct = rng.random(p.shape) < p**2
    share, mean = calibration_curve(correct.ravel(), p.ravel(), n_bins=10)
    curve = np.array(reliability(p, correct))
    assert curve[:, :2] == pytest.approx(np.column_stack([mean, share]))
    counts = np.histogram(p, np.linspace(0, 1, 11))[0]
    assert curve[:, 2].tolist() == counts.tolist()
    figure = calibration_error(p, correct, np.arange(200))
    assert figure.value == pytest.approx(counts @ abs(share - mean) / 600)
    assert figure.ci95[0] < figure.value < figure.ci95[1]
    sure = calibration_error(np.array([[0.0], [1.0]]), np.array([[False], [True]]), np.arange(2))
    assert (sure.value, sure.ci95) == (0, (0, 0))


def test_auroc_equals_scikit_learn_with_ties(rng: np.random.Generator) -> None:
    scores, correct = rng.integers(5, size=(40, 5)), rng.random((40, 5)) < 0.3
    assert auroc(scores, correct) == pytest.approx(roc_auc_score(correct.ravel(), scores.ravel()))
    assert auroc(scores, np.ones_like(correct)) is None
