"""folder.py: plain folders of photos, their categories and their splits."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import PictureDataset
from pictures.decode import PictureError
from pictures.folder import allow_roots, picture_file, read_folder
from retrieval import save_sheet
from tests.conftest import ROOT
from tests.pictures.test_collection import category_of, partition_of, touch
from utils import UserError


def test_folder_with_categories_leaves_out_what_is_hidden_a_systems_or_no_picture(
    tmp_path: Path,
) -> None:
    touch(
        tmp_path, "Tees/1.jpg", "Tees/worn/2.PNG", "Tees/models/3.tiff", "Long Coats/4.webp",
        "Tees/.5.jpg", ".cache/6.jpg", "Tees/.old/7.jpg", "models/8.jpg", "Tees/notes.txt",
        "models/model_best.pth.tar",
        # As Synology, QNAP, Windows (once in other capitals) and macOS name them.
        "Tees/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/9.jpg", "@Recycle/9.jpg",
        "$Recycle.Bin/S-1-5-21/$R1.jpg", "System Volume Information/9.jpg", "__MACOSX/Tees/9.jpg",
    )  # fmt: skip
    found = read_folder(tmp_path, 0.1)
    assert category_of(found) == {
        "models/8.jpg": "models",
        "Long Coats/4.webp": "Long Coats",
        "Tees/1.jpg": "Tees",
        "Tees/models/3.tiff": "Tees",
        "Tees/worn/2.PNG": "Tees",
    }
    assert found.category_names == ["Long Coats", "Tees", "models"]
    assert not found.boxes.any()
    assert (found.types.dtype, found.types.tolist()) == (np.int8, [0] * 5)
    assert set(found.items) == set(found.colors) == {""}


def test_own_files_are_known_by_what_they_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A photo whose name is that of a made file is a photo; a sheet of answers is none."""
    photo = Image.new("RGB", (20, 20))
    for name in ("kmeans.m", "all_feat.npy", "milvus.db.jpg"):
        photo.save(tmp_path / name, "JPEG")
    np.save(tmp_path / "all_item.npy", np.zeros(3))
    save_sheet(photo, tmp_path / "results.jpg")
    save_sheet(photo, tmp_path / "results.png")
    pictures = read_folder(tmp_path, 0.1)
    names = ["all_feat.npy", "kmeans.m", "milvus.db.jpg", "results.jpg", "results.png"]
    assert (pictures.paths, capsys.readouterr().err) == (names, "")
    dataset = PictureDataset(tmp_path, pictures, lambda picture: torch.zeros(1), False)
    for row in range(3):
        dataset[row]
    for row in (3, 4):
        with pytest.raises(PictureError, match="answers that retrieval"):
            dataset[row]


def test_names_of_a_category_differ_in_case_blanks_and_unicode_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["Dress", "Dress", "dress", " Hats", "Hats", "Hats \u00a0",
               "Robe e\u0301te\u0301", "Robe  \u00e9t\u00e9"]  # fmt: skip
    names = [f"{folder}/{i}.jpg" for i, folder in enumerate(folders, 1)]
    found = read_folder(touch(tmp_path, *names), 0.1)
    assert found.category_names == ["Dress", "Hats", "Robe \u00e9t\u00e9"]
    named = {path.split("/")[1]: name for path, name in category_of(found).items()}
    assert [named[f"{i}.jpg"] for i in range(1, 9)] == [
        *["Dress"] * 3, *["Hats"] * 3, *["Robe \u00e9t\u00e9"] * 2
    ]  # fmt: skip
    warned = capsys.readouterr().err
    assert "taken as one category, Dress: Dress, dress;" in warned
    assert "Hats" not in warned


def test_links_may_lead_where_the_data_set_allows(tmp_path: Path) -> None:
    base = touch(tmp_path, "blobs/ab/1", "blobs/cd/2", "elsewhere/3", "set/hat/0.jpg") / "set"
    for i, target in enumerate(("blobs/ab/1", "blobs/cd/2", "elsewhere/3"), 1):
        (base / "hat" / f"{i}.jpg").symlink_to(f"../../{target}")
    with pytest.raises(PictureError, match=f"ALLOWED_ROOTS .*: {tmp_path}/blobs/ab"):
        picture_file(base, "hat/1.jpg")
    allow_roots(base, [f"{tmp_path}/blobs"])
    allow_roots(base, [])
    for i in (0, 1, 2):
        assert picture_file(base, f"hat/{i}.jpg") == base / "hat" / f"{i}.jpg"
    with pytest.raises(PictureError, match="is a link out of"):
        picture_file(base, "hat/3.jpg")
    (base / "hat/4.jpg").symlink_to("../../blobs/ab/../../elsewhere/3")
    with pytest.raises(PictureError, match="is a link out of"):
        picture_file(base, "hat/4.jpg")
    with pytest.raises(UserError, match=r"ALLOWED_ROOTS: .*none: no such folder"):
        allow_roots(base, [f"{tmp_path}/none"])


