"""`data.py import --categories`: categories by an image-text model, marked and never the truth."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train
from data import main
from evaluation.protocols import category_task
from features.database import open_database
from pictures.collection import read_collection
from pictures.deepfashion import find_box, read_assigned
from pictures.splits import read_splits
from tests.conftest import stored_features
from tools.synthetic.draw import make_collection
from utils import UserError

NAMES = ("Hoodie", "Poncho", "Tank", "Blazer")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn garments of four categories, cut out, in one folder, named by them; one broken."""
    base = tmp_path_factory.mktemp("assigned")
    make_collection(base / "drawn", items=200, views=1, inshop_items=0, seed=0)
    (base / "photos").mkdir()
    for path in sorted((base / "drawn" / "img").glob("*/*.jpg")):
        _, _, category, number = path.parent.name.split("_")
        if category in NAMES:
            box = find_box(base / "drawn", path.relative_to(base / "drawn").as_posix())
            with Image.open(path) as picture:
                picture.crop(box).save(base / "photos" / f"{category}-{number}.jpg")
    (base / "photos" / "broken.jpg").write_bytes(b"no picture")
    return base / "photos"


def imported(photos: Path, base: Path, model: Path, *argv: str) -> None:
    flags = ("--categories", "hoodie, poncho,tank,blazer", "--num-workers", "1")
    name = f"open_clip/local-dir:{model}"
    argv = ("import", str(photos), "--dataset-base", str(base), "--backbone", name, *flags, *argv)
    assert main([*argv, "--text-prompt", "a {}", "--device", "cpu"]) == 0


def test_photos_get_the_nearest_category_which_is_marked(
    photos: Path, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "set"
    imported(photos, base, tiny_clip)
    assert "40 categories were assigned by a model" in capsys.readouterr().out
    whole = read_collection(base, 50, False, 0.1)
    names = [*whole.category_names, ""]
    found = dict(zip(whole.paths, (names[i] for i in whole.categories), strict=True))
    assert found.pop("img/broken.jpg") == ""
    right = [path.startswith(f"img/{name.title()}-") for path, name in found.items()]
    assert sum(right) >= 24  # of 40; chance is 10
    assert read_assigned(base).keys() == found.keys()
    assert all(0.25 <= p <= 1 for p in read_assigned(base).values())

    status = main(["check", "--dataset-base", str(base), "--num-workers", "1"])
    out = capsys.readouterr().out
    assert status == 1
    assert "40 categories are assigned by a model: not trained on, not evaluated" in out
    shown = [float(p) for p in re.findall(r"(0\.\d{3})  \w+  img/", out)]
    assert shown == sorted(p for p in read_assigned(base).values() if p < 0.5)[:10]
    with pytest.raises(UserError, match="no picture in its train part; see"):
        train.main(["--dataset-base", str(base), "--epoch", "1"])

    listed = base / "Anno" / "list_category_assigned.txt"
    listed.rename(tmp_path / "checked.txt")
    assert len(read_splits(base, 50, False, 0.1).train) > 10
    assert main(["import", str(photos), "--dataset-base", str(base)]) == 0
    assert not listed.exists()


def test_given_categories_stay_and_only_they_are_evaluated(
    photos: Path, tiny_clip: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder, base = tmp_path / "photos", tmp_path / "set"
    shutil.copytree(photos, folder)
    for name in ("Tank", "Blazer"):
        (folder / f"{name}s").mkdir()
        for path in folder.glob(f"{name}-*.jpg"):
            path.rename(folder / f"{name}s" / path.name)
    imported(folder, base, tiny_clip, "--test")
    assert set(read_assigned(base)) == {f"img/{p.name}" for p in folder.glob("[HP]*-*.jpg")}
    stored_features(base, rng)
    database = open_database(base)
    assert {"Tanks", "Blazers"} < {database.category(row) for row in range(len(database.paths))}
    task = category_task(database, 0.1)
    measured = {database.paths[row] for rows in (task.queries, task.gallery) for row in rows}
    given = {f"img/{path.relative_to(folder)}" for path in folder.glob("*/*.jpg")}
    assert measured == given
    with pytest.raises(UserError, match="no picture in its train part; see"):
        read_splits(base, 50, False, 0.1)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--categories", "dress"], "name two or more"),
        (["--categories", "dress, Dress"], "name two or more"),
        (["--categories"], "name two or more"),
        (["--categories", "dress,hat"], "knows no words; name an image-text model"),
        (["--categories", "dress,hat", "--in-shop"], "is about photos"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    photos: Path, tmp_path: Path, argv: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        main(["import", str(photos), "--dataset-base", str(tmp_path), *argv])
    assert "\n" not in str(error.value)
