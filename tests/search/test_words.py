"""Words as queries: a tiny image-text model over drawn garments that it has not seen."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import feature_extractor
import retrieval
from config import Config
from pictures.deepfashion import find_box
from search import Searcher
from search.matches import Match
from tests.conftest import ROOT, run
from tools.synthetic.garments import CATEGORY_NAMES
from tools.synthetic.items import COLOURS
from utils import UserError

PAIRS = [(colour, category) for i, colour in enumerate(COLOURS)
         for category in (CATEGORY_NAMES[i % 20], CATEGORY_NAMES[(i + 7) % 20])]  # fmt: skip


@pytest.fixture(scope="module")
def searcher(worded: Path) -> Searcher:
    return Searcher(worded, Config(DATASET_BASE=worded, DEVICE="cpu", _env_file=None))


def drawn_as(path: str) -> tuple[str, str]:
    """The colour and the category that a garment was drawn with, by the name of its folder."""
    _, colour, category, _ = path.split("/")[1].split("_")
    return colour, category


def times_chance(
    searcher: Searcher, search: Callable[[str, str], list[Match]], wanted: list[tuple[str, str]]
) -> np.ndarray:
    """Shares of the wanted colour and category in the first 10 answers, as multiples of chance."""
    everything = np.array([drawn_as(path) for path in searcher.database.paths])
    rates = []
    for pair in wanted:
        found = np.array([drawn_as(match.path) for match in search(*pair)])
        assert len(found) == 10
        rates.append([(found == pair).mean(0), (everything == pair).mean(0)])
    found, chance = np.mean(rates, 0)
    return found / chance


def test_words_find_the_colour_and_the_category(searcher: Searcher) -> None:
    def search(colour: str, category: str) -> list[Match]:
        return searcher.search(text=f"a {colour.lower()} {category.lower()}", count=10)

    assert (times_chance(searcher, search, PAIRS) >= 5).all()


def test_words_move_the_colour_of_a_picture_and_keep_its_category(
    worded: Path, searcher: Searcher
) -> None:
    """Against the picture alone: words that weigh nothing."""
    config = Config(DATASET_BASE=worded, DEVICE="cpu", TEXT_WEIGHT=0, _env_file=None)
    paths = searcher.database.paths[:40]
    colours = ["Cobalt", "Red", "Forest", "Mustard"]
    wanted = [(colours[i % 4], drawn_as(path)[1]) for i, path in enumerate(paths)]

    def measured(by: Searcher) -> np.ndarray:
        queries = iter(paths)
        return times_chance(
            by, lambda colour, _: by.search(next(queries), 10, text=colour.lower()), wanted
        )

    with Searcher(worded, config) as alone:
        before, after = measured(alone), measured(searcher)
    assert before[0] < 2
    assert after[0] >= 4
    assert before[1] >= 4
    assert after[1] >= 0.6 * before[1]


def test_distances_are_those_of_the_librarys_own_call(
    worded: Path, tiny_clip: Path, searcher: Searcher
) -> None:
    open_clip = pytest.importorskip("open_clip")
    name = f"local-dir:{tiny_clip}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    rows = range(0, 400, 37)
    pictures = []
    for path in (searcher.database.paths[row] for row in rows):
        with Image.open(worded / path) as picture:
            pictures.append(preprocess(picture.convert("RGB").crop(find_box(worded, path))))
    with torch.inference_mode():
        images = model.eval().encode_image(torch.stack(pictures), normalize=True)
        words = model.encode_text(open_clip.get_tokenizer(name)(["navy TEE"]), normalize=True)
        both = torch.nn.functional.normalize(images[:1] + words)
    found = {match.path: match for match in searcher.search(text="navy TEE", count=400)}
    near = [found[searcher.database.paths[row]].distance for row in rows]
    np.testing.assert_allclose(near, 1 - (images @ words.T)[:, 0], atol=1e-3)
    first = searcher.database.paths[0]
    found = {match.path: match for match in searcher.search(first, 399, text="navy TEE")}
    near = [found[searcher.database.paths[row]].distance for row in rows[1:]]
    np.testing.assert_allclose(near, 1 - (images[1:] @ both.T)[:, 0], atol=1e-3)


def test_retrieval_takes_words_alone_and_with_pictures(
    worded: Path, searcher: Searcher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(*argv: str) -> tuple[list[dict], str]:
        retrieval.main([*argv, "--dataset-base", str(worded), "--device", "cpu", "--json"])
        captured = capsys.readouterr()
        return json.loads(captured.out), captured.err

    output = tmp_path / "found.png"
    (answer,), _ = printed("--text", "rotes Kleid, 赤い", "--output", str(output))
    assert (answer["query"], answer["engine"]) == ('"rotes Kleid, 赤い"', "exact")
    expected = searcher.search(text="rotes Kleid, 赤い")
    assert [one["path"] for one in answer["results"]] == [match.path for match in expected]
    assert "palette" not in answer["results"][0]
    with Image.open(output) as sheet:
        assert sheet.width > 500

    names = searcher.database.paths[:2]
    flags = ("--text", "red", "--category", "Tee", "--engine", "kmeans", "--top-n", "3")
    answers, errors = printed(*names, *flags)
    assert [one["query"] for one in answers] == [f'{name} + "red"' for name in names]
    assert "words are searched exactly" in errors
    for name, answer in zip(names, answers, strict=True):
        expected = searcher.search(name, 3, text="red", category="Tee")
        assert [one["path"] for one in answer["results"]] == [match.path for match in expected]
        assert {one["category"] for one in answer["results"]} == {"Tee"}
    (together,), _ = printed(*names, "--together", "--text", "red")
    expected = searcher.search(list(names), text="red")
    assert [one["path"] for one in together["results"]] == [match.path for match in expected]


def test_without_an_image_text_model_one_line_says_what_to_add(
    few_photos: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(few_photos, tmp_path / "photos")
    data = ("--dataset-base", str(base), "--device", "cpu")
    flags = ("--num-workers", "0", "--amp", "off", "--color-top-n", "3")
    assert feature_extractor.main([*data, *flags]) == 0
    done = run("retrieval.py", "--text", "a red dress", *data, check=2)
    assert done.stderr.count("\n") == 1
    assert "--backbone open_clip/NAME --inter-dim 0 --epoch 0" in done.stderr
    with pytest.raises(UserError, match="name a query picture, or words"):
        retrieval.main(data)


def test_open_clip_is_imported_by_words_only(few_photos: Path) -> None:
    code = "import sys, retrieval, web, search.searcher; print('open_clip' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, cwd=ROOT, text=True) == "False\n"
