"""The whole way on real photos, script by script, and what the README says of the settings."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run
from PIL import Image
from scipy.spatial.distance import cdist

from config import Config


def test_from_a_folder_of_photos_to_answers(shared: Path, tmp_path: Path) -> None:
    """import, check, train, extract, cluster, query, evaluate on the men's in-shop photos."""
    base = tmp_path / "men"
    data = ["--dataset-base", base, "--enable-inshop-dataset"]
    photos = shared / "inshop-men" / "img" / "MEN"
    run("data.py", "import", photos, "--item-level", "--dataset-base", base, "--val-share", 0.3)
    assert "ready for training" in run("data.py", "check", *data).stdout

    weights = shared / "weights" / "mobilenet_v2-imagenet-features.pth"
    network = ["--backbone", "mobilenet_v2", "--pretrained", weights]
    network += ["--img-size", 128, "--crop-size", 112]
    run("train.py", *data, *network, "--epoch", 0)
    run("feature_extractor.py", *data)
    untrained = json.loads(run("evaluate.py", *data, "--json").stdout)

    recipe = ["--epoch", 5, "--lr", 0.01, "--momentum", 0.9, "--freeze-param", "true"]
    run("train.py", *data, *network, *recipe, "--triplet-batch-size", 8)
    query = "img/Tees/ms01/black_main.jpg"
    stale = run("retrieval.py", query, *data, check=2)
    assert "feature_extractor.py" in stale.stderr
    run("feature_extractor.py", *data)
    old = run("kmeans.py", *data, "--n-clusters", 12)
    assert "recall@10" in old.stdout

    picture = tmp_path / "results.jpg"
    done = run("retrieval.py", query, *data, "--json", "--top-n", 7, "--output", picture)
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
    distance = cdist(deep[[row]], deep)[0] + 0.1 * cdist(color[[row]], color)[0]
    order = np.argsort(distance, kind="stable")[:7]
    assert [result["path"] for result in exact["results"]] == [paths[i] for i in order]

    trained = json.loads(run("evaluate.py", *data, "--json").stdout)
    for figures in (untrained, trained):
        assert figures["category"]["p@1"] > 2 * figures["category"]["chance"]
        assert figures["item"]["recall@10"] > 0.5
    assert trained["category"]["map"] > untrained["category"]["map"] + 0.03


def test_the_readme_lists_every_setting_with_its_default() -> None:
    rows = {
        cells[1].strip(" `"): cells[2].strip()
        for line in (ROOT / "README.md").read_text().splitlines()
        if line.startswith("| `") and len(cells := line.split("|")) == 5
    }
    for name, field in Config.model_fields.items():
        default = field.default
        shown = ",".join(default) if isinstance(default, tuple) else str(default)
        expected = "min(4, cores)" if name == "NUM_WORKERS" else shown
        assert rows.get(name) == expected, name
