"""Measures, strokes and curves of drawn garments, in centimetres.

The neck is at x = 0, y = 0; x runs to the right of the picture and y down.
"""

from dataclasses import dataclass, field
from functools import cache
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Points = np.ndarray  # n x 2 float64, centimetres


class Stroke(NamedTuple):
    """One thing to draw: a fill, a line, dots, or a soft shade that only changes the light.

    `paint` names a colour of the fabric; `size` is the width of a line or shade, or the radius of
    dots, in cm; `turn` the angle in degrees by which the fabric's pattern is turned; `strength` of
    a shade is -1 to 1.
    """

    kind: str
    points: Points
    paint: str = "main"
    size: float = 0.3
    turn: float = 0.0
    strength: float = 0.0


@dataclass(frozen=True)
class Cut:
    """Measures of a garment in cm (widths are half widths) and the names of its details."""

    length: float = 66.0
    chest: float = 25.0
    waist: float = 24.0
    hem: float = 25.0
    shoulder: float = 20.0
    neck: float = 8.0
    neck_top: float = 0.0
    neck_depth: float = 8.0
    slope: float = 4.5
    armpit: float = 24.0
    sleeve: float = 58.0
    sleeve_width: float = 8.5
    cuff_width: float = 5.0
    neckline: str = "round"
    collar: str = "rib"
    front: str = ""
    hem_style: str = "straight"
    cuff: str = ""
    pockets: str = ""
    extras: tuple[str, ...] = ()
    motif: str = ""


BANDED = {"rib": 6.5, "band": 4.5, "drawstring": 3.0}  # hem style: height of the band in cm


@dataclass
class Sketch:
    """The strokes of a garment, in the order in which to draw them."""

    strokes: list[Stroke] = field(default_factory=list)

    def fill(self, points: ArrayLike, paint: str = "fabric", turn: float = 0.0) -> None:
        self.strokes.append(Stroke("fill", np.asarray(points, float), paint, turn=turn))

    def line(self, points: ArrayLike, paint: str = "ink", size: float = 0.3) -> None:
        self.strokes.append(Stroke("line", np.asarray(points, float), paint, size))

    def dots(self, points: ArrayLike, radius: float = 0.9, paint: str = "button") -> None:
        self.strokes.append(Stroke("dots", np.asarray(points, float), paint, radius))

    def shade(self, points: ArrayLike, strength: float, size: float = 2.0) -> None:
        points = np.asarray(points, float)
        self.strokes.append(Stroke("shade", points, size=size, strength=strength))

    def both(self, draw: str, points: ArrayLike, *args: object) -> None:
        """Draw something and its mirror image."""
        for side in (1, -1):
            getattr(self, draw)(np.asarray(points, float) * (side, 1), *args)


@cache
def bernstein(degree: int, n: int) -> np.ndarray:
    """Weights of the control points of a Bezier curve at n places along it; n x degree + 1."""
    t, k = np.linspace(0, 1, n)[:, None], np.arange(degree + 1)
    return np.array([comb(degree, i) for i in k]) * t**k * (1 - t) ** (degree - k)


def curve(*controls: ArrayLike, n: int = 9) -> Points:
    """Points of the Bezier curve of two, three or four control points; n x 2."""
    return bernstein(len(controls) - 1, n) @ np.array(controls, float)


def outline(start: tuple[float, float], *steps: tuple | list) -> Points:
    """A path: a step (x, y) is a straight line, a list of points the rest of a Bezier curve."""
    parts: list[ArrayLike] = [[start]]
    at = start
    for step in steps:
        parts.append([step] if isinstance(step, tuple) else curve(at, *step)[1:])
        at = step if isinstance(step, tuple) else step[-1]
    return np.concatenate([np.asarray(part) for part in parts])


def moved(points: ArrayLike, x: float, y: float) -> Points:
    return np.asarray(points) + np.array((x, y))


def sag(x: float, y: float, depth: float, n: int = 9) -> Points:
    """A curve from (x, y) to (-x, y) whose middle hangs half of `depth` lower."""
    return curve((x, y), (0, y + depth), (-x, y), n=n)


def between(a: Points, b: Points) -> Points:
    """The outline of the area between two lines that run the same way."""
    return np.concatenate([a, b[::-1]])


def ribs(a: Points, b: Points) -> Points:
    """One line that runs to and fro between two lines of n points: the ribs of a knitted band."""
    pairs = np.stack([a, b], axis=1)
    pairs[1::2] = pairs[1::2, ::-1]
    return pairs.reshape(-1, 2)


