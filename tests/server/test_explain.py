"""The parts of a distance, and what the network sees."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from net import Architecture, FeatureNet, initial_net
from network.color import MEAN, PALETTE_BINS, STD
from network.device import to_device
from search.query import Stopwatch
from server.explain import explain, images_of, inspect, see, thumbnail
from server.live import Collection
from server.query_features import QueryMemory
from server.ranking import search
from server.schemas import Explanation, SearchOptions
from tests.fake_cuda import pictures

pytest_plugins = ("tests.server.web_base",)


def explained_by(collection: Collection, query: SearchOptions, answer: str) -> Explanation:
    """As the interface explains an answer."""
    arguments = (collection, QueryMemory(), query, answer)
    images = images_of(*arguments)
    return explain(*arguments, images, see(collection, images))


@pytest.fixture
def explained(collection: Collection, ids: list[str]):
    """Search, and explain an answer by its place; pictures are named by their rows."""

    def run(place: int, **options: object) -> tuple[Explanation, object]:
        for name in {"pictures", "like", "unlike"} & options.keys():
            options[name] = [ids[row] for row in options[name]]
        query = SearchOptions(**options)
        found = search(collection, QueryMemory(), query, Stopwatch()).answers[place]
        return explained_by(collection, query, found.id), found

    return run


@pytest.mark.parametrize(
    "options",
    [
        {"pictures": [7]}, {"pictures": [7, 30]}, {"like": [7], "unlike": [9]},
        {"pictures": [7], "balance": 0.8}, {"pictures": [7], "balance": 0.0},
        {"pictures": [7], "color": "#b3202c"}, {"color": "#b3202c"},
        {"pictures": [7], "category": "Blouse"}, {"pictures": [7], "engine": "kmeans"},
    ],
)  # fmt: skip
def test_the_parts_add_up_to_the_distance_of_the_search(explained, options: dict) -> None:
    explained, found = explained(3, **options)
    total = sum(part.weight * part.value for part in explained.parts)
    assert total == pytest.approx(found.distance, abs=1e-4)
    assert explained.distance == pytest.approx(found.distance, abs=1e-4)
    assert {part.signal: part.value for part in explained.parts} == pytest.approx(
        found.parts, abs=1e-4
    )
    alone = "pictures" not in options and "like" not in options
    assert (explained.query is None) == alone
    assert (explained.similar == []) == alone


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


def test_the_palette_s_greatest_parts_are_shown(
    explained, collection: Collection, ids: list[str]
) -> None:
    explained, found = explained(2, pictures=[7])
    names = [signal.name for signal in collection.signals]
    palette = (
        np.asarray(collection.signals[names.index("palette")].features[ids.index(found.id)]) ** 2
    )
    shares = [shade.share for shade in explained.answer.shades]
    assert shares == sorted(shares, reverse=True)
    assert shares == pytest.approx(np.sort(palette)[::-1][: len(shares)], abs=1e-3)
    assert sum(shares) <= 1 + 1e-6


def test_similar_cells_of_a_picture_and_itself(collection: Collection, ids: list[str]) -> None:
    """1 on the diagonal; never beyond -1 to 1."""
    explained = explained_by(collection, SearchOptions(pictures=[ids[7]]), ids[7])
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


@pytest.mark.parametrize("amp", ["float32", "float16", "bfloat16"])
def test_a_picture_is_inspected_on_cuda(fake_cuda: torch.device, amp: str) -> None:
    """Seen to fail with the pictures or the palette's table left on the CPU in `inspect`."""
    architecture = Architecture("resnet18", 16, ["Tee", "Blouse"], 72, 64)
    net = to_device(FeatureNet(initial_net(architecture, "none"), [], flip=False).eval(), fake_cuda)
    maps, palettes = inspect(net, pictures(2), fake_cuda, amp)
    assert maps.shape == (2, 512, 2, 2)
    assert palettes.shape == (2, PALETTE_BINS**3)
    assert maps.dtype == palettes.dtype == torch.float32
    assert maps.device == palettes.device == fake_cuda
