"""What is searched by becomes features."""

import io

import numpy as np
import pytest
from fastapi import HTTPException
from scipy.spatial.distance import cdist

from network.color import PALETTE_BINS
from server import live
from server.live import Collection
from server.query_features import color_features
from tests.server.web_base import png_of

pytest_plugins = ("tests.server.web_base",)
COLORS = ["#ff0000", "#00aa00", "#2040ff", "#ffffff", "#101010", "#f2cc3d"]


def test_the_palette_of_a_flat_picture_is_nearest_to_its_own_colour(collection: Collection) -> None:
    features = [color_features(collection.signals, color) for color in COLORS]
    assert set(features[0]) == {"color", "palette"}
    palettes = np.concatenate([one["palette"] for one in features])
    assert np.linalg.norm(palettes, axis=1) == pytest.approx(np.ones(len(COLORS)), abs=1e-5)
    assert palettes.shape[1] == PALETTE_BINS**3
    number = [signal.name for signal in collection.signals].index("palette")
    pictures = [collection.read(io.BytesIO(png_of(color))) for color in COLORS]
    own = collection.extract(pictures)[number]
    assert np.argmin(cdist(own, palettes), axis=1).tolist() == list(range(len(COLORS)))


def test_uploaded_pictures_are_forgotten_in_time_and_when_there_are_many(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = collection.read(io.BytesIO(png_of("red")))
    monkeypatch.setattr(live, "MAX_UPLOADS", 2)
    few = Collection(collection.config)
    names = [few.keep([], [query]) for _ in range(3)]
    assert len(set(names)) == 3
    assert few.uploaded(names[2]).files == list(query.files)
    with pytest.raises(HTTPException, match="send its pictures again"):
        few.uploaded(names[0])
    monkeypatch.setattr(live, "UPLOAD_SECONDS", 0.0)
    short = Collection(collection.config)
    with pytest.raises(HTTPException):
        short.uploaded(short.keep([], [query]))
