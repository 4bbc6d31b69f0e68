"""Twenty kinds of upper-body garments as lists of strokes.

A garment is a `Cut` (its measures and the names of its details); `sketch_garment` turns it and a
pose into strokes, which `pictures.py` places in a picture.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from tools.synthetic.collars import COLLARS
from tools.synthetic.extras import EXTRAS
from tools.synthetic.fronts import FRONTS, POCKETS
from tools.synthetic.shapes import (
    BANDED,
    Cut,
    Points,
    Sketch,
    Stroke,
    across,
    armhole,
    between,
    body_outline,
    circle,
    curve,
    mirrored,
    moved,
    neckline,
    outline,
    panel,
    ribs,
    sag,
    star,
)

# fmt: off
CUTS = {
    "Anorak": Cut(
        length=70, chest=28, waist=28, hem=27, shoulder=22, sleeve_width=10.5, neck_depth=6,
        collar="hood", front="half_zip", hem_style="drawstring", cuff="elastic", pockets="pouch",
        extras=("yoke",)),
    "Blazer": Cut(
        length=72, chest=25, waist=21.5, hem=26, shoulder=22, neck=7.5, neck_depth=36, neckline="v",
        collar="lapel", front="two_buttons", hem_style="cutaway", cuff="buttons", pockets="blazer",
        extras=("darts",)),
    "Blouse": Cut(
        length=62, chest=23, waist=20, hem=28, shoulder=17.5, neck_depth=11, sleeve=54,
        sleeve_width=13, cuff_width=6.5, neckline="v", collar="bow", cuff="gathered",
        hem_style="flared", extras=("gathers",)),
    "Bomber": Cut(
        length=58, chest=28, waist=30, hem=24, shoulder=22, sleeve_width=12, cuff_width=6.5,
        neck_depth=5, collar="stand", front="zip", hem_style="rib", cuff="rib", pockets="welt",
        extras=("sleeve_pocket",)),
    "Button-Down": Cut(
        length=74, chest=25, waist=23.5, hem=25, neck=7, neck_depth=5, neckline="v", collar="shirt",
        front="buttons", hem_style="shirt_tail", cuff="shirt", pockets="chest"),
    "Cardigan": Cut(
        length=66, chest=25, waist=25, hem=23.5, shoulder=19, neck_depth=34, sleeve_width=9.5,
        cuff_width=5.5, neckline="v", collar="band", front="band_buttons", hem_style="rib",
        cuff="rib", pockets="patch", extras=("knit",)),
    "Flannel": Cut(
        length=72, chest=28, waist=27.5, hem=27.5, shoulder=22, neck=7, neck_depth=5, sleeve=40,
        sleeve_width=10, cuff_width=8, neckline="v", collar="shirt", front="buttons", cuff="rolled",
        pockets="two_chest", extras=("yoke",)),
    "Halter": Cut(
        length=52, chest=20.5, waist=18.5, hem=20, shoulder=8.5, neck=6.5, neck_top=3, neck_depth=4,
        slope=1, armpit=27, sleeve=0, collar="halter", extras=("gathers_neck",)),
    "Henley": Cut(
        length=69, chest=23.5, waist=22.5, hem=23.5, neck_depth=7, collar="rib", front="placket",
        hem_style="shirt_tail", sleeve_width=8, extras=("raglan",)),
    "Hoodie": Cut(
        length=66, chest=27, waist=28, hem=25, shoulder=22, sleeve_width=10.5, cuff_width=6,
        neck_depth=6, collar="hood", front="drawcords", hem_style="rib", cuff="rib",
        pockets="kangaroo"),
    "Jacket": Cut(
        length=60, chest=26.5, waist=25, hem=23.5, shoulder=22.5, neck=7.5, neck_depth=6,
        sleeve_width=9.5, cuff_width=6, neckline="v", collar="shirt", front="metal_buttons",
        hem_style="band", cuff="shirt", pockets="two_flaps", extras=("trucker",)),
    "Jersey": Cut(
        length=74, chest=28, waist=28, hem=28.5, shoulder=23, neck_depth=12, sleeve=27,
        sleeve_width=12.5, cuff_width=12, neckline="v", collar="v_band", cuff="stripes",
        extras=("number", "side_panels")),
    "Parka": Cut(
        length=90, chest=29, waist=26, hem=31, shoulder=23, sleeve_width=11, cuff_width=7,
        neck_depth=6, collar="fur_hood", front="storm_flap", cuff="shirt", pockets="big_flaps",
        extras=("waist_cord",)),
    "Peacoat": Cut(
        length=82, chest=27, waist=25, hem=29, shoulder=23, neck_depth=23, sleeve_width=10.5,
        cuff_width=7.5, neckline="v", collar="wide_lapel", front="double", pockets="upright",
        cuff="tab"),
    "Poncho": Cut(
        length=74, chest=44, waist=52, hem=50, shoulder=16, neck_depth=8, sleeve=0, collar="cowl",
        hem_style="fringe", extras=("bands",)),
    "Sweater": Cut(
        length=64, chest=27, waist=28, hem=25, shoulder=21, neck_depth=7, sleeve_width=10.5,
        cuff_width=5.5, collar="thick_rib", hem_style="rib", cuff="rib", extras=("cables",)),
    "Tank": Cut(
        length=64, chest=22.5, waist=20.5, hem=22, shoulder=13.5, neck=8.5, neck_depth=17,
        slope=1.5, armpit=26, sleeve=0, collar="binding"),
    "Tee": Cut(
        length=66, chest=25, waist=24.5, hem=25, sleeve=23, sleeve_width=10, cuff_width=9,
        collar="rib", cuff="stitch"),
    "Top": Cut(
        length=50, chest=20.5, waist=17, hem=27, shoulder=15.5, neck=15, neck_top=14, neck_depth=5,
        slope=0.8, armpit=21, sleeve=0, neckline="sweetheart", collar="straps", hem_style="peplum"),
    "Turtleneck": Cut(
        length=66, chest=22.5, waist=21, hem=22.5, shoulder=18.5, sleeve=60, sleeve_width=7,
        cuff_width=4.2, neck=7.5, neck_depth=3, collar="turtle", hem_style="plain_rib", cuff="rib"),
}

# fmt: on
CATEGORY_NAMES = tuple(CUTS)  # DeepFashion's numbers 1 to 20, in this order
MOTIFS = ("sun", "mountain", "star", "heart", "bars", "flower")


@dataclass(frozen=True)
class Pose:
    """Angles of the arms from hanging, in degrees: (upper arm, forearm), left then right."""

    arms: tuple[tuple[float, float], tuple[float, float]] = ((18.0, 12.0), (18.0, 12.0))
    back: bool = False


def draw_inside(sketch: Sketch, cut: Cut) -> None:
    """What shows through the neckline and below a cut-away hem: the lining and a label."""
    n, top, low = cut.neck, cut.neck_top, cut.length
    if cut.collar == "straps":
        for paint, width in (("ink", 1.7), ("trim", 1.2)):
            sketch.both("line", curve((11, 14), (10, 2), (8, -3)), paint, width)
    if cut.collar == "halter":
        sketch.line(outline((n, top + 1), [(n + 1, -8), (0, -9)], [(-n - 1, -8), (-n, top + 1)]),
                    "trim", 1.8)  # fmt: skip
    if cut.hem_style == "cutaway":
        sketch.fill(panel(0, low - 24, 18, 23), "lining")
    back = sag(-n, top, -1 if cut.collar == "straps" else 3)
    sketch.fill(between(back, across(neckline(cut))), "lining")
    if cut.collar in ("rib", "thick_rib", "binding", "v_band", "band"):
        sketch.line(back - (0, 0.4), "trim", 2.0)
        sketch.line(moved(back, 0, 0.7), "ink", 0.2)
        sketch.fill(panel(0, 3, 3.2, 2), "label")


def draw_folds(sketch: Sketch, cut: Cut, rng: np.random.Generator) -> None:
    """Soft shades that make the body look round and worn."""
    x, low, pit = cut.chest, cut.length, cut.armpit
    waist = 2 * cut.waist - x
    sketch.both("shade", curve((x, pit), (waist, 0.5 * (pit + low)), (cut.hem, low)), -0.5, 3.5)
    for side in (-1, 1, -1, 1):
        end = (rng.uniform(6, 14), pit + rng.uniform(3, 16))
        pull = curve((x - 2, pit + 1), (0.5 * (x + end[0]), pit + rng.uniform(1, 6)), end)
        at = rng.uniform(3, 0.9 * cut.hem)
        top = (at + rng.uniform(-4, 2), low - rng.uniform(14, 28))
        drape = curve((at, low - 2), (at - 1, low - 12), top)
        for fold, shift in ((pull, (0, 2)), (drape, (1.8, 0))):
            sketch.shade(fold * (side, 1), -0.36, 1.3)
            sketch.shade((fold + shift) * (side, 1), 0.18, 1.3)
    sketch.shade(curve((-0.5 * x, pit + 4), (0, pit - 3), (0.5 * x, pit + 2)), 0.16, 7)


# Hems, sleeves and cuffs


def draw_hem(sketch: Sketch, cut: Cut, rng: np.random.Generator) -> None:
    x, low = cut.hem, cut.length
    if cut.hem_style in BANDED:
        draw_band_hem(sketch, cut)
    elif cut.hem_style == "plain_rib":
        sketch.line(sag(x, low - 4, 2))
        sketch.line(ribs(sag(x, low - 4, 2, n=31), sag(x, low, 2, n=31)), "ink", 0.18)
    elif cut.hem_style in ("flared", "peplum"):
        top = low - (16 if cut.hem_style == "peplum" else 24)
        for u in np.linspace(-0.85, 0.85, 9) + rng.uniform(-0.05, 0.05, 9):
            fold = curve((0.72 * u * x, top + 1), (0.85 * u * x, low - 8), (u * x, low + 1))
            sketch.shade(fold[2:], -0.45, 1.1)
            sketch.line(fold[:4], "ink", 0.22)
        if cut.hem_style == "peplum":
            sketch.line(sag(0.5 * (cut.waist + x) - 3.6, top, 2), "ink", 0.4)
    elif cut.hem_style == "fringe":
        edge = body_outline(cut)
        edge = edge[edge[:, 1] > 0.6 * low]
        at = np.linspace(0, len(edge) - 1, 64)
        root = np.stack([np.interp(at, range(len(edge)), v) for v in edge.T], axis=1)
        strands = np.stack([root, root * (1.03, 1) + (0, 4.5), root], axis=1).reshape(-1, 2)
        sketch.line(strands, "ink", 0.9)
        sketch.line(strands, "trim", 0.6)
    elif cut.hem_style == "straight":
        sketch.line(sag(x - 0.2, low - 2.4, 4), "ink", 0.2)


def draw_band_hem(sketch: Sketch, cut: Cut) -> None:
    x, low, rib = cut.hem, cut.length, cut.hem_style == "rib"
    top = low - BANDED[cut.hem_style]
    seam, bottom = sag(x + 1.2, top, 2.6, n=31), sag(x - 1, low, 3, n=31)
    sketch.shade(seam - (0, 1.2), -0.35, 1.6)
    sketch.fill(between(seam, bottom), "trim" if rib else "fabric", 90.0)
    if rib:
        sketch.line(ribs(seam, bottom), "ink", 0.2)
    elif cut.hem_style == "band":
        sketch.line(moved(seam, 0, 0.7), "stitch", 0.2)
    else:
        sketch.both("line", curve((14, low + 1), (14.6, low + 5), (13.5, low + 8)), "ink", 1.2)
        sketch.dots([(13.5, low + 8), (-13.5, low + 8)], 1.2, "metal")


def draw_sleeve(sketch: Sketch, cut: Cut, angles: tuple[float, float], side: int) -> None:
    """One sleeve with its cuff; `side` is 1 for the one at the right of the picture."""
    part, long = Sketch(), cut.sleeve > 35
    upper, fore = np.radians(angles)
    along, out = (np.array([np.sin(a), np.cos(a)]) for a in (upper, fore))
    outward, outward_fore = (v[::-1] * (1, -1) for v in (along, out))
    shoulder = np.array((cut.shoulder, cut.neck_top + cut.slope))
    armpit = np.array((cut.chest, cut.armpit))
    elbow = 0.5 * (shoulder + armpit) - (2, 2) + 0.5 * cut.sleeve * along
    wrist = elbow + (0.5 * cut.sleeve - (7 if long else 0)) * out
    puff = 1.7 if cut.cuff == "gathered" else 1.0
    edges = []
    for anchor, sign, reach in ((shoulder, 1, 0.3), (armpit, -1, 0.12)):
        first = anchor + reach * cut.sleeve * along + sign * 4 * (puff - 1) * outward
        second = elbow + sign * puff * cut.sleeve_width * outward
        second += 0.3 * cut.sleeve * out * (puff > 1)
        end = wrist + sign * cut.cuff_width * outward_fore
        edges.append(np.concatenate([[anchor - (3, 0)], curve(anchor, first, second, end, n=13)]))
    outer, inner = edges
    turn = -0.4 * angles[0] - 0.6 * angles[1]
    part.fill(between(outer, inner), "fabric", turn)
    part.shade(inner[3:], -0.5, 0.55 * cut.sleeve_width)
    part.shade(outer[3:], -0.15, 0.3 * cut.sleeve_width)
    part.shade(0.5 * (outer + inner)[4:] + 1.2 * outward, 0.16, 0.5 * cut.sleeve_width)
    for along_fore in (-2.5, 1.5, 5.5) if long else ():
        bend = elbow + along_fore * out
        part.shade([bend - 6 * outward_fore, moved(bend, 0, 1.4) - outward_fore], -0.4, 1)
    draw_cuff(part, cut, wrist, out, outward_fore, turn)
    for stroke in part.strokes:
        points, turn = stroke.points * (side, 1), stroke.turn * side
        sketch.strokes.append(stroke._replace(points=points, turn=turn))


def draw_cuff(
    part: Sketch, cut: Cut, wrist: Points, out: Points, side: Points, turn: float
) -> None:
    """The end of a right sleeve: `out` and `side` are unit vectors along and across it."""

    def at(*places: tuple[float, float]) -> Points:
        """Points given as (half widths of the cuff towards the outside, cm beyond the wrist)."""
        table = np.array(places)
        return wrist + table[:, :1] * cut.cuff_width * side + table[:, 1:] * out

    if cut.cuff in ("rib", "elastic"):
        high, paint = {"rib": (6.5, "trim"), "elastic": (2.5, "fabric")}[cut.cuff]
        part.fill(at((1, -0.5), (-1, -0.5), (-0.82, high), (0.82, high)), paint, turn)
        u = np.linspace(-1, 1, 9)
        part.line(ribs(at(*((v, -0.5) for v in u)), at(*((0.82 * v, high) for v in u))), "ink", 0.2)
    elif cut.cuff in ("shirt", "rolled", "gathered"):
        low, high, narrow = {
            "shirt": (0, 6, 0.95), "rolled": (-3, 3, 1.06), "gathered": (0, 4.5, 0.8)
        }[cut.cuff]  # fmt: skip
        band = at((1.06, low), (-0.94, low), (-narrow, high), (narrow, high))
        part.shade(band[:2] - out, -0.4, 1.3)
        part.fill(band, "fabric", turn + 90)
        part.line(band[2:] - 0.7 * out, "stitch" if cut.collar == "shirt" else "ink", 0.2)
        if cut.cuff == "shirt":
            part.dots(at((-0.55, 3)), 0.8)
        for x in (-0.7, -0.3, 0.1, 0.5) if cut.cuff == "gathered" else ():
            part.shade(at((x, -1), (1.5 * x, -13)), -0.5, 1.1)
            part.line(at((x, 0), (1.2 * x, -5)), "ink", 0.2)
    elif cut.cuff == "stripes":
        part.fill(at((1, -2.6), (-1, -2.6), (-1, 0.1), (1, 0.1)), "accent")
        part.line(at((1, -4.6), (-1, -4.6)), "accent", 0.9)
    else:
        part.line(at((1, -1.8), (-1, -1.8)), "ink", 0.2)
        if cut.cuff == "buttons":
            part.dots(at((-0.7, -2), (-0.7, -4.5), (-0.7, -7)), 0.7)
        if cut.cuff == "tab":
            part.fill(at((1, -8), (0, -8), (-0.3, -6.5), (0, -5), (1, -5)))
            part.dots(at((0.2, -6.5)), 0.8)


def draw_motif(sketch: Sketch, name: str, middle: float, size: float) -> None:
    """The print on a chest, `size` cm from its middle to its edge."""
    disc = ("accent", circle(0, 0, 1))
    peaks = [(-0.86, 0.5), (-0.25, -0.45), (0.1, 0.05), (0.35, -0.25), (0.86, 0.5)]
    heart = mirrored(curve((0, -0.5), (0.5, -1.4), (1.7, -0.3), (0, 1)))
    shapes: dict[str, list[tuple[str, ArrayLike]]] = {
        "sun": [disc, ("main", panel(0, 0.05, 2.1, 0.08)), ("main", panel(0, 0.45, 2.0, 0.1))],
        "mountain": [disc, ("ink", peaks)],
        "star": [("accent", star(5, 0.42))],
        "heart": [("accent", heart)],
        "bars": [("accent", panel(0, y, 2.4, 0.3)) for y in (-0.8, -0.2, 0.4)],
        "flower": [("accent", star(8, 0.55)), ("main", circle(0, 0, 0.3))],
    }
    for paint, shape in shapes[name]:
        sketch.fill(np.asarray(shape) * size + (0, middle), paint)


def sketch_garment(cut: Cut, pose: Pose, rng: np.random.Generator) -> list[Stroke]:
    """All strokes of a garment.

    Parameters
    ----------
    cut : measures and details
    pose : angles of the arms, front or back
    rng : places the folds

    Returns
    -------
    The strokes in drawing order, in centimetres.
    """
    sketch, hooded = Sketch(), cut.collar in ("hood", "fur_hood")
    if pose.back:
        neck = "round" if cut.neckline == "v" else cut.neckline
        hem = "straight" if cut.hem_style == "cutaway" else cut.hem_style
        depth = min(cut.neck_depth, 3.0)
        cut = replace(cut, neckline=neck, hem_style=hem, neck_depth=depth)
    elif hooded:
        COLLARS[cut.collar](sketch, cut, pose.back)
    if not (pose.back and hooded):
        draw_inside(sketch, cut)
    if cut.sleeve:
        for angles, side in zip(pose.arms, (-1, 1), strict=True):
            draw_sleeve(sketch, cut, angles, side)
        sketch.both("shade", armhole(cut)[[0, -1]], -0.4, 2.0)
    sketch.fill(body_outline(cut))
    draw_folds(sketch, cut, rng)
    for extra in cut.extras:
        EXTRAS[extra](sketch, cut, pose.back)
    draw_hem(sketch, cut, rng)
    if not pose.back:
        if cut.motif:
            draw_motif(sketch, cut.motif, cut.armpit + 6, 8.5)
        if cut.front:
            FRONTS[cut.front](sketch, cut)
        if cut.pockets:
            POCKETS[cut.pockets](sketch, cut)
    if pose.back or not hooded:
        COLLARS[cut.collar](sketch, cut, pose.back)
    return sketch.strokes
