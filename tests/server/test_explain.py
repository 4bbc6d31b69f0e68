"""What the network sees in a query and its answers."""

import base64
import io
import re

import httpx
import numpy as np
import pytest
from PIL import Image

from network.color import MEAN, STD
from search.query import Stopwatch
from server.explain import explain as explain_images
from server.explain import images_of, see, thumbnail
from server.live import Collection
from server.ranking import search
from server.schemas import Explanation, Found, SearchOptions

pytest_plugins = ("tests.server.web_base",)


def explain(collection: Collection, options: SearchOptions, answer: str) -> Explanation:
    images = images_of(collection, options, answer)
    return explain_images(collection, images, see(collection, images))


@pytest.fixture
def explained(collection: Collection, ids: list[str]):
    """Search by pictures, named by their rows, and explain an answer by its place."""

    def run(place: int, **options: list[int]) -> tuple[Explanation, Found]:
        query = SearchOptions(**{name: [ids[row] for row in own] for name, own in options.items()})
        found = search(collection, query, Stopwatch()).answers[place]
        return explain(collection, query, found.id), found

    return run


def test_what_is_shown_beside_the_answer_is_the_first_picture(explained, collection, ids) -> None:
    one, found = explained(1, pictures=[7])
    several, _ = explained(1, pictures=[7, 30])
    liked, _ = explained(1, like=[7], unlike=[9])
    assert one.query == several.query == liked.query
    alone = explain(collection, SearchOptions(color="#b3202c"), found.id)
    assert (alone.query, alone.similar) == (None, [])
    assert alone.answer.image == one.answer.image


def test_the_cells_are_those_of_the_colour_feature(
    explained, collection: Collection, ids: list[str]
) -> None:
    """Their mean colours, strongest first, as the feature database has them."""
    explained, found = explained(2, pictures=[7])
    names = [signal.name for signal in collection.signals]
    stored = collection.signals[names.index("color")].features
    for view, row in ((explained.query, 7), (explained.answer, ids.index(found.id))):
        rgb = np.asarray(stored[row]).reshape(3, -1).T * STD + MEAN
        assert len(view.cells) == len(rgb) == 3
        for cell, color in zip(view.cells, rgb, strict=True):
            value = [int(cell.color[i : i + 2], 16) for i in (1, 3, 5)]
            assert value == pytest.approx(255 * color, abs=1.5)
            assert 0 <= cell.row < view.rows
            assert 0 <= cell.column < view.columns


def test_similar_cells_of_a_picture_and_itself(collection: Collection, ids: list[str]) -> None:
    """1 on the diagonal; never beyond -1 to 1."""
    explained = explain(collection, SearchOptions(pictures=[ids[7]]), ids[7])
    similar = np.array(explained.similar)
    cells = explained.answer.rows * explained.answer.columns
    assert similar.shape == (cells, cells)
    assert np.diag(similar) == pytest.approx(np.ones(cells), abs=1e-3)
    assert similar == pytest.approx(similar.T, abs=2e-3)
    assert np.abs(similar).max() <= 1


def test_the_views_are_what_the_network_sees(explained) -> None:
    explained, _ = explained(0, pictures=[7])
    for view in (explained.query, explained.answer):
        head, _, data = view.image.partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size == (96, 96)


@pytest.mark.parametrize("side", [64, 384, 2048])
def test_a_thumbnail_is_no_larger_than_wanted(
    collection: Collection, ids: list[str], side: int
) -> None:
    with Image.open(io.BytesIO(thumbnail(collection, ids[0], side))) as picture:
        assert picture.format == "JPEG"
        assert max(picture.size) == min(side, 300)
        assert not picture.getexif()


def test_pictures_that_are_explained_wait_with_those_that_are_searched(
    client: httpx.Client, ids: list[str]
) -> None:
    """One bounded queue: the network sees them in its batches, which the metrics count."""

    def seen() -> float:
        text = client.get("/api/metrics").text
        return float(re.search(r"^fashion_batch_pictures_sum (.+)$", text, re.M)[1])

    before = seen()
    body = {"search": {"pictures": [ids[7]]}, "answer": ids[9]}
    assert client.post("/api/explain", json=body).status_code == 200
    assert seen() == before + 2
