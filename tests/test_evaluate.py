"""evaluate.py as a user runs it: what it prints, its JSON, its report, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

import evaluate
import kmeans
from tests.conftest import replace_features
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


def test_the_table_shows_earlier_figures_beside_the_new_ones(
    measured: Path, capsys, tmp_path: Path
) -> None:
    base = ["--dataset-base", str(measured)]
    evaluate.main([*base, "--json"])
    before = tmp_path / "before.json"
    before.write_text(capsys.readouterr().out)
    evaluate.main([*base, "--color-weight", "9", "--against", str(before)])
    out = capsys.readouterr().out
    old = json.loads(before.read_text())["map"]["value"]
    line = next(line for line in out.splitlines() if line.split()[:1] == ["map"])
    assert line.split()[1] == f"{old:.2%}"
    assert line.split()[2] != line.split()[1]
    assert "9 color euclidean" in out


def test_a_warning_names_earlier_figures_of_other_queries(measured, capsys, tmp_path) -> None:
    base, before = ["--dataset-base", str(measured)], tmp_path / "before.json"

    def warning(*flags: str) -> list[str]:
        evaluate.main([*base, *flags, "--against", str(before)])
        return [line for line in capsys.readouterr().out.splitlines() if "other queries" in line]

    capsys.readouterr()
    evaluate.main([*base, "--json"])
    before.write_text(capsys.readouterr().out)
    assert warning() == []
    assert warning("--protocol", "inshop") == []  # a part of it, with the same queries
    path = measured / "in_shop/list_eval_partition.txt"
    listed = path.read_text()
    path.unlink()  # it is a link to the drawn one
    path.write_text(listed.replace(" gallery", " train", 1))
    (message,) = warning()
    assert "(item, " in message
    assert "category" not in message


def test_methods_and_signals_are_measured_and_reported(measured: Path, capsys, tmp_path) -> None:
    page = tmp_path / "report.html"
    evaluate.main(["--dataset-base", str(measured), "--query-ablation", "--report", str(page)])
    out = capsys.readouterr().out
    rows = {line.strip().split("  ")[0] for line in out.splitlines()}
    assert {"plain", "k-reciprocal re-ranking", "best picture of each item"} <= rows
    assert {"deep alone (weight 1)", "palette alone (weight 4)"} <= rows
    html = page.read_text()
    assert "k-reciprocal re-ranking" in html
    assert "palette alone (weight 4)" in html
    plain = next(line for line in out.splitlines() if line.strip().startswith("plain"))
    assert "+0.00%" in plain


def test_the_query_ablation_is_in_the_json_as_numbers(figures) -> None:
    record = figures("--query-ablation")
    assert "query_ablation" not in figures()
    tables = {table["title"]: table for table in record["query_ablation"]}
    assert list(tables) == [
        "Query-time methods, same category", "Signals, same category, ranked exactly",
        "Query-time methods, same item", "Signals, same item, ranked exactly",
    ]  # fmt: skip
    for task, names in (("category", CATEGORY[:3]), ("item", ["recall@1", "recall@10", "mrr"])):
        plain = tables[f"Query-time methods, same {task}"]
        whole = tables[f"Signals, same {task}, ranked exactly"]
        expected = [record["parts"][task][name]["value"] for name in names]
        assert plain["header"][1:4] == whole["header"][1:4] == names
        assert plain["rows"][0][:-1] == ["plain", *map(pytest.approx, expected), 0, [0, 0]]
        assert whole["rows"][0] == ["all", *map(pytest.approx, expected), None, None]
    rows = {row[0]: row[1:] for row in tables["Query-time methods, same item"]["rows"]}
    assert rows["best picture of each item"][1] > rows["plain"][1]  # recall@10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--protocol", "outdoor"), "outdoor"),
        (("--against", "gone.json"), "gone.json"),
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


def test_a_missing_or_wrong_classifier_is_named_before_the_search(
    measured: Path, monkeypatch
) -> None:
    monkeypatch.setattr(evaluate, "run_task", None)
    path = measured / "all_classifier.npz"
    with np.load(path) as file:
        weight, bias = file["weight"], file["bias"]
    for arrays in ({"weight": weight[:, 1:], "bias": bias}, {"weight": weight, "bias": bias[1:]},
                   {"weight": weight}):  # fmt: skip
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=r"run: python feature_extractor\.py"):
            evaluate.main(["--dataset-base", str(measured)])
    for content in (b"nothing", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"run: python feature_extractor\.py"):
            evaluate.main(["--dataset-base", str(measured)])
    path.unlink()
    with pytest.raises(UserError, match=r"run: python feature_extractor\.py"):
        evaluate.main(["--dataset-base", str(measured)])


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


def test_json_refuses_earlier_figures(measured: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--against"):
        evaluate.main(["--dataset-base", str(measured), "--json", "--against", "old.json"])


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
        photo = sorted((shared / "photos/train" / name).iterdir())[0]
        (tmp_path / name / photo.name).symlink_to(photo)
    stored_features(tmp_path, rng)
    with pytest.raises(UserError, match="no query with a correct picture in the gallery"):
        evaluate.main(["--dataset-base", str(tmp_path)])
    assert capsys.readouterr().out == ""


def test_the_effect_of_mirror_images_is_measured(measured: Path, capsys) -> None:
    info = json.loads((measured / "all_feat.json").read_text())
    info["settings"]["FLIP"] = True
    (measured / "all_feat.json").write_text(json.dumps(info))
    # The plain features know the items, so without mirror images all is found.
    _, number = np.unique(np.load(measured / "all_item.npy"), return_inverse=True)
    known = np.eye(number.max() + 1, dtype=np.float32)[number]
    replace_features(measured, "all_plain_feat_1.npy", known)
    flags = [
        "--protocol",
        "inshop",
        "--query-ablation",
        "--color-weight",
        "0",
        "--palette-weight",
        "0",
    ]
    evaluate.main(["--dataset-base", str(measured), *flags])
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.strip().startswith("without mirror"))
    assert "100.00%" in row


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
