"""Collars of drawn garments, by name."""

import numpy as np

from tools.synthetic.shapes import (
    Cut,
    Sketch,
    across,
    armhole,
    between,
    column,
    curve,
    mirrored,
    neck_band,
    neckline,
    outline,
    ribs,
    sag,
)


def draw_rib_collar(sketch: Sketch, cut: Cut, back: bool, width: float = 2.2) -> None:
    sketch.fill(neck_band(cut, width), "trim")
    sketch.shade(across(neckline(cut, width)), -0.25, 1.2)


def draw_thick_rib_collar(sketch: Sketch, cut: Cut, back: bool) -> None:
    draw_rib_collar(sketch, cut, back, 3.6)
    sketch.line(ribs(across(neckline(cut)), across(neckline(cut, 3.6))), "ink", 0.25)


def draw_v_band(sketch: Sketch, cut: Cut, back: bool) -> None:
    sketch.fill(neck_band(cut, 3.0), "accent")
    sketch.line(across(neckline(cut, 1.5)), "main", 0.5)


def draw_binding(sketch: Sketch, cut: Cut, back: bool) -> None:
    sketch.line(across(neckline(cut, 0.7)), "trim", 1.3)
    sketch.line(across(neckline(cut, 1.4)), "ink", 0.2)
    sketch.both("line", armhole(cut) - (0.6, 0), "trim", 1.2)
    sketch.both("line", armhole(cut) - (1.4, 0), "ink", 0.2)


def draw_halter_collar(sketch: Sketch, cut: Cut, back: bool) -> None:
    sketch.fill(neck_band(cut, 2.0), "trim")
    sketch.both("line", armhole(cut) - (0.7, 0), "trim", 1.0)


def draw_straps(sketch: Sketch, cut: Cut, back: bool) -> None:
    sketch.line(across(neckline(cut, 0.9)), "trim", 1.4)
    sketch.line(across(neckline(cut, 1.8)), "ink", 0.2)


def draw_shirt_collar(sketch: Sketch, cut: Cut, back: bool) -> None:
    n = cut.neck
    if back:
        sketch.fill(between(sag(n + 1.5, 2, 5), sag(n, -4, -1.5)))
        return
    sketch.fill(between(sag(n, -4, -2), sag(n - 1, 1, 2)), "lining")
    leaf = outline(
        (n, -4.2), [(n - 1, 1), (0.2, 5)], (5.6, 11.5), (n + 3.2, 3.5), [(n + 2.6, 0), (n, -4.2)]
    )
    for side in (1, -1):
        sketch.shade(leaf[8:11] * (side, 1) + (0, 0.8), -0.5, 1.5)
        sketch.fill(leaf * (side, 1), "fabric", 35.0 * side)


def draw_stand_collar(sketch: Sketch, cut: Cut, back: bool) -> None:
    n, low = cut.neck, 3 if back else cut.neck_depth + 1
    if not back:
        sketch.fill(between(sag(n, -5, -2), sag(n, -5, 6)), "lining")
    top = sag(n, -5, -1.5 if back else 5, n=15)
    bottom = sag(n + 1.6, 1.2, 2 * low - 2, n=15)
    sketch.fill(between(top, bottom), "trim")
    sketch.line(ribs(top, bottom), "ink", 0.2)


def draw_turtle_collar(sketch: Sketch, cut: Cut, back: bool) -> None:
    n, top = cut.neck, -11.5
    sketch.fill(between(sag(n, top, -3), sag(n, top, 3)), "lining")
    sketch.fill(between(sag(n, -3, 3), sag(n + 1, 1.5, 6)), "trim")
    sketch.shade(sag(n, 1, 6), -0.5, 2)
    fold = outline((0, top + 1.2), [(0.5 * n, top + 1.2), (n, top)],
                   [(n + 1.6, top + 6), (n + 0.6, -1)], [(0.5 * n, 2.5), (0, 2.5)])  # fmt: skip
    sketch.fill(mirrored(fold), "trim")
    upper, lower = sag(0.95 * n, top, 2.4, n=15), sag(n + 0.6, -1, 6.5, n=15)
    sketch.line(ribs(upper, lower), "ink", 0.2)


def draw_cowl(sketch: Sketch, cut: Cut, back: bool) -> None:
    n = cut.neck
    sketch.fill(between(sag(n, -9, -4), sag(n, -9, 5)), "lining")
    sketch.shade(sag(n + 4, 5, 14), -0.5, 2.5)
    roll = outline((0, -6.3), [(0.5 * n, -6.3), (n, -9)], [(n + 5, -4), (n + 4, 4)],
                   [(0.5 * n, 10.5), (0, 10.5)])  # fmt: skip
    sketch.fill(mirrored(roll), "trim")
    for y in (-5, -0.5):
        sketch.shade(sag(n + 2, y, 10), -0.35, 1.2)


