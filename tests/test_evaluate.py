"""evaluate.py as a user runs it: what it prints, its JSON, its report, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

import evaluate
import kmeans
from utils import UserError, run_script

ITEM = [*(f"recall@{k}" for k in (1, 10, 20, 30, 40, 50)), "map@r", "mrr"]
CATEGORY = ["p@1", "p@10", "map", "top1", "top3", "top5"]


@pytest.fixture
def figures(measured: Path, capsys: pytest.CaptureFixture):
    def run(*flags: str) -> dict:
        capsys.readouterr()
        evaluate.main(["--dataset-base", str(measured), "--json", *flags])
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(
    ("protocol", "keys", "parts"),
    [
        ("inshop", ITEM, ["item", "item, upper body", "item and color"]),
        ("category", CATEGORY, ["category"]),
        ("folder", [*CATEGORY, *ITEM], ["category", "item", "item, upper body", "item and color"]),
    ],
)
def test_json_has_the_keys_of_its_protocol_each_with_an_interval(
    figures, protocol: str, keys: list[str], parts: list[str]
) -> None:
    record = figures("--protocol", protocol)
    assert [key for key in record if key in {*ITEM, *CATEGORY}] == keys
    assert list(record["parts"]) == parts
    for key in keys:
        low, high = record[key]["ci95"]
        assert 0 <= low <= record[key]["value"] <= high <= 1
    for name in ("category", "item"):
        if name in record["parts"]:
            assert all(record[k] == v for k, v in record["parts"][name].items() if k in keys)
    assert record["models"] == [{"file": "a.pth", "sha256": "0" * 64}]
    assert len(record["features"]) == 64
    assert record["distance"].startswith("deep euclidean + 0.1 color")


def test_top_k_is_the_classifiers_on_the_stored_embeddings(measured: Path, figures) -> None:
    listed = (measured / "all_feat.list").read_text().splitlines()
    lines = (measured / "Eval/list_eval_partition.txt").read_text().splitlines()[2:]
    tested = {line.split()[0] for line in lines if line.split()[1] == "test"}
    rows = [row for row, path in enumerate(listed) if path in tested]
    classifier = np.load(measured / "all_classifier.npz")
    deep, category = np.load(measured / "all_feat.npy"), np.load(measured / "all_category.npy")
    ranks = []
    for row in rows:
        logits = classifier["weight"] @ deep[row] + classifier["bias"]
        ranks.append(np.argsort(-logits).tolist().index(category[row]))
    record = figures("--protocol", "category")
    for k in (1, 3, 5):
        expected = np.mean([rank < k for rank in ranks])
        assert record[f"top{k}"]["value"] == pytest.approx(expected)


def test_kmeans_with_all_clusters_is_exact_and_with_one_it_loses(measured: Path, figures) -> None:
    kmeans.main(["--dataset-base", str(measured), "--n-clusters", "8"])
    exact = figures()
    every = figures("--engine", "kmeans", "--nprobe", "8")
    one = figures("--engine", "kmeans", "--nprobe", "1")
    assert every["parts"] == exact["parts"]
    assert one["recall@50"]["value"] < exact["recall@50"]["value"]
    assert one["map"]["value"] < exact["map"]["value"]
    assert one["engine"] == "kmeans, nprobe 1"


def test_it_needs_no_photo(measured: Path, figures) -> None:
    before = figures()
    for picture in measured.rglob("*.jpg"):
        picture.unlink()
    assert figures() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--protocol", "outdoor"), "outdoor"),
        (("--engine", "kmeans"), "run: python kmeans.py"),
        (("--model-weights", "1,2"), "MODEL_WEIGHTS has 2 weights"),
        (("--dataset-base", "nowhere"), "feature_extractor.py"),
    ],
)
def test_an_error_is_one_line_and_status_2(measured, capsys, flags, message: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_script(lambda: evaluate.main(["--dataset-base", str(measured), *flags]))
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_classifier_of_other_categories_has_no_accuracy(measured: Path, figures) -> None:
    info = json.loads((measured / "all_feat.json").read_text())
    first = info["category_names"][np.load(measured / "all_category.npy")[0]]
    network = info["models"][0]["network"]
    strange = [f"strange {name}" for name in network["categories"]]
    for known, there in ((strange, False), ([first, *strange[1:]], True)):
        network["categories"] = known
        (measured / "all_feat.json").write_text(json.dumps(info))
        record = figures("--protocol", "category")
        assert ("top1" in record) == ("top1" in record["parts"]["category"]) == there
        assert "map" in record


def test_inshop_pictures_that_were_not_extracted_are_named(measured, capsys, tmp_path) -> None:
    """As after an extraction without the in-shop part."""
    from tests.conftest import stored_features

    rng, lists = np.random.default_rng(1), measured / "in_shop"
    lists.rename(tmp_path / "away")
    stored_features(measured, rng)
    evaluate.main(["--dataset-base", str(measured)])
    assert "--enable-inshop-dataset" not in capsys.readouterr().err
    (tmp_path / "away").rename(lists)
    with pytest.raises(UserError, match=r"feature_extractor\.py .*--enable-inshop-dataset"):
        evaluate.main(["--dataset-base", str(measured), "--protocol", "inshop"])
    capsys.readouterr()
    evaluate.main(["--dataset-base", str(measured), "--json"])
    out, err = capsys.readouterr()
    assert list(json.loads(out)["parts"]) == ["category"]
    assert "--enable-inshop-dataset" in err


def test_a_data_set_without_items_has_no_inshop_protocol(tmp_path: Path, shared: Path, rng) -> None:
    from tests.conftest import stored_features

    for name in ("hat", "shoes"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for photo in sorted((shared / "photos/train" / name).iterdir())[:20]:
            (tmp_path / "data" / name / photo.name).symlink_to(photo)
    stored_features(tmp_path / "data", rng)
    with pytest.raises(UserError, match="in_shop"):
        evaluate.main(["--dataset-base", str(tmp_path / "data"), "--protocol", "inshop"])
    evaluate.main(["--dataset-base", str(tmp_path / "data")])  # by category, as it is a folder


def test_where_no_answer_can_be_right_nothing_is_measured(shared, tmp_path, rng, capsys) -> None:
    from tests.conftest import stored_features

    for name in ("hat", "shoes"):
        (tmp_path / name).mkdir()
        for photo in sorted((shared / "photos/train" / name).iterdir())[:2]:
            (tmp_path / name / photo.name).symlink_to(photo)
    stored_features(tmp_path, rng)
    with pytest.raises(UserError, match="no query with a correct picture in the gallery"):
        evaluate.main(["--dataset-base", str(tmp_path), "--val-share", "0.5"])
    assert capsys.readouterr().out == ""


def test_color_agreement_is_measured_where_colours_have_names(measured: Path, figures) -> None:
    """Numbers of colours differ in meaning from item to item; names are compared."""
    assert "color" not in figures("--protocol", "inshop")["parts"]
    listed = (measured / "in_shop/list_eval_partition.txt").read_text().splitlines()[2:]
    paths = [line.split()[0] for line in listed]
    shades = {path: ("red", "blue", "-")[i % 3] for i, path in enumerate(paths)}
    rows = [f"{path} {shade}" for path, shade in shades.items()]
    text = "\n".join([str(len(rows)), "image_name color", *rows])
    (measured / "in_shop/list_color_inshop.txt").write_text(text)
    record = figures("--protocol", "inshop", "--color-weight", "0", "--palette-weight", "0")
    part = record["parts"]["color"]
    split = {line.split()[0]: line.split()[2] for line in listed}
    order = (measured / "all_feat.list").read_text().splitlines()
    deep = dict(zip(order, np.load(measured / "all_feat.npy"), strict=True))
    gallery = [path for path in paths if split[path] == "gallery"]
    agreement = []
    for query in (path for path in paths if split[path] == "query" and shades[path] != "-"):
        distance = [
            np.linalg.norm(deep["in_shop/" + query] - deep["in_shop/" + g]) for g in gallery
        ]
        first = [gallery[i] for i in np.argsort(distance)[:10]]
        agreement.append(np.mean([shades[path] == shades[query] for path in first]))
    assert part["queries"] == len(agreement)
    assert part["p@10"]["value"] == pytest.approx(np.mean(agreement))
    assert "p@10" not in record  # a part, not the protocol's own figure
