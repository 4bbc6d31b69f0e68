"""Pictures that fail, and odd ones that are right, for `test_odd_pictures.py`."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

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
