"""Wrong pictures fail alone and by name; odd but right ones become what they show."""

import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

import train
from data import PictureDataset, eval_transform
from pictures.decode import PictureError
from pictures.folder import read_folder
from pictures.splits import read_splits
from search.sheet import SheetRow, draw_sheet
from tests.conftest import ROOT, first, first_picture

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")

LONG = "ü" * 125 + "x" + ".jpg"  # 255 bytes
WRONG = {  # path -> what is said of it
    "dress/truncated.jpg": "image file is truncated",
    "dress/truncated_progressive.jpg": "image file is truncated",
    "dress/empty.jpg": "no format that Pillow knows",
    "dress/text.png": "no format that Pillow knows",
    "dress/postscript.jpg": "EPS files are not read",
    "dress/\x1b[31mred.jpg": "no format that Pillow knows",
    "dress/header.ppm": r"Token too long in file header: \x1b[31m",
    "dress/narrow.png": "20000 x 1 px is too narrow",
    "dress/bomb.png": "more than 89 million pixels",
    "dress/new\nline.jpg": "cannot stand in a list",
    "dress/carriage\rreturn.jpg": "cannot stand in a list",
    "dress/caf\udce9.jpg": "cannot stand in a list",
    "caf\udce9/photo.jpg": "cannot stand in a list",
    "two\nlines/photo.jpg": "cannot stand in a list",
    "dress/out.jpg": "is a link out of",
    "dress/out_and_gone.jpg": "is a link out of",
    "linked/out.jpg": "is a link out of",
    "dress/dangling.jpg": "no such file",
    "dress/loop.jpg": "Too many levels of symbolic links",
    "dress/loop_of_two.jpg": "Too many levels of symbolic links",
    "dress/pipe.jpg": "no regular file",
    "dress/linked_pipe.jpg": "no regular file",
}
# By EXIF orientation, an upright picture -> as it is stored, from the standard's own words: 6, for
# one, is "0th row at the right, 0th column at the top".
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda up: up,
    2: lambda up: up[:, ::-1],
    3: lambda up: up[::-1, ::-1],
    4: lambda up: up[::-1],
    5: lambda up: up.swapaxes(0, 1),
    6: lambda up: up.swapaxes(0, 1)[::-1],
    7: lambda up: up.swapaxes(0, 1)[::-1, ::-1],
    8: lambda up: up.swapaxes(0, 1)[:, ::-1],
}