def draw_hood(sketch: Sketch, cut: Cut, back: bool, fur: bool = False) -> None:
    n, low = cut.neck, cut.neck_depth
    if back:
        hood = outline((0, -7), [(n + 3, -8), (n + 5, 3)], [(n + 4, 20), (0, 23)])
        sketch.shade(mirrored(hood), -0.5, 2.5)
        sketch.fill(mirrored(hood))
        sketch.line(column(0, -7, 22))
        sketch.shade(sag(n, 12, 14), -0.3, 2)
        return
    sketch.fill(mirrored(outline((0, -25), [(n + 4, -25), (n + 8, -10), (n + 5, 4)], (0, low + 3))))
    sketch.shade(curve((n + 2, -16), (n + 5, -8), (n + 3, 1)), -0.3, 3)
    edge = outline((0, -19), [(n + 1, -19), (n + 2, -8), (n - 1.5, 1)], [(3, 5), (0, low + 1)])
    opening = mirrored(edge)
    if fur:
        centre = opening.mean(axis=0)
        ring = opening[np.linspace(0, len(opening) - 1, 73).astype(int)] - centre
        tufts = 1.33 + 0.07 * (np.arange(73) % 2) + 0.03 * np.sin(np.arange(73) * 0.8)
        sketch.fill(centre + ring * tufts[:, None], "fur")
        sketch.shade(centre + ring * 1.15, -0.15, 1.5)
    else:
        sketch.line(opening[1:-1] * (1.1, 1.04), "ink", 0.2)
    sketch.fill(opening, "lining")
    sketch.shade(opening[2:7] * (0.7, 0.9), -0.5, 4)


def draw_fur_hood(sketch: Sketch, cut: Cut, back: bool) -> None:
    draw_hood(sketch, cut, back, fur=True)


def draw_lapels(sketch: Sketch, cut: Cut, back: bool, wide: float = 0.0) -> None:
    n, low, x, y = cut.neck, cut.neck_depth, 10.5 + wide, 14 + 0.3 * wide
    if back:
        draw_shirt_collar(sketch, cut, back)
        return
    sketch.fill(between(sag(n, -4, -2), sag(n - 0.5, 2, 2)), "dark")
    tip = [(7.5 + wide, low - 8), (x + 3.4, y + 1.2)]
    lapel = outline((n - 1.2, 1), (0, low), tip, (x, y), (n + 1, 4))
    fall = [(n + 1.5, -2), (n + 4 + wide, 4), (x + 3.2, y - 3.6)]
    collar = outline((n - 1.2, 1), [(n - 1.6, -2), (n - 0.6, -4), (n, -4.4)], fall, (x, y))
    for side in (-1, 1):
        sketch.shade(lapel[1:10] * (side, 1) + (0.4 * side, 0.6), -0.6, 1.8)
        sketch.fill(lapel * (side, 1), "fabric", 12.0 * side)
        sketch.fill(collar * (side, 1), "fabric", 40.0 * side)


def draw_wide_lapels(sketch: Sketch, cut: Cut, back: bool) -> None:
    draw_lapels(sketch, cut, back, wide=4.5)


def draw_band_collar(sketch: Sketch, cut: Cut, back: bool) -> None:
    if back:
        draw_rib_collar(sketch, cut, back)
        return
    inner, outer = neckline(cut), neckline(cut, 3.2)
    outer[0] = (3.0, inner[0, 1] + 1)
    sketch.both("fill", between(inner, outer), "trim")
    sketch.both("shade", outer, -0.3, 1.4)


def draw_bow(sketch: Sketch, cut: Cut, back: bool) -> None:
    sketch.fill(neck_band(cut, 1.8))
    if back:
        return
    y = cut.neck_depth + 1.5
    tail = outline((0, y), [(2.5, y + 8), (4, y + 19)], (8.5, y + 17.5), [(6, y + 8), (1, y)])
    loop = outline((0, y), [(5, y - 6), (11, y - 5)], [(13, y), (10.5, y + 4)],
                   [(5, y + 4), (0, y)])  # fmt: skip
    for shape, turn in ((tail, -15.0), (loop, 70.0)):
        for side in (-1, 1):
            sketch.shade(shape * (side, 1) + (0, 0.8), -0.35, 1.2)
            sketch.fill(shape * (side, 1), "fabric", turn * side)
    sketch.both("line", curve((1, y - 0.3), (4, y - 2), (8, y - 1.5)), "ink", 0.25)
    sketch.fill([(-1.6, y - 2), (1.6, y - 2), (1.9, y + 2), (-1.9, y + 2)])


COLLARS = {
    "rib": draw_rib_collar, "thick_rib": draw_thick_rib_collar, "v_band": draw_v_band,
    "binding": draw_binding, "shirt": draw_shirt_collar, "stand": draw_stand_collar,
    "turtle": draw_turtle_collar, "hood": draw_hood, "fur_hood": draw_fur_hood,
    "lapel": draw_lapels, "wide_lapel": draw_wide_lapels, "band": draw_band_collar,
    "bow": draw_bow, "halter": draw_halter_collar, "straps": draw_straps, "cowl": draw_cowl,
}  # fmt: skip
