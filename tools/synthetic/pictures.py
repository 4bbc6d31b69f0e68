"""Drawn garments -> pictures: fabric, light, pose and background.

Begin with `draw_view`, which places the strokes of `garments.py` in a picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from tools.synthetic.backgrounds import BACKGROUNDS, grey
from tools.synthetic.garments import Pose, sketch_garment
from tools.synthetic.items import COLOURS, Item
from tools.synthetic.shapes import Stroke

KINDS = ("front", "side", "back", "full", "additional")  # DeepFashion's poses 1 to 5
TILE_SIDE, TILE_SCALE = 600, 4.0  # of a cloth: px, px a cm
TILE_ORIGIN = np.array((-75.0, -35.0))  # where its corner lies on a garment, in cm

Box = tuple[int, int, int, int]


# Fabric


def paints_of(main: np.ndarray, accent: np.ndarray, contrast: bool) -> dict[str, np.ndarray]:
    """The colours of all that is drawn on a garment, each 3 float32, RGB, 0 to 255."""
    bright = main.mean() > 75
    ink = 0.62 * main if bright else 0.6 * main + 0.4 * np.float32(140)
    trim = accent if contrast else (0.9 * main if bright else 1.15 * main + 6)
    light = np.float32(246)
    return {
        "main": main, "accent": accent, "trim": trim, "sleeve": trim,
        "ink": 0.75 * ink + 0.25 * 0.6 * main.mean(), "lining": 0.5 * main + 4, "dark": 0.38 * main,
        "button": 0.35 * main + 0.65 * light if main.mean() < 140 else 0.45 * main,
        "metal": np.array((196, 190, 178), np.float32), "knit": 0.6 * main + 0.4 * ink,
        "stitch": 0.45 * main + 0.55 * light if bright else 0.6 * main + 0.4 * light,
        "cord": 0.3 * accent + 0.7 * light, "fur": 0.3 * accent + 0.7 * np.float32(225),
        "label": np.full(3, 235, np.float32),
    }  # fmt: skip


def weave(item: Item, paints: dict[str, np.ndarray]) -> np.ndarray | None:
    """The patterned cloth, `TILE_SIDE` squared x 3 uint8; None where it is of one colour."""
    if item.pattern in ("plain", "print"):
        return None
    if item.pattern == "block":
        share = (np.arange(TILE_SIDE)[:, None] > TILE_SCALE * (32 - TILE_ORIGIN[1])) * 1.0
    else:
        share = repeat_unit(item.pattern, int(item.pitch * TILE_SCALE))
    main, accent = paints["main"], paints["accent"]
    unit = (main + share[..., None] * (accent - main)).astype(np.uint8)
    down, right = (-(-TILE_SIDE // side) for side in unit.shape[:2])
    return cv2.repeat(unit, down, right)


def repeat_unit(pattern: str, side: int) -> np.ndarray:
    """Share of the accent colour in the part of a pattern that repeats, `side` px square."""
    at = np.arange(side) / side
    band = (at < 0.45) * 1.0
    if pattern == "stripes":
        return band[:, None]
    if pattern == "pinstripes":
        return (at[None] < 0.12) * 1.0
    if pattern == "checks":
        lines = 0.42 * band + 0.4 * (np.abs(at - 0.72) < 0.06)
        return lines[:, None] + lines[None]
    spot = np.zeros((side, side), np.uint8)
    for x, y in ((0, 0), (0, side), (side, 0), (side, side), (side // 2, side // 2)):
        cv2.circle(spot, (x, y), int(0.16 * side) + 1, 255, -1, cv2.LINE_AA)
    return spot / 255


# From strokes in cm to layers of pixels


class Layers(NamedTuple):
    """A drawn garment.

    colour : RGB, height x width x 3 uint8
    cover : how much of each pixel is garment, 0 to 1, height x width float32
    fold : brightness of its folds, about 1, at half the height and width, float32
    """

    colour: np.ndarray
    cover: np.ndarray
    fold: np.ndarray


def place(
    strokes: Sequence[Stroke], size: tuple[int, int], view: "View"
) -> tuple[list[Stroke], np.ndarray]:
    """Turn a garment about its own axis and find where it lies in a picture.

    Parameters
    ----------
    strokes : the garment, in cm
    size : width and height of the picture in px
    view : how it is turned and placed

    Returns
    -------
    The strokes, turned, and the 2 x 3 float64 matrix that takes cm to px.
    """
    flat = np.concatenate([s.points for s in strokes])
    ends = np.cumsum([len(s.points) for s in strokes]).tolist()
    flat = _turned(flat, math.radians(view.turn))
    strokes = [
        s._replace(points=flat[start:end])
        for s, start, end in zip(strokes, [0, *ends], ends, strict=False)
    ]
    solid = np.concatenate([s.points for s in strokes if s.kind != "shade"])
    low, high = solid.min(axis=0), solid.max(axis=0)
    scale = view.scale * float((np.array(size) / (high - low)).min())
    tilt = math.radians(view.tilt)
    rotate = scale * np.array([(math.cos(tilt), -math.sin(tilt)), (math.sin(tilt), math.cos(tilt))])
    centre = low + (high - low) * (0.5 + np.array(view.shift))
    return strokes, np.column_stack([rotate, np.array(size) / 2 - rotate @ centre])


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    """Turn a body about its upright axis: its front bulges by up to 13 cm towards the viewer."""
    bulge = 13 * np.clip(1 - (points[:, 0] / 27) ** 2, 0, None)
    x = points[:, 0] * math.cos(angle) + bulge * math.sin(angle)
    return np.stack([x, points[:, 1]], axis=1)


def rasterise(
    strokes: Sequence[Stroke],
    size: tuple[int, int],
    matrix: np.ndarray,
    paints: dict[str, np.ndarray],
    cloth: np.ndarray | None,
) -> Layers:
    """Draw a garment at twice the size and scale it down; `matrix` is that of `place`."""
    width, height = size
    scale = 2 * math.hypot(matrix[0, 0], matrix[1, 0])
    colour = np.empty((2 * height, 2 * width, 3), np.uint8)
    mask = np.zeros((2 * height, 2 * width), np.uint8)
    shade = np.zeros((height // 2, width // 2), np.float32)
    rgb = {name: tuple(paint.tolist()) for name, paint in paints.items()}
    cv2.rectangle(colour, (0, 0), (2 * width, 2 * height), rgb["ink"], -1)
    flat = np.concatenate([s.points for s in strokes]) @ matrix[:, :2].T + matrix[:, 2]
    double = np.rint(32 * flat).astype(np.int32)  # in 1/16 px of the double size, as cv2 takes it
    coarse = np.rint(0.5 * flat).astype(np.int32)
    seam, end = max(1, round(0.28 * scale)), 0
    for stroke in strokes:
        start, end = end, end + len(stroke.points)
        at, thick = double[start:end], max(1, round(scale * stroke.size))
        if stroke.kind == "shade":
            cv2.polylines(shade, [coarse[start:end]], False, stroke.strength, max(1, thick // 4))
        elif stroke.kind == "line":
            cv2.polylines(colour, [at], False, rgb[stroke.paint], thick, cv2.LINE_AA, 4)
            if stroke.size > 0.5:  # thinner ones lie within the garment
                cv2.polylines(mask, [at], False, 255, thick, cv2.LINE_8, 4)
        elif stroke.kind == "dots":
            for centre in at.tolist():
                cv2.circle(colour, centre, 16 * thick, rgb[stroke.paint], -1, cv2.LINE_AA, 4)
                cv2.circle(colour, centre, 16 * thick, rgb["ink"], 1, cv2.LINE_AA, 4)
                cv2.circle(mask, centre, 16 * thick, 255, -1, cv2.LINE_8, 4)
        else:
            cv2.fillPoly(mask, [at], 255, cv2.LINE_8, 4)
            cv2.fillPoly(shade, [coarse[start:end]], 0.0)
            if stroke.paint == "fabric" and cloth is not None:
                _fill_with_cloth(colour, at, cloth, matrix, stroke.turn)
            else:
                paint = "main" if stroke.paint == "fabric" else stroke.paint
                cv2.fillPoly(colour, [at], rgb[paint], cv2.LINE_8, 4)
            cv2.polylines(colour, [at], True, rgb["ink"], seam, cv2.LINE_AA, 4)
    return Layers(
        colour=cv2.resize(colour, size, interpolation=cv2.INTER_AREA),
        cover=cv2.resize(mask, size, interpolation=cv2.INTER_AREA) * np.float32(1 / 255),
        fold=1 + 0.42 * cv2.GaussianBlur(shade, (0, 0), 0.16 * scale),
    )


def _fill_with_cloth(
    colour: np.ndarray, outline: np.ndarray, cloth: np.ndarray, matrix: np.ndarray, turn: float
) -> None:
    x, y, w, h = cv2.boundingRect(outline // 16)
    left, top = max(0, x), max(0, y)
    right, bottom = min(colour.shape[1], x + w + 1), min(colour.shape[0], y + h + 1)
    if left >= right or top >= bottom:
        return
    region = colour[top:bottom, left:right]
    mask = np.zeros(region.shape[:2], np.uint8)
    cv2.fillPoly(mask, [outline - (16 * left, 16 * top)], 255, cv2.LINE_8, 4)
    back = np.linalg.inv(2 * matrix[:, :2])
    a = math.radians(turn)
    spin = TILE_SCALE * np.array([(math.cos(a), math.sin(a)), (-math.sin(a), math.cos(a))])
    to_tile = spin @ back
    start = to_tile @ (np.array((left, top)) - 2 * matrix[:, 2]) - TILE_SCALE * TILE_ORIGIN
    cut = cv2.warpAffine(cloth, np.column_stack([to_tile, start]), mask.shape[::-1],
                         flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
                         borderMode=cv2.BORDER_REFLECT)  # fmt: skip
    cv2.copyTo(cut, mask, region)


# One picture


@dataclass(frozen=True)
class View:
    """How a garment lies in the picture and how it is lit."""

    pose: Pose
    turn: float
    tilt: float
    scale: float
    shift: tuple[float, float]
    brightness: float
    slope: tuple[float, float]
    tint: tuple[float, float, float]


def make_view(kind: str, rng: np.random.Generator) -> View:
    """Choose pose, place and light for a kind of view (a name of `KINDS`)."""
    spread = rng.uniform(10, 34)
    left, right = (
        (spread + rng.uniform(-4, 6), spread * rng.uniform(0.3, 1.0) + rng.uniform(-10, 6))
        for _ in range(2)
    )
    if rng.random() < 0.15:
        right = (rng.uniform(32, 42), rng.uniform(-40, -25))  # a hand on the hip
    scale = {"full": rng.uniform(0.6, 0.7), "additional": rng.uniform(1.25, 1.6)}
    shift = rng.uniform(-0.03, 0.03, 2)
    if kind == "additional":
        shift = rng.uniform((-0.15, -0.2), (0.15, 0.05))
    elif rng.random() < 0.12:
        shift = rng.uniform(-0.16, 0.16, 2)
    turn = rng.choice((-1, 1)) * rng.uniform(22, 36) if kind == "side" else rng.uniform(-7, 7)
    return View(
        pose=Pose((left, right), back=kind == "back"),
        turn=float(turn),
        tilt=float(rng.normal(0, 2.5)),
        scale=scale.get(kind, rng.uniform(0.8, 0.93)),
        shift=(float(shift[0]), float(shift[1])),
        brightness=rng.uniform(0.92, 1.06),
        slope=tuple(rng.uniform(-0.09, 0.09, 2).tolist()),
        tint=tuple(rng.uniform(0.97, 1.03, 3).tolist()),
    )


def draw_view(
    item: Item,
    variant: int,
    view: int,
    kind: str | None = None,
    size: tuple[int, int] = (240, 300),
    background: np.ndarray | None = None,
) -> tuple[np.ndarray, Box]:
    """Draw one picture of an item.

    Parameters
    ----------
    item : what to draw
    variant : which of the item's colours, from 0
    view : number of the view; with item and variant it decides pose, light and background
    kind : a name of `KINDS`; None leaves it to the number of the view, mostly front
    size : width and height in px
    background : height x width x 3 float32, RGB, 0 to 255; None draws one

    Returns
    -------
    picture : height x width x 3 uint8, RGB
    box : x1, y1, x2, y2 of the garment in px, within the picture; x2 and y2 lie just outside
    """
    rng = np.random.default_rng([item.seed, item.number, variant + 1, view])
    drawn_kind = str(rng.choice(KINDS, p=(0.62, 0.14, 0.08, 0.06, 0.1)))
    look = make_view(kind or drawn_kind, rng)
    main, accent = (
        COLOURS[name] * np.array(look.tint, np.float32) for name in item.colours[variant]
    )
    paints = paints_of(main, accent, item.contrast)
    strokes, matrix = place(sketch_garment(item.cut, look.pose, rng), size, look)
    layers = rasterise(strokes, size, matrix, paints, weave(item, paints))
    if background is None:
        background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))](*size, rng)
    return _compose(layers, background, look), _box_of(layers.cover)


def _compose(layers: Layers, background: np.ndarray, look: View) -> np.ndarray:
    size, half = layers.cover.shape[::-1], layers.fold.shape[::-1]
    x = np.linspace(-1, 1, half[0], dtype=np.float32)
    y = np.linspace(-1, 1, half[1], dtype=np.float32)[:, None]
    light = look.brightness * (1 + look.slope[0] * x + look.slope[1] * y)
    shadow = cv2.resize(layers.cover, half, interpolation=cv2.INTER_AREA)
    fall = np.array([(1, 0, 2 - 28 * look.slope[0]), (0, 1, 3.2)], np.float32)
    shadow = cv2.warpAffine(cv2.blur(cv2.blur(shadow, (7, 7)), (7, 7)), fall, half)
    behind = cv2.multiply(background, grey(cv2.resize(light * (1 - 0.34 * shadow), size)))
    front = grey(cv2.resize(light * layers.fold, size))
    front = cv2.multiply(layers.colour, front, dtype=cv2.CV_32F)
    return cv2.convertScaleAbs(cv2.blendLinear(behind, front, 1 - layers.cover, layers.cover))


def _box_of(cover: np.ndarray) -> Box:
    x, y, w, h = cv2.boundingRect((cover >= 0.5).astype(np.uint8))
    return x, y, x + w, y + h
