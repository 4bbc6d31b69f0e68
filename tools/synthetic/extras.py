"""Seams and decorations of drawn garments, by name."""

import numpy as np

from tools.synthetic.shapes import (
    Cut,
    Sketch,
    column,
    curve,
    moved,
    outline,
    sag,
)


def draw_yoke(sketch: Sketch, cut: Cut, back: bool) -> None:
    sketch.line(sag(cut.chest - 4, 16, 2))
    sketch.shade(sag(cut.chest - 4, 17, 2), -0.25, 1.0)


def draw_darts(sketch: Sketch, cut: Cut, back: bool) -> None:
    if back:
        sketch.line(column(0, 6, cut.length))
    else:
        sketch.both("line", curve((12, 32), (10.5, 42), (12, 49)), "ink", 0.25)


def draw_trucker(sketch: Sketch, cut: Cut, back: bool) -> None:
    x, low = cut.chest - 3.5, cut.length - 5
    sketch.line(sag(x, 20, 0.5), "ink", 0.35)
    sketch.line(sag(x, 20.7, 0.5), "stitch", 0.2)
    for seam in ([(8.5, 20), (5, low)], [(15.5, 20), (13, low)]):
        sketch.both("line", seam)
        sketch.both("line", np.add(seam, (0.6, 0)), "stitch", 0.2)


def draw_raglan(sketch: Sketch, cut: Cut, back: bool) -> None:
    n, x = cut.neck, cut.shoulder
    seam = [(n + 5, 12), (cut.chest - 0.5, cut.armpit)]
    cap = outline((n + 0.5, 1), seam, (x - 0.5, 14), (x, cut.slope), (n + 1, 0.2))
    sketch.both("fill", cap, "sleeve")


def draw_side_panels(sketch: Sketch, cut: Cut, back: bool) -> None:
    x, low = cut.chest, cut.length
    side = [(x - 1, 0.6 * low), (x + 0.2, low)]
    strip = outline(
        (x - 0.2, cut.armpit), side, (x - 3, low + 0.6), [(x - 5, 0.6 * low), (x - 1, 26)]
    )
    sketch.both("fill", strip, "accent")


def draw_number(sketch: Sketch, cut: Cut, back: bool) -> None:
    scale = 1.35 if back else 1.1
    one = np.array([(-9.5, -5), (-6.5, -8.4), (-6.5, 8.4)])
    zero = np.array([(2.9, -8.4), (10.1, -8.4), (10.1, 8.4), (2.9, 8.4), (2.9, -8.4)])
    for paint, width in (("ink", 3.6), ("accent", 2.8)):
        for digit in (one, zero):
            sketch.line(moved(digit * scale, 0, 34), paint, width * scale)


def draw_cables(sketch: Sketch, cut: Cut, back: bool) -> None:
    y = np.linspace(15, cut.length - 8, 33)
    for middle in (-13, 0, 13):
        for wave in (1.8, -1.8):
            sketch.line(np.stack([middle + wave * np.sin(0.62 * y), y], axis=1), "ink", 0.4)
        for edge in (-3.4, 3.4):
            sketch.line(column(middle + edge, y[0], y[-1]), "ink", 0.25)
            sketch.shade(column(middle + edge, y[0], y[-1]), -0.25, 1)
        sketch.shade(column(middle, y[0], y[-1]), 0.2, 2.5)


def draw_knit(sketch: Sketch, cut: Cut, back: bool) -> None:
    for x in np.linspace(4 - cut.chest, cut.chest - 4, 13):
        top = 16 + 0.4 * abs(x) if back else max(16 + 0.4 * abs(x), 40 - 4 * abs(x))
        sketch.line(column(x, top, cut.length - 7), "knit", 0.25)


def draw_waist_cord(sketch: Sketch, cut: Cut, back: bool) -> None:
    y = 0.5 * cut.length
    seam = sag(cut.waist - 1, y, 2)
    sketch.line(seam, "ink", 0.4)
    sketch.shade(moved(seam, 0, 1.3), -0.4, 1.5)
    for u in np.linspace(-0.8, 0.8, 9):
        sketch.shade([(24 * u, y - 3), (25 * u, y + 5)], -0.3, 0.8)
    if not back:
        sketch.both("line", curve((5, y + 1), (6.5, y + 6), (5.5, y + 10)), "cord", 0.7)


def draw_bands(sketch: Sketch, cut: Cut, back: bool) -> None:
    for rise, paint, width in ((8, "accent", 2.6), (13, "accent", 0.9), (24, "trim", 1.6)):
        near = 1 - rise / 75
        x, low = near * (cut.hem + 2), cut.length + 4 - rise
        line = curve((x, near * 0.62 * cut.length), (0.73 * x, near * 0.84 * cut.length), (0, low))
        sketch.both("line", line, paint, width)


def draw_gathers(sketch: Sketch, cut: Cut, back: bool) -> None:
    for x in (4, 8, 12):
        sketch.both("shade", [(x, 16), (x + 1, 30)], -0.3, 1)


def draw_neck_gathers(sketch: Sketch, cut: Cut, back: bool) -> None:
    for u in np.linspace(-1, 1, 7):
        fold = curve((5 * u, 9.5), (7 * u, 18), (13 * u, 34))
        sketch.shade(fold, -0.4, 1)
        sketch.line(fold[:5], "ink", 0.2)


def draw_slanted_zip(sketch: Sketch, cut: Cut, back: bool) -> None:
    if not back:
        sketch.line([(12, 18), (19, 16)], "metal", 0.7)


EXTRAS = {
    "yoke": draw_yoke, "darts": draw_darts, "trucker": draw_trucker, "raglan": draw_raglan,
    "side_panels": draw_side_panels, "number": draw_number, "cables": draw_cables,
    "knit": draw_knit, "waist_cord": draw_waist_cord, "bands": draw_bands,
    "gathers": draw_gathers, "gathers_neck": draw_neck_gathers, "sleeve_pocket": draw_slanted_zip,
}  # fmt: skip
