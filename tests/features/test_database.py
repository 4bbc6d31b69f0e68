"""What an opened database holds, and what is refused: wrong files, each by its name.

The faults come with the SHA-256 that belongs to them, as somebody would who makes a file to do
harm; no code from a file may run.
"""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from features.database import CHECKED, FeatureDatabase, open_database
from tests.conftest import describe, rehash
from utils import UserError

D, T = 6, 9
FEATURES = ("all_feat.npy", "all_feat_2.npy", "all_color_feat.npy", "all_palette_feat.npy")
FILES = (*FEATURES, "all_category.npy", "all_item.npy", "all_classifier.npz", "all_feat.list")
Damage = Callable[[Path], object]


@pytest.fixture
def base(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A database of 12 pictures, written as the design says."""
    for name, width in zip(FEATURES, (D, D, T, 8), strict=True):
        np.save(tmp_path / name, rng.random((12, width), np.float32))
    np.save(tmp_path / "all_category.npy", np.int16([0, 1, -1] * 4))
    np.save(tmp_path / "all_item.npy", np.array(["a", "", "b"] * 4))
    np.savez(tmp_path / "all_classifier.npz", weight=rng.random((3, D)), bias=rng.random(3))
    (tmp_path / "all_feat.list").write_text("".join(f"img/é {i}.jpg\n" for i in range(12)), "utf-8")
    names = ["Tee", "Blouse", "Tank"]
    describe(tmp_path, 12, names, models=("a", "b"), PALETTE=True)
    return tmp_path


def test_an_opened_database_holds_what_the_files_hold(base: Path) -> None:
    database = open_database(base)
    assert isinstance(database, FeatureDatabase)
    matrices = (*database.deep, database.color, database.palette)
    for name, matrix in zip(FEATURES, matrices, strict=True):
        np.testing.assert_array_equal(matrix, np.load(base / name))
    assert database.items[:4].tolist() == ["a", "", "b", "a"]
    paths = [f"img/é {i}.jpg" for i in range(12)]
    assert list(database.paths) == paths
    assert [database.paths[i] for i in range(-12, 12)] == paths + paths
    assert [database.category(row) for row in range(3)] == ["Tee", "Blouse", ""]
    assert database.rows_of("bLOUSE").tolist() == [1, 4, 7, 10]
    for unknown in ("Tank", "Tea"):  # one that no picture has, and one that does not exist
        with pytest.raises(UserError, match=f"{unknown}.*there are Blouse, Tee"):
            database.rows_of(unknown)


def test_palettes_are_there_where_the_settings_say_so(base: Path) -> None:
    edit(lambda info: info["settings"].update(PALETTE=False))(base)
    database = open_database(base)
    assert database.palette is None


def test_features_in_columns_are_the_same_features(base: Path) -> None:
    """Fortran's order is no fault: the values are where NumPy says."""
    before = open_database(base).deep[0].copy()
    array("all_feat.npy", np.asfortranarray)(base)
    np.testing.assert_array_equal(open_database(base).deep[0], before)


def test_checksums_of_other_files_are_ignored(base: Path) -> None:
    """Guards that only the database's own names in sha256_others are read."""
    edit(lambda info: info["sha256_others"].update({"/dev/zero": "0" * 64}))(base)
    open_database(base)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b'{"all_feat.npy": 1}'])
def test_wrong_stamps_are_written_again(base: Path, content: bytes) -> None:
    (base / CHECKED).write_bytes(content)
    open_database(base)
    assert b"all_feat.list" in (base / CHECKED).read_bytes()


class Malicious:
    """What a pickle runs when it is loaded; np.save packs it."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("marker",)


def edit(change: Callable[[dict], object]) -> Damage:
    """Change all_feat.json."""

    def damage(base: Path) -> None:
        info = json.loads((base / "all_feat.json").read_text())
        change(info)
        (base / "all_feat.json").write_text(json.dumps(info))

    return damage


def text(content: str | bytes) -> Damage:
    """Other content of all_feat.json."""
    encoded = content.encode() if isinstance(content, str) else content
    return lambda base: (base / "all_feat.json").write_bytes(encoded)


def array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """Change an array; all_feat.json names the new one."""

    def damage(base: Path) -> None:
        np.save(base / name, change(np.load(base / name)), allow_pickle=True)
        rehash(base, name)

    return damage


def put(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """Change a file's bytes; all_feat.json names them."""

    def damage(base: Path) -> None:
        (base / name).write_bytes(change((base / name).read_bytes()))
        rehash(base, name)

    return damage


def swapped(one: str, other: str) -> Damage:
    """Two files in each other's place."""

    def damage(base: Path) -> None:
        os.rename(base / one, base / "third")
        os.rename(base / other, base / one)
        os.rename(base / "third", base / other)

    return damage


def replaced(name: str, make: Callable[[Path], object]) -> Damage:
    """Something else in the place of a file."""

    def damage(base: Path) -> None:
        (base / name).unlink()
        make(base / name)

    return damage


def cut(name: str, share: float) -> Damage:
    """A file without its end."""
    return lambda base: os.truncate(base / name, int(share * (base / name).stat().st_size))


