"""Wrong pictures fail alone and by name; odd but right ones become what they show."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from data import PictureDataset, eval_transform
from pictures.decode import PictureError
from pictures.folder import read_folder
from pictures.splits import read_splits
from search.sheet import draw_sheet
from tests.conftest import ROOT, first, first_picture
from tests.pictures.odd_pictures import STORED, WRONG, make_right, make_wrong

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")


@pytest.fixture
def made(shared: Path, tmp_path: Path) -> tuple[Path, dict[str, tuple[np.ndarray, float]]]:
    """A plain folder of all of them, and the right ones' pixels."""
    base, photo = tmp_path / "data", first_picture(shared).read_bytes()
    for folder in (base / "dress", base / "hat", tmp_path / "outside" / "linked"):
        folder.mkdir(parents=True)
    (tmp_path / "outside" / "photo.jpg").write_bytes(photo)
    (base / "linked").symlink_to(tmp_path / "outside" / "linked")
    right = make_right(base, photo)
    make_wrong(base, photo)
    return base, right


def pixels_of(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture))


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """An error instead of a wait without end."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Root, too, may read only what its permissions let it read: PR_CAPBSET_DROP of CAP_DAC_OVERRIDE and
# CAP_DAC_READ_SEARCH.
LESS_THAN_ROOT = first("import ctypes; [ctypes.CDLL(None).prctl(24, n, 0, 0, 0) for n in (1, 2)]")


def closed(path: Path) -> Path:
    """Take all permissions from a file or folder."""
    path.chmod(0)
    command = [*LESS_THAN_ROOT, "ls" if path.is_dir() else "cat", path]
    if not subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this process may read everything")
    return path


def named(base: Path, name: str) -> str:
    """A picture as messages have to name it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in f"{base / name}")


def error_of(base: Path, name: str) -> str:
    """What reading this path of a table says."""
    pictures = replace(read_folder(base, 0.1).select(np.array([0])), paths=[name])
    with pytest.raises(PictureError) as error, alarm(60):
        PictureDataset(base, pictures, pixels_of, crop=False, min_side=200)[0]
    return str(error.value)


def test_a_folder_with_wrong_pictures_is_a_table_of_all(made: tuple) -> None:
    """Guards `read_folder`, `choose_validation`, `Splits.digest`: no name makes them fail."""
    base, right = made
    found = read_folder(base, 0.3)
    assert sorted(found.paths) == sorted([*right, *WRONG])
    assert "caf\udce9" in found.category_names
    assert {"train", "val"} == set(found.partitions[found.categories == 1])
    parts = read_splits(base, 20, False, 0.3)
    assert "caf\udce9/photo.jpg" in parts.train.paths
    assert len(parts.digest()) == 16


def test_each_wrong_picture_is_an_error_of_one_line_that_names_it(made: tuple) -> None:
    """Guards `picture_file` and `read_picture`: their checks, and `shown` in their messages."""
    base, _ = made
    found = {name: error_of(base, name) for name in WRONG}
    for name, said in WRONG.items():
        assert said in found[name]
        assert found[name].startswith(f"{named(base, name)}: ")
        assert found[name].isprintable()  # one line, and nothing that a terminal obeys


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../outside/photo.jpg", "lies outside"),
        ("dress/../../outside/photo.jpg", "lies outside"),
        ("{base}/hat/whole.jpg", "lies outside"),
        ("hat", "no regular file"),
        ("dress/x.jpg", "no regular file"),
        ("dress/none.jpg", "no such file"),
        ("hat/whole.jpg/none.jpg", "Not a directory"),
        (f"hat/{'x' * 300}.jpg", "File name too long"),
        ("hat/nul\0.jpg", "cannot stand in a list"),
    ],
)
def test_what_a_list_may_name_is_an_error_alike(made: tuple, name: str, said: str) -> None:
    """Guards that `picture_file` refuses absolute paths and "..", `read_picture` no file."""
    base, _ = made
    name = name.format(base=base)
    error = error_of(base, name)
    assert error.startswith(f"{named(base, name)}: ")
    assert said in error
    assert error.isprintable()


def test_each_odd_but_right_picture_is_what_it_shows(made: tuple) -> None:
    """Guards `_rgb`, `_from_wide_grey`, `_upright`, and the links `picture_file` lets through."""
    base, right = made
    table = read_folder(base, 0.1)
    dataset = PictureDataset(base, table, pixels_of, crop=False)
    for name, (expected, error) in right.items():
        pixels = dataset[table.paths.index(name)][0].numpy()
        assert pixels.shape == expected.shape, name
        assert np.abs(pixels.astype(float) - expected).mean() <= error, name


