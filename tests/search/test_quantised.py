"""Quantised features lie beside the features that they belong to, and never serve others."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features import database as database_module
from features.database import FeatureDatabase, open_database
from search.quantised import open_quantised, quantise
from search.signals import signals_of


def opened(base: Path) -> FeatureDatabase:
    return open_database(base)


def quantised_of(database: FeatureDatabase, metric: str = "euclidean", weight: float = 2.0) -> list:
    signals = signals_of(database, (metric, metric), (), 0.1, weight)
    return open_quantised(database, signals)


def files(base: Path) -> set[str]:
    return {path.name.replace(path.name.split(".")[2], "KEY") for path in base.glob("*.*.*.*.npy")}


def test_they_are_made_once_and_mapped_from_then_on(measured: Path) -> None:
    database = opened(measured)
    made = quantised_of(database)
    stems = ("all_feat", "all_color_feat", "all_palette_feat")
    assert files(measured) == {
        f"{stem}.euclidean.KEY.{part}.npy" for stem in stems for part in ("codes", "bounds")
    }
    times = {path: path.stat().st_mtime_ns for path in measured.glob("*.codes.npy")}
    again = quantised_of(opened(measured))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for first, second, features in zip(
        made, again, (database.deep[0], database.color, database.palette), strict=True
    ):
        expected = quantise(features, "euclidean")
        for name in ("values", "scale", "norm", "error"):
            array = getattr(expected, name).numpy()
            np.testing.assert_array_equal(getattr(first, name).numpy(), array)
            np.testing.assert_array_equal(getattr(second, name).numpy(), array)


def test_those_of_other_features_are_replaced(measured: Path) -> None:
    database = opened(measured)
    quantised_of(database)
    features = np.asarray(database.deep[0])[::-1].copy()
    checksums = {**database.metadata.sha256, database_module.DEEP: "f" * 64}
    metadata = database.metadata.model_copy(update={"sha256": checksums})
    other = replace(database, deep=(features,), metadata=metadata)
    expected = quantise(features, "euclidean").values.numpy()
    np.testing.assert_array_equal(quantised_of(other)[0].values.numpy(), expected)
    (left,) = measured.glob("all_feat.euclidean.*.codes.npy")
    assert "ffff" in left.name


def test_damaged_files_are_made_again(measured: Path) -> None:
    database = opened(measured)
    expected = quantised_of(database)[0].values.numpy().copy()
    for path in measured.glob("all_feat.*.codes.npy"):
        path.write_bytes(path.read_bytes()[:-10])
    np.testing.assert_array_equal(quantised_of(database)[0].values.numpy(), expected)


def test_other_metrics_and_signals_without_weight(measured: Path) -> None:
    database = opened(measured)
    assert quantised_of(database, "cityblock") is None
    assert not files(measured)
    assert len(quantised_of(database, "cosine", weight=0.0)) == 2


def test_an_order_has_files_of_its_own(measured: Path) -> None:
    database = opened(measured)
    order = np.random.default_rng(0).permutation(len(database.paths))
    signals = signals_of(database, ("euclidean", "euclidean"), (), 0.1, 2.0)
    plain, ordered = open_quantised(database, signals), open_quantised(database, signals, order)
    for first, second in zip(plain, ordered, strict=True):
        np.testing.assert_array_equal(first.values.numpy()[order], second.values.numpy())
        np.testing.assert_array_equal(first.error.numpy()[order], second.error.numpy())
    assert len(list(measured.glob("all_feat.euclidean.*.codes.npy"))) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_searched_without_them(
    measured: Path, capsys: pytest.CaptureFixture
) -> None:
    measured.chmod(0o500)
    try:
        assert quantised_of(opened(measured)) is None
    finally:
        measured.chmod(0o700)
    assert "queries will be slower" in capsys.readouterr().err