def mirrored(half: Points) -> Points:
    """The closed outline of which `half` is the right half, from the top centre to the bottom."""
    return between(half, half * (-1, 1))


def across(half: Points) -> Points:
    """A line from left to right, of which `half` is the right half, from the centre outwards."""
    return np.concatenate([half[::-1] * (-1, 1), half[1:]])


def circle(x: float, y: float, radius: float, n: int = 30) -> Points:
    angle = np.arange(n) * (2 * np.pi / n)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


def star(points: int, inner: float) -> Points:
    angle = np.pi / points * np.arange(2 * points)
    radius = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def column(x: float, top: float, bottom: float, n: int = 2) -> Points:
    return np.stack([np.full(n, x), np.linspace(top, bottom, n)], axis=1)


def panel(x: float, y: float, width: float, height: float, point: float = 0.0) -> Points:
    """A pocket or flap whose top centre is at (x, y), with a pointed lower edge."""
    half, low = 0.5 * width, y + height
    corners = (
        (x - half, y),
        (x + half, y),
        (x + half, low - point),
        (x, low),
        (x - half, low - point),
    )
    return np.array(corners)


# The body


def neckline(cut: Cut, grow: float = 0.0) -> Points:
    """Right half of the neckline, from the centre to the neck point, `grow` cm further out."""
    x, top, low = cut.neck + grow, cut.neck_top, cut.neck_top + cut.neck_depth + grow
    if cut.neckline == "v":
        return np.array([(0.0, low + 0.4 * grow), (x, top + 0.15 * grow)])
    if cut.neckline == "sweetheart":
        return curve((0, low), (3, top - 2 + grow), (x - 4, top - 3 + grow), (x, top + grow))
    return curve((0, low), (0.72 * x, low), (0.98 * x, top + 0.45 * (low - top)), (x, top))


def neck_band(cut: Cut, width: float) -> Points:
    return between(across(neckline(cut)), across(neckline(cut, width)))


def armhole(cut: Cut) -> Points:
    """Right armhole, from the shoulder to the armpit."""
    inward = (1, 2) if cut.sleeve == 0 else (2, 8)
    control = (cut.shoulder - inward[0], cut.armpit - inward[1])
    return curve((cut.shoulder, cut.neck_top + cut.slope), control, (cut.chest, cut.armpit))


def body_outline(cut: Cut) -> Points:
    """The closed outline of the body."""
    if cut.collar == "cowl":  # a poncho: one sheet from the neck to the wrists
        tip, low = (cut.hem + 2, 0.62 * cut.length), cut.length
        side = outline(
            (cut.neck, 0),
            [(cut.shoulder + 3, 4), (cut.chest - 4, 18), tip],
            [(0.75 * cut.hem, 0.84 * low), (0, low + 4)],
            (0, low - 5),
        )
        return mirrored(np.concatenate([neckline(cut), side]))
    waist = 2 * cut.waist - 0.5 * (cut.chest + cut.hem)
    end = (cut.hem, cut.length - (7 if cut.hem_style == "shirt_tail" else 0))
    if cut.hem_style in BANDED:  # the body blouses over its band
        end = (cut.hem + 1.5, cut.length - BANDED[cut.hem_style])
    side = curve((cut.chest, cut.armpit), (waist, 0.5 * (cut.armpit + cut.length)), end)
    return mirrored(np.concatenate([neckline(cut), armhole(cut), side, hemline(cut, end)]))


def hemline(cut: Cut, end: tuple[float, float]) -> Points:
    """The hem, from its right end to the centre."""
    (x, y), low = end, cut.length
    if cut.hem_style in BANDED:
        return outline((cut.hem - 0.5, y + 0.8), [(cut.hem - 1, low), (0, low + 1)])
    if cut.hem_style == "shirt_tail":
        return curve(end, (0.75 * x, y), (0.62 * x, low + 2), (0, low + 2), n=13)
    if cut.hem_style == "cutaway":
        return outline(end, (8, y + 1.5), [(2, y + 1), (1, y - 8), (0, y - 20)])
    if cut.hem_style in ("flared", "peplum"):
        at = np.linspace(1, 0, 40)
        return np.stack([at * x, y + 1.6 * (1 - at * at) - 0.8 * np.sin(at * 14)], axis=1)
    return curve(end, (0.5 * x, y + 2), (0, y + 2))
