"""Garments found by the network: `--bbox auto`, the JSON interface and the page, in a browser."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

import retrieval
from config import Config
from network.garments import save_head
from search import Searcher
from tests.network.test_garments import hand_made
from tests.server.web_base import Server, paths_of, post, query_file, serving
from tests.server.web_browser import ROOMY, Watched, expect
from tools import query_ablation
from utils import UserError, run_script, sha256_of

pytest_plugins = ("tests.server.web_base", "tests.server.web_browser")


@pytest.fixture(scope="module")
def finding(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection with a model that finds five garments or fewer in every picture."""
    base = tmp_path_factory.mktemp("finding") / "own"
    shutil.copytree(served, base, copy_function=os.link)
    score = torch.zeros(512)
    score[0] = 1
    save_head(base / "models/model_best.pth.tar", hand_made(512, score, 0.2, bias=1), side=192)
    info = json.loads((base / "all_feat.json").read_text())
    info["models"][0]["sha256"] = sha256_of(base / "models/model_best.pth.tar")
    (base / "all_feat.json").unlink()  # it is a link to that of the other collection
    (base / "all_feat.json").write_text(json.dumps(info))
    return base


@pytest.fixture(scope="module")
def own_server(finding: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(finding, tmp_path_factory.mktemp("server") / "run") as running:
        yield running


def test_auto_is_the_surest_box_everywhere(finding: Path, own_server: Server, capsys) -> None:
    photo = query_file(finding)
    with Searcher(finding, Config(DATASET_BASE=finding, DEVICE="cpu", _env_file=None)) as searcher:
        picture = Image.open(photo)
        boxes = searcher.finder(picture.convert("RGB"))
        assert len(boxes) > 1
        for x1, y1, x2, y2 in boxes:
            assert 0 <= x1 < x2 <= picture.width
            assert 0 <= y1 < y2 <= picture.height
        by_box = [match.path for match in searcher.search(picture, 8, box=boxes[0])]
        assert [match.path for match in searcher.search(picture, 8, box="auto")] == by_box
        assert [match.path for match in searcher.search(picture, 8)] != by_box
    command = [str(photo), "--dataset-base", str(finding), "--engine", "exact", "--with-own"]
    retrieval.main([*command, "--device", "cpu", "--json", "--bbox", "auto"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["garments"] == list(map(list, boxes))
    retrieval.main([*command, "--device", "cpu", "--json", "--bbox", *map(str, boxes[0])])
    (other,) = json.loads(capsys.readouterr().out)
    assert answer["results"] == other["results"]
    with httpx.Client(base_url=own_server.address, timeout=60, trust_env=False) as client:
        auto = post(client, photo, box="auto").json()
        assert auto["garments"] == list(map(list, boxes))
        box = post(client, photo, box=boxes[0]).json()
        assert (paths_of(auto), box["garments"]) == (paths_of(box), [])
        assert client.get("/api/collection").json()["cut"] is True


def test_the_cuts_are_compared_with_the_annotated_boxes(finding: Path, capsys) -> None:
    """Of whole pictures the IoU is the share of the picture that the box covers."""
    query_ablation.main(["--dataset-base", str(finding), "--device", "cpu", "--boxes"])
    said = capsys.readouterr().out
    rows = [line.split() for line in (finding / "Anno/list_bbox.txt").read_text().splitlines()[2:]]
    boxes = {path: tuple(map(int, box)) for path, *box in rows}
    parts = (finding / "Eval/list_eval_partition.txt").read_text().splitlines()[2:]
    tested = [path for path, part in map(str.split, parts) if part == "test"]
    shares = []
    for path in tested:
        x1, y1, x2, y2 = boxes[path]
        width, height = Image.open(finding / path).size
        shares.append((x2 - x1) * (y2 - y1) / (width * height))
    assert f"All {len(tested):,} queries" in said
    found = {line.split()[0]: line.split()[1] for line in said.splitlines() if "%" in line}
    assert found["annotated"] == "1.000"
    assert float(found["whole"]) == pytest.approx(np.mean(shares), abs=6e-4)


@pytest.mark.parametrize("flags", [["auto", "1"], ["1", "2", "3"], ["1", "2", "3", "auto"]])
def test_other_boxes_are_one_line(finding: Path, capsys, flags: list[str]) -> None:
    command = [str(query_file(finding)), "--dataset-base", str(finding), "--bbox", *flags]
    with pytest.raises(SystemExit) as exit_:
        run_script(lambda: retrieval.main(command))
    assert (exit_.value.code, capsys.readouterr().err.count("\n")) == (2, 1)


def test_a_model_without_boxes_says_so(served: Path, client: httpx.Client) -> None:
    photo = query_file(served)
    searcher = Searcher(served, Config(DATASET_BASE=served, DEVICE="cpu", _env_file=None))
    with searcher, pytest.raises(UserError, match="finds no garments"):
        searcher.search(photo, box="auto")
    refused = post(client, photo, box="auto")
    assert (refused.status_code, "finds no garments" in refused.json()["detail"]) == (409, True)
    assert client.get("/api/collection").json()["cut"] is False


def percent(at: Watched, side: str) -> float:
    style = at.page.locator("#box").get_attribute("style")
    return float(re.search(rf"(?<![\w-]){side}: ([\d.]+)%", style)[1])


def test_the_page_draws_the_box_and_a_hand_moves_it(
    browser, own_server: Server, finding: Path
) -> None:
    photo = query_file(finding)
    width, height = Image.open(photo).size
    with browser.new_context(viewport=ROOMY) as context:
        at = Watched(context.new_page(), own_server.address)
        at.open()
        with at.page.expect_response("**/api/search") as response:
            at.upload(photo)
        garments = response.value.json()["garments"]
        assert at.options()["box"] == "auto"
        expect(at.page.locator("#box")).to_be_visible()
        x1, y1, x2, _ = garments[0]
        assert percent(at, "left") == pytest.approx(100 * x1 / width, abs=0.1)
        assert percent(at, "top") == pytest.approx(100 * y1 / height, abs=0.1)
        assert percent(at, "width") == pytest.approx(100 * (x2 - x1) / width, abs=0.1)
        # One of the other garments, by its dot.
        dots = at.page.locator("#garments button")
        expect(dots).to_have_count(len(garments) - 1)
        at.after(lambda: dots.first.click())
        assert at.options()["box"] == garments[1]
        expect(dots).to_have_count(len(garments) - 1)
        # Moved by hand: the box of the hand is searched.
        start = at.page.locator("#box").bounding_box()
        frame = at.page.locator("#picture").bounding_box()
        away = 1 if start["x"] - frame["x"] < frame["width"] / 3 else -1
        at.page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
        at.page.mouse.down()
        at.page.mouse.move(start["x"] + start["width"] / 2 + 30 * away, start["y"] + 20)
        at.after(at.page.mouse.up)
        moved = at.options()["box"]
        assert moved not in ("auto", *garments)
        shift = (moved[0] - garments[1][0]) * frame["width"] / width
        assert shift == pytest.approx(30 * away, abs=3)
        at.after(lambda: at.page.click("#whole"))
        assert "box" not in at.options()
        assert at.errors == []