def classifier(**arrays: object) -> Damage:
    """Change some arrays of the classifier; None removes one."""

    def damage(base: Path) -> None:
        path = base / "all_classifier.npz"
        with np.load(path) as file:
            content = {**file, **arrays}
        np.savez(path, **{key: value for key, value in content.items() if value is not None})
        rehash(base, path.name)

    return damage


PICKLE = pickle.dumps(Malicious())
DAMAGE: dict[str, tuple[str, Damage]] = {
    **{f"{name} cut at {share}": (name, cut(name, share))
       for name in (*FILES, "all_feat.json") for share in (0, 0.01, 0.5, 0.99)},
    **{f"no {name}": (name, replaced(name, lambda path: None)) for name in FILES},
    **{f"a folder for {name}": (name, replaced(name, Path.mkdir)) for name in FILES},
    **{f"a pickle for {name}": (name, put(name, lambda _: PICKLE)) for name in FILES[:-1]},
    "objects": ("all_item.npy", array("all_item.npy", lambda x: np.array([Malicious()] * len(x)))),
    "objects in the classifier": (
        "all_classifier.npz", classifier(weight=np.array([[Malicious()]]))),
    "swapped for another model's": ("all_feat.npy", swapped("all_feat.npy", "all_feat_2.npy")),
    "swapped for the colours": ("all_feat.npy", swapped("all_feat.npy", "all_color_feat.npy")),
    "swapped with the items": ("all_category.npy", swapped("all_category.npy", "all_item.npy")),
    "float64": ("all_feat.npy", array("all_feat.npy", lambda x: x.astype(np.float64))),
    "big-endian": ("all_feat.npy", array("all_feat.npy", lambda x: x.astype(">f4"))),
    "a vector": ("all_feat.npy", array("all_feat.npy", np.ravel)),
    "a scalar": ("all_feat.npy", array("all_feat.npy", lambda x: np.float32(1))),
    "a row less": ("all_color_feat.npy", array("all_color_feat.npy", lambda x: x[1:])),
    "fewer categories": ("all_category.npy", array("all_category.npy", lambda x: x[1:])),
    "a category too many": ("all_category.npy", array("all_category.npy", lambda x: x * 0 + 99)),
    "a category below -1": ("all_category.npy", array("all_category.npy", lambda x: x * 0 - 2)),
    "wide categories": ("all_category.npy", array("all_category.npy", lambda x: x.astype(int))),
    "items that are numbers": ("all_item.npy", array("all_item.npy", lambda x: np.arange(len(x)))),
    "a longer list": ("all_feat.list", put("all_feat.list", lambda old: old + b"a\n")),
    "NaN in the classifier": ("all_classifier.npz", classifier(bias=np.full(3, np.nan))),
    "a classifier without bias": ("all_classifier.npz", classifier(bias=None)),
    "JSON that is no UTF-8": ("all_feat.json", text(b'{"\xff": 1}')),
    "JSON that is a list": ("all_feat.json", text("[]")),
    "a huge number": ("all_feat.json", lambda base: text(
        (base / "all_feat.json").read_text().replace('"pictures": ', f'"pictures": {"9" * 5000}')
    )(base)),
    **{f"JSON with {name} = {value!r}": ("all_feat.json", edit(lambda i, n=name, v=value: i.update(
        {n: v}))) for name, value in (
            ("pictures", "263"), ("pictures", True), ("pictures", 0), ("category_names", None),
            ("category_names", [1]), ("models", {}), ("models", []), ("models", [1]),
            ("models", [{"file": "a", "sha256": "0" * 64, "network": []}]), ("settings", []),
            ("sha256", []), ("sha256", {}), ("sha256_others", {}),
            ("sha256", {"all_feat.npy": 1}), ("sha256", {"all_feat.npy": "0"}))},
    **{f"JSON without {name}": ("all_feat.json", edit(lambda i, n=name: i.pop(n))) for name in (
        "pictures", "category_names", "models", "settings", "sha256", "sha256_others")},
    **{f"settings without {name}": ("all_feat.json", edit(lambda i, n=name: i["settings"].pop(n)))
       for name in ("AMP", "COLOR_TOP_N", "CROP_TO_BBOX", "FLIP", "PALETTE")},
    **{f"a model without {name}": (
        "all_feat.json", edit(lambda i, n=name: i["models"][1]["network"].pop(n)))
       for name in ("backbone", "categories", "crop_size")},
    "a dtype that is a function": (
        "all_feat.json", edit(lambda info: info["settings"].update(AMP="load"))),
    "half a split": (
        "all_feat.json", edit(lambda info: info["models"][0].update(held_out={"inshop": True}))),
    "a palette that is a string": (
        "all_feat.json", edit(lambda info: info["settings"].update(PALETTE="no"))),
}  # fmt: skip


@pytest.mark.parametrize(("file", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_a_wrong_file_is_named_with_what_to_do(base: Path, file: str, damage: Damage) -> None:
    damage(base)
    with pytest.raises(UserError) as refused:
        open_database(base)
    message = str(refused.value)
    assert message.startswith(f"{base / file}: ")
    assert message.endswith(f"; run: python feature_extractor.py --dataset-base {base}")
    assert "\n" not in message
    assert not Path("marker").exists()


def test_no_database_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no feature database \(all_feat.json\); run: python feat"):
        open_database(tmp_path)
