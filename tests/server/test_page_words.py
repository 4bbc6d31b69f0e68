"""Words on the page and in the JSON interface, by a tiny image-text model of drawn garments."""

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from scipy.spatial.distance import cosine

from config import Config
from search import Searcher
from tests.server.web_base import Server, paths_of, post, serving
from tests.server.web_browser import Watched, expect

pytest_plugins = ("tests.server.web_base", "tests.server.web_browser")


@pytest.fixture(scope="module")
def server(worded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Instead of the server of the other tests: one whose collection knows words."""
    with serving(worded, tmp_path_factory.mktemp("words") / "run") as running:
        yield running


@pytest.fixture(scope="module")
def searcher(worded: Path) -> Searcher:
    return Searcher(worded, Config(DATASET_BASE=worded, DEVICE="cpu", _env_file=None))


def test_text_is_an_option_alone_and_with_pictures(
    client: httpx.Client, searcher: Searcher, worded: Path
) -> None:
    assert client.get("/api/collection").json()["words"] is True
    name = searcher.database.paths[5]
    for files in ([], [worded / name]):
        options = {"engine": "kmeans", "other_color": True, "color": "#ff0000"}
        answer = post(client, *files, text=" a navy tee ", count=7, **options).json()
        pictures = [file.read_bytes() for file in files]  # an upload has no box
        expected = searcher.search([*map(io.BytesIO, pictures)], 7, text="a navy tee")
        assert paths_of(answer) == [match.path for match in expected]
        assert answer["engine"] == "exact"
        assert set(answer["weights"]) == {"deep"}
    within = post(client, text="a navy tee", category="Henley", count=5).json()
    assert {one["category"] for one in within["answers"]} == {"Henley"}
    search = {"text": "a navy tee"}
    first = within["answers"][0]["id"]
    why = client.post("/api/explain", json={"search": search, "answer": first}).json()
    assert why["query"] is None
    # Away from a picture: Rocchio's formula, on the cosines of words and of that picture.
    row = searcher.database.paths.index(within["answers"][0]["path"])
    picture = searcher.database.deep[0][row].astype(float)
    moved = searcher.words.tower([search["text"]]).numpy()[0]
    moved = moved - 0.15 * picture / np.linalg.norm(picture)
    away = post(client, text="a navy tee", unlike=[first], count=3).json()["answers"]
    for one in away:
        other = searcher.database.deep[0][searcher.database.paths.index(one["path"])]
        assert one["distance"] == pytest.approx(cosine(moved, other), abs=1e-5)


def test_the_page_searches_by_words_and_by_a_picture_with_words(
    at: Watched, searcher: Searcher
) -> None:
    at.open()
    box = at.page.locator("#text")

    def say(words: str) -> list[str]:
        def act() -> None:
            box.fill(words)
            box.press("Enter")

        return at.after(act)

    found = say("a navy tee")
    assert found == [match.path for match in searcher.search(text="a navy tee", count=20)]
    assert at.options()["text"] == "a navy tee"
    expect(at.page.locator("#status")).to_contain_text("exact: all 400 pictures")
    alone = at.after(lambda: at.page.locator("#grid .from").nth(0).click())
    expect(box).to_have_value("")
    both = say("cobalt")
    assert both != alone
    assert at.options()["pictures"]
    assert sum("_Cobalt_" in path for path in both) > sum("_Cobalt_" in path for path in alone)
    at.after(lambda: at.page.click("#clear"))
    expect(box).to_have_value("")