def test_folder_without_categories_is_one(tmp_path: Path) -> None:
    found = read_folder(touch(tmp_path, "b.jpg", "a.jpg", "c.jpg"), 0.1)
    assert category_of(found) == {"a.jpg": "all", "b.jpg": "all", "c.jpg": "all"}
    assert Counter(found.partitions.tolist()) == {"train": 2, "val": 1}


def test_split_folders_are_kept(tmp_path: Path) -> None:
    touch(tmp_path, "train/Tees/1.jpg", "train/Hats/2.jpg", "validation/Tees/3.jpg",
          "val/Hats/4.jpg", "test/Tees/5.jpg", "test/Hats/new/6.jpg")  # fmt: skip
    found = read_folder(tmp_path, 0.5)
    assert partition_of(found) == {
        "test/Hats/new/6.jpg": "test",
        "test/Tees/5.jpg": "test",
        "train/Hats/2.jpg": "train",
        "train/Tees/1.jpg": "train",
        "val/Hats/4.jpg": "val",
        "validation/Tees/3.jpg": "val",
    }
    assert set(category_of(found).values()) == {"Hats", "Tees"}
    others = touch(tmp_path / "case", "Train/Tees/1.jpg", "VALID/Tees/2.jpg", "Test/Hats/3.jpg")
    assert sorted(partition_of(read_folder(others, 0.5)).values()) == ["test", "train", "val"]
    assert read_folder(others, 0.5).category_names == ["Hats", "Tees"]
    shutil.rmtree(others)
    touch(tmp_path, "Shoes/7.jpg")  # would be trained on, and train/ be a category
    with pytest.raises(UserError, match=r"'Shoes/7.jpg' is beside train/"):
        read_folder(tmp_path, 0.5)


@pytest.mark.parametrize(
    ("names", "parts", "categories"),
    [
        (["test/Tees/1.jpg", "test/Hats/2.jpg"], ["test", "test"], ["Hats", "Tees"]),
        (["val/Tees/1.jpg", "test/Hats/2.jpg"], ["test", "val"], ["Hats", "Tees"]),
        (["validation/1.jpg"], ["val"], ["all"]),
        # The same names are categories where others lie beside them, but for train/.
        (["test/1.jpg", "Tees/2.jpg"], ["train", "train"], ["Tees", "test"]),
        (["test/1.jpg", "2.jpg"], ["train", "train"], ["all", "test"]),
    ],
)
def test_nothing_but_split_folders_is_a_split(
    tmp_path: Path, names: list[str], parts: list[str], categories: list[str]
) -> None:
    found = read_folder(touch(tmp_path, *names), 0.5)
    assert sorted(found.paths) == sorted(names)
    assert found.partitions.tolist() == parts
    assert found.category_names == categories


@pytest.mark.parametrize(
    ("share", "tees", "coats"), [(0.1, 4, 1), (0.2, 8, 2), (0.01, 1, 1), (0.9, 36, 9)]
)
def test_share_of_each_category_is_for_validation(
    tmp_path: Path, share: float, tees: int, coats: int
) -> None:
    names = [f"Tees/{i}.jpg" for i in range(40)] + [f"Coats/{i}.jpg" for i in range(10)]
    first = read_folder(touch(tmp_path / "first", "Hats/0.jpg", *names), share)
    validation = Counter(
        path.split("/")[0] for path, part in partition_of(first).items() if part == "val"
    )
    assert validation == {"Tees": tees, "Coats": coats}
    # The same folder elsewhere, made in another order, with one category more.
    more = [f"Bags/{i}.jpg" for i in range(9)]
    other = read_folder(touch(tmp_path / "other", *more, *reversed(names), "Hats/0.jpg"), share)
    assert partition_of(first).items() <= partition_of(other).items()


def test_validation_pictures_are_the_same_in_every_process(tmp_path: Path) -> None:
    touch(tmp_path / "photos", *[f"{i}.jpg" for i in range(40)])
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path\n"
        "from pictures.folder import read_folder\n"
        "print(read_folder(Path('photos'), 0.2).in_partition('val').paths)"
    )
    runs = {
        subprocess.check_output(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, text=True
        )
        for seed in ("1", "2")
    }
    assert len(runs) == 1
    assert runs.pop().count(".jpg") == 8
