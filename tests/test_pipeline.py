"""The whole way on real photos, script by script."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist

from tests.conftest import run


def test_from_a_folder_of_photos_to_answers(shared: Path, tmp_path: Path) -> None:
    """import, check, train, extract, cluster, query, evaluate on the men's in-shop photos."""
    base = tmp_path / "men"
    there = ["--dataset-base", base]
    data = [*there, "--enable-inshop-dataset"]
    photos = shared / "inshop-men" / "img" / "MEN"
    run("data.py", "import", photos, "--item-level", "--dataset-base", base, "--val-share", 0.3)
    assert "ready for training" in run("data.py", "check", *data).stdout

    weights = shared / "weights" / "mobilenet_v2-imagenet-features.pth"
    network = ["--backbone", "mobilenet_v2", "--pretrained", weights]
    network += ["--img-size", 128, "--crop-size", 112]
    run("train.py", *data, *network, "--epoch", 0)
    run("feature_extractor.py", *data)
    untrained = json.loads(run("evaluate.py", *there, "--json").stdout)

    recipe = ["--epoch", 5, "--freeze-param", "true", "--train-batch-size", 32]
    run("train.py", *data, *network, *recipe)
    query = "img/Tees/ms01/black_main.jpg"
    stale = run("retrieval.py", query, *there, check=2)
    assert "feature_extractor.py" in stale.stderr
    run("feature_extractor.py", *data)
    old = run("kmeans.py", *there, "--n-clusters", 12)
    assert "recall@10" in old.stdout

    picture = tmp_path / "results.jpg"
    done = run("retrieval.py", query, *there, "--json", "--top-n", 7, "--with-own",
               "--output", picture)  # fmt: skip
    exact, kmeans = json.loads(done.stdout)
    assert (exact["engine"], kmeans["engine"]) == ("exact", "kmeans")
    assert exact["results"][0]["path"] == query
    assert exact["results"][0]["distance"] == pytest.approx(0, abs=1e-3)
    assert exact["results"][0]["category"] == "Tees"
    assert Image.open(picture).width > 1000

    # The order, from the files alone.
    paths = (base / "all_feat.list").read_text().splitlines()
    deep, color = np.load(base / "all_feat.npy"), np.load(base / "all_color_feat.npy")
    row = paths.index(query)
    palette = np.load(base / "all_palette_feat.npy")
    distance = cdist(deep[[row]], deep)[0] + 0.1 * cdist(color[[row]], color)[0]
    distance += 5 * cdist(palette[[row]], palette)[0]
    order = np.argsort(distance, kind="stable")[:7]
    assert [result["path"] for result in exact["results"]] == [paths[i] for i in order]

    trained = json.loads(run("evaluate.py", *there, "--json").stdout)
    for record in (untrained, trained):
        category = record["parts"]["category"]
        assert category["p@1"]["value"] > 2 * category["chance"]
        assert record["recall@10"]["value"] > 0.5
    assert trained["top1"]["value"] > 2 / 6
    assert trained["map"]["value"] > untrained["map"]["value"] + 0.03

    # Two models and their weights: fit, then ask with what was found.
    models = ["--models", "model_best.pth.tar,model_0_final.pth.tar"]
    run("feature_extractor.py", *data, *models)
    fitted = run("evaluate.py", *there, "--tune-weights").stdout.splitlines()
    found = [line.removeprefix("FASHION_").split("=") for line in fitted if "FASHION_" in line]
    weights = [f"--{name.lower().replace('_', '-')}={value}" for name, value in found]
    assert [name for name, _ in found] == ["MODEL_WEIGHTS", "COLOR_WEIGHT", "PALETTE_WEIGHT"]
    assert len(found[0][1].split(",")) == 2
    fused = json.loads(run("retrieval.py", query, *there, *models, *weights, "--json",
                           "--with-own", "--engine", "exact").stdout)  # fmt: skip
    first = fused[0]["results"][0]
    assert first["path"] == query
    assert {"deep", "deep_2", "color", "palette"} <= set(first)
    unnamed = run("retrieval.py", query, *there, *weights, "--json", "--with-own", "--engine",
                  "exact")  # fmt: skip
    assert json.loads(unnamed.stdout)[0]["results"] == fused[0]["results"]
    assert "model_best.pth.tar, model_0_final.pth.tar" in unnamed.stderr
    page = tmp_path / "report.html"
    run("evaluate.py", *there, *weights, "--report", page)
    assert page.read_text().startswith("<!doctype html>") or "<html" in page.read_text()[:300]
