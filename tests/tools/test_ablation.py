"""The ablation: which groups are measured, its table, and one row of it on a few real photos."""

import importlib
import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tools import ablation
from utils import UserError


def test_every_product_group_is_measured_once_and_never_trained_on_there(tmp_path: Path) -> None:
    items = tmp_path / "items"
    for name in "ABCDEFG":
        (items / name).mkdir(parents=True)
    seen = []
    for fold in range(3):
        trained, measured = ablation.split_items(items, tmp_path / str(fold), fold, apart=False)
        own = {path.name for path in measured.iterdir()}
        assert {path.name for path in trained.iterdir()} == set("ABCDEFG") - own
        assert all(path.resolve() == items / path.name for path in measured.iterdir())
        seen += own
    assert sorted(seen) == list("ABCDEFG")
    with pytest.raises(UserError, match="2 product groups"):
        ablation.split_items(tmp_path / "0", tmp_path / "x", 0, apart=False)


def test_items_apart_are_measured_in_groups_that_are_trained_on(tmp_path: Path) -> None:
    items = tmp_path / "items"
    for name in ("A/1", "A/2", "A/3", "B/1", "B/2", "B/3"):
        (items / name).mkdir(parents=True)
    for fold, number in enumerate("123"):
        trained, measured = ablation.split_items(items, tmp_path / str(fold), fold, apart=True)
        for group in "AB":
            assert [path.name for path in (measured / group).iterdir()] == [number]
            assert {path.name for path in (trained / group).iterdir()} == set("123") - {number}


def test_the_table_has_means_and_spreads_by_hand(capsys: pytest.CaptureFixture) -> None:
    runs = [{"category p@1": value, "inshop recall@1": 2 * value} for value in (0.4, 0.5, 0.6)]
    ablation.print_table({"a row": runs})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| | category p@1 | inshop recall@1 |"
    assert lines[2] == "| a row | 50.0 ± 10.0 | 100.0 ± 20.0 |"


def run_here(script: str, base: Path, *flags: str) -> str:
    """As `ablation._run`, without a process of its own, which takes seconds to start."""
    base.mkdir(parents=True, exist_ok=True)
    with redirect_stdout(io.StringIO()) as out:
        main = importlib.import_module(script.removesuffix(".py")).main
        main([*flags, "--dataset-base", str(base)])
    return out.getvalue()


def test_a_script_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.py import nowhere .*: exit status 2"):
        ablation._run("data.py", tmp_path, "import", "nowhere")


def test_a_row_is_trained_measured_and_stored(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    photos, items = tmp_path / "photos", tmp_path / "items"
    for part, count in (("train", 12), ("validation", 4)):
        for name in ("dress", "hat"):
            (photos / part / name).mkdir(parents=True)
            for photo in sorted((shared / "photos" / part / name).iterdir())[:count]:
                shutil.copyfile(photo, photos / part / name / photo.name)
    for group in ("Pants", "Shorts", "Tees"):
        for item in sorted((shared / "inshop-men/img/MEN" / group).iterdir())[:4]:
            (items / group).mkdir(parents=True, exist_ok=True)
            (items / group / item.name).symlink_to(item, target_is_directory=True)
    phone = tmp_path / "phone"  # of one item, and of one that is not measured
    for item in ("mp01", "unknown"):
        (phone / item).mkdir(parents=True)
        shutil.copyfile(
            next((items / "Shorts").glob("*/*_back.jpg")), phone / item / "red_back.jpg"
        )
    monkeypatch.setattr(ablation, "_run", run_here)
    weights = shared / "weights/mobilenet_v2-imagenet-features.pth"
    flags = ["--photos", photos, "--items", items, "--phone", phone, "--runs", 1, "--rows", 5]
    flags += ["--dataset-base", tmp_path / "work"]
    flags += ["--backbone", "mobilenet_v2", "--pretrained", weights, "--epoch", 1]
    flags += ["--img-size", 128, "--crop-size", 128]
    ablation.main([str(flag) for flag in flags])
    out = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in out.splitlines()[2:]]
    row = "modern: + pooling, two parts"
    assert rows == [f"{row}, deep alone", row]
    (kept,) = (tmp_path / "work").glob("row5_run0_*/figures.json")
    figures = json.loads(kept.read_text())
    assert set(figures[""]) > {"category p@1", "inshop recall@10", "phone recall@1"}
    assert 0 < figures[""]["inshop recall@1"] <= 1
    assert figures[""] != figures[", deep alone"]
    changed = kept.stat().st_mtime_ns
    ablation.main([str(flag) for flag in flags])
    assert capsys.readouterr().out == out
    assert kept.stat().st_mtime_ns == changed