def png(pixels: np.ndarray, bits: int, kind: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file, of what Pillow cannot write too."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def make_wrong(base: Path, photo: bytes) -> None:
    """Lay the WRONG pictures; `base`/../outside has sound ones."""
    outside, dress = base.parent / "outside", base / "dress"
    Image.effect_noise((90, 60), 50).save(dress / "progressive.jpg", progressive=True)
    torn = (dress / "progressive.jpg").read_bytes()
    (dress / "progressive.jpg").unlink()
    (dress / "truncated_progressive.jpg").write_bytes(torn[: len(torn) * 3 // 4])
    (dress / "truncated.jpg").write_bytes(photo[: len(photo) // 2])
    (dress / "empty.jpg").touch()
    (dress / "text.png").write_text("no picture")
    (dress / "postscript.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (dress / "\x1b[31mred.jpg").write_text("no picture")
    (dress / "header.ppm").write_bytes(b"P6\n\x1b[31m" + b"1" * 99)
    Image.new("RGB", (20_000, 1), "red").save(dress / "narrow.png")
    bomb = png(np.zeros((20_000, 2500), np.uint8), 1, 0)  # 20,000 x 20,000 of one bit
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (dress / "bomb.png").write_bytes(bomb[:16] + header + crc + bomb[33:])
    for name, said in WRONG.items():
        if said == "cannot stand in a list":
            (base / name).parent.mkdir(exist_ok=True)
            (base / name).write_bytes(photo)
    (dress / "out.jpg").symlink_to(outside / "photo.jpg")
    (dress / "out_and_gone.jpg").symlink_to(outside / "none.jpg")
    (outside / "linked" / "out.jpg").symlink_to(outside / "photo.jpg")
    (dress / "dangling.jpg").symlink_to("none.jpg")
    (dress / "loop.jpg").symlink_to("loop.jpg")
    (dress / "loop_of_two.jpg").symlink_to("loop.jpg")
    os.mkfifo(dress / "pipe.jpg")
    (dress / "linked_pipe.jpg").symlink_to("pipe.jpg")


def make_right(base: Path, photo: bytes) -> dict[str, tuple[np.ndarray, float]]:
    """Lay odd but right pictures; each one's path -> its pixels, and the mean error allowed."""
    whole, dress, odd = base / "hat" / "whole.jpg", base / "dress", base / "hat"
    whole.write_bytes(photo)
    with Image.open(whole) as file:
        same = np.asarray(file.convert("RGB"))
        small = file.convert("RGB").resize((90, 60))
    rgb, grey = np.asarray(small), np.asarray(small.convert("L"))
    threefold = np.repeat(grey[:, :, None], 3, 2)
    found: dict[str, tuple[np.ndarray, float]] = {"hat/whole.jpg": (same, 0)}

    def lay(name: str, picture: Image.Image, pixels: np.ndarray, error: float = 0, **kw) -> None:
        picture.save(odd / name, **kw)
        found[f"hat/{name}"] = (pixels, error)

    def lay_bytes(name: str, data: bytes, pixels: np.ndarray, error: float = 0) -> None:
        (odd / name).write_bytes(data)
        found[f"hat/{name}"] = (pixels, error)

    # Colours and bits.
    lay("grey.png", Image.fromarray(grey), threefold)
    bits = Image.fromarray(grey > 127)
    lay("bilevel.png", bits, np.repeat(np.uint8(255) * (grey > 127)[:, :, None], 3, 2))
    lay("cmyk.jpg", small.convert("CMYK"), rgb, 3, quality=100)
    lay("cmyk.tif", small.convert("CMYK"), rgb)
    if int(PIL.__version__.split(".")[0]) > 12:  # before, it took its own for another mode
        lay("ycbcr.tif", small.convert("YCbCr"), rgb, 2)
    lay("lab.tif", small.convert("LAB"), rgb, 3)
    deep = grey.astype(np.uint16) * 257
    lay("grey16.png", Image.fromarray(deep), threefold)
    lay("grey16_big_endian.tif", Image.fromarray(deep.astype(">u2")), threefold)
    lay("grey32.tif", Image.fromarray(deep.astype(np.int32)), threefold)
    part = np.float32(grey / 255)
    lay("float.tif", Image.fromarray(part), threefold)
    part[0, :2], holes = (np.nan, np.inf), threefold.copy()
    holes[0, :2] = 0
    lay("float_with_holes.tif", Image.fromarray(part), holes)
    rgb16 = rgb.astype(">u2") * 257
    lay_bytes("rgb16.png", png(rgb16.astype(">u2"), 16, 2), rgb)

    # What shows through.
    clear = rgb.copy()
    clear[:, 45:] = 255
    alpha = np.where(np.arange(90) < 45, 255, 0)[None, :, None].repeat(60, 0).astype(np.uint8)
    lay("rgba.png", Image.fromarray(np.concatenate([rgb, alpha], 2)), clear)
    wide = np.concatenate([rgb, alpha], 2).astype(np.uint16) * 257
    lay_bytes("rgba16.png", png(wide.astype(">u2"), 16, 6), clear)
    greys = threefold.copy()
    greys[:, 45:] = 255
    lay("la.png", Image.fromarray(np.concatenate([grey[:, :, None], alpha], 2), "LA"), greys)
    keyed = threefold.copy()
    keyed[grey == grey[7, 7]] = 255
    key = (b"tRNS", struct.pack(">H", int(grey[7, 7]) * 257))
    lay_bytes("grey16_clear.png", png(deep.astype(">u2"), 16, 0, key), keyed)
    palette = small.quantize(16)
    indices, flat = np.asarray(palette), np.asarray(palette.convert("RGB"))
    holes = np.where((indices == indices[7, 7])[:, :, None], np.uint8(255), flat)
    lay("palette.png", palette, flat)
    lay("palette_clear.png", palette, holes, transparency=int(indices[7, 7]))
    lay("palette_clear.gif", palette, holes, transparency=int(indices[7, 7]))
    several = bytes([0 if i == indices[7, 7] else 255 for i in range(16)])
    lay("palette_alpha.png", palette, holes, transparency=several)

    # Animations, of which the second frame is another one.
    other = Image.new("RGB", small.size, "blue")
    frames = {"save_all": True, "append_images": [other]}
    lay("animated.gif", palette, flat, **frames | {"append_images": [other.quantize(16)]})
    lay("animated.png", small, rgb, **frames)
    lay("animated.webp", small, rgb, lossless=True, **frames)
    lay("animated.tif", small, rgb, **frames)

    # Turned, in every way.
    for orientation, stored in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = Image.fromarray(stored(rgb))
        lay(f"turned_{orientation}.png", turned, rgb, exif=exif)
        lay(f"turned_{orientation}.tif", turned, rgb, exif=exif)
        lay(f"turned_{orientation}.webp", turned, rgb, exif=exif, lossless=True)
        lay(f"turned_{orientation}.jpg", turned, rgb, 3, exif=exif, quality=100)
    # Turned, too, but with a resolution unit that is text and cannot be written again as it is.
    tags = struct.pack(">HHIHH", 0x112, 3, 1, 6, 0) + struct.pack(">HHI4s", 0x128, 2, 4, b"inch")
    data = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + tags + bytes(4)
    lay("odd_exif.jpg", Image.fromarray(STORED[6](rgb)), rgb, 3, exif=data, quality=100)
    nonsense = "\n".join(["", "exif", "4", "no hexadecimal digits"])
    text = (b"tEXt", b"Raw profile type exif\0" + nonsense.encode())
    lay_bytes("nonsense_exif.png", png(rgb, 8, 2, text), rgb)

    # Sizes, names, links.
    lay("one_pixel.png", Image.new("RGB", (1, 1), (9, 8, 7)), np.array([[[9, 8, 7]]], np.uint8))
    lay("png.jpg", small, rgb, format="PNG")
    lay("gif.png", palette, flat, format="GIF")
    (dress / "x.jpg").mkdir()
    links = {"inside.jpg": whole, "of_name.jpg": dress / LONG}
    for name in (f"dress/{LONG}", "dress/платье ドレス.jpg", "dress/\x1b[32m.jpg",
                 "dress/a folder.jpg/photo.JPEG", "dress/x.jpg/photo.jpg"):  # fmt: skip
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(photo)
        found[name] = (same, 0)
    for name, target in links.items():
        (dress / name).symlink_to(target)
        found[f"dress/{name}"] = (same, 0)
    found["linked/photo.jpg"] = found["linked/inner.jpg"] = (same, 0)
    (base.parent / "outside/linked/photo.jpg").write_bytes(photo)
    (base.parent / "outside/linked/inner.jpg").symlink_to("photo.jpg")
    return found


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
    return f"{base / name}" if name.isprintable() else ascii(f"{base / name}")


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
    pixels = np.asarray(Image.fromarray(right["hat/whole.jpg"][0]).resize((900, 600)))
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
        rows = [SheetRow("query\n1", Image.new("RGB", (60, 80)), [record])]
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