def test_the_networks_input_is_that_of_the_upright_rgb_picture(made: tuple, tmp_path: Path) -> None:
    """Guards that `draft`, which decodes a JPEG at part of its size, comes before the turn."""
    base, right = made
    pixels = np.asarray(Image.fromarray(right["hat/whole.jpg"][0]).resize((800, 600)))
    Image.fromarray(pixels).save(base / "hat" / "upright.png")
    transform = eval_transform(48, 40)
    for orientation, stored in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = base / "hat" / f"large_{orientation}.jpg"
        Image.fromarray(stored(pixels)).save(path, exif=exif, quality=95)
    table = read_folder(base, 0.1)
    dataset = PictureDataset(base, table, transform, crop=False, min_side=3 * 48)
    expected = dataset[table.paths.index("hat/upright.png")][0].float()
    for orientation in STORED:
        found = dataset[table.paths.index(f"hat/large_{orientation}.jpg")][0].float()
        assert (found - expected).abs().mean() < 4


def test_what_may_not_be_read_is_named(made: tuple) -> None:
    """Guards the reason in `read_picture`'s message, and `os.walk`'s `onerror` in `find_pictures`.

    Without it a folder that may not be read is left out without a message.
    """
    base, right = made
    folder, file = closed(base / "dress" / "a folder.jpg"), closed(base / "hat" / "whole.jpg")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\nfrom pictures.folder import picture_file, read_folder\n"
        "from pictures.decode import PictureError, read_picture\n"
        "found = [read_folder(Path('data'), 0.1).paths for _ in range(2)][0]\n"
        "print(len(found))\n"
        "try: read_picture(picture_file(Path('data'), 'hat/whole.jpg'))\n"
        "except PictureError as error: print(error)"
    )
    command = [*LESS_THAN_ROOT, sys.executable, "-c", code]
    done = subprocess.run(command, cwd=base.parent, capture_output=True, text=True, timeout=100)
    assert done.stderr == (
        f"data/dress/{folder.name}: left out, as it cannot be read: Permission denied;"
        " change its permissions if it holds pictures\n"
    )
    assert done.stdout.splitlines() == [
        str(len(right) + len(WRONG) - 1),
        f"data/hat/{file.name}: cannot be read as a picture: Permission denied",
    ]


def test_a_sheet_shows_no_picture_from_elsewhere(made: tuple) -> None:
    """Guards `picture_file` and `shown` in sheet.py: a link out is no answer, a title one line."""
    base, _ = made

    def sheet(name: str) -> np.ndarray:
        record = {"rank": 1, "path": name, "distance": 0.5, "category": "two\nlines"}
        rows = [("query\n1", Image.new("RGB", (60, 80)), [record])]
        return np.asarray(draw_sheet(base, rows))

    gone = sheet("dress/none.jpg")
    for name in ("dress/out.jpg", "dress/caf\udce9.jpg", "../outside/photo.jpg"):
        assert np.array_equal(sheet(name), gone)
    assert not np.array_equal(sheet("dress/inside.jpg"), gone)


def test_extraction_goes_on_and_names_what_failed(made: tuple, tmp_path: Path) -> None:
    """Guards all of it in the script, with processes that read: what it says, writes and returns.

    A pipe that is opened makes it wait for ever, a name that is encoded strictly makes it fail.
    """
    base, right = made
    small = tmp_path / "small"
    for i in range(8):
        path = small / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 50), (30 * i, 99, 0)).save(path)
    train.main(["--dataset-base", str(small), "--epoch", "0", "--backbone", "resnet18",
                "--pretrained", "none", "--img-size", "48", "--crop-size", "40",
                "--inter-dim", "8", "--recipe", "original"])  # fmt: skip
    closed(base / "hat" / "whole.jpg")
    failing = [*WRONG, "hat/whole.jpg", "dress/inside.jpg"]  # a link to the one before
    command = [*LESS_THAN_ROOT, sys.executable, ROOT / "feature_extractor.py",
               "--dataset-base", base, "--num-workers", "2",
               "--dumped-model", small / "models/model_0_final.pth.tar",
               "--device", "cpu", "--amp", "off", "--color-top-n", "3"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=300)
    said = done.stderr.decode()
    assert done.returncode == 1, said
    _, listed = said.split(f"{len(failing)} pictures were skipped:\n")
    lines = listed.splitlines()
    assert len(lines) == len(failing)
    for name in failing:
        assert sum(line.startswith(f"  {named(base, name)}: ") for line in lines) == 1, name
    kept = [name for name in read_folder(base, 0.1).paths if name not in failing]
    assert sorted(kept) == sorted(right.keys() - set(failing))
    assert (base / "all_feat.list").read_text().split("\n") == [*kept, ""]
    features = np.load(base / "all_feat.npy")
    assert features.shape == (len(kept), 8)
    rows = dict(zip(kept, features, strict=True))
    assert np.allclose(rows["hat/turned_6.png"], rows["hat/turned_1.png"], atol=1e-5)
    assert not np.allclose(rows["hat/turned_6.png"], rows["hat/cmyk.jpg"], atol=1e-5)
    assert sorted(json.loads((base / "all_feat.json").read_text())["skipped"]) == sorted(failing)
