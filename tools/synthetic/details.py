"""Collars, fronts, pockets and decorations of drawn garments, by name."""

from dataclasses import replace

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
    moved,
    neck_band,
    neckline,
    outline,
    panel,
    ribs,
    sag,
)

# Collars


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

# Fronts


def draw_button_front(sketch: Sketch, cut: Cut) -> None:
    top, end = cut.neck_depth, cut.length + 1.5
    sketch.both("line", column(1.6, top, end), "ink", 0.25)
    sketch.shade(column(2.2, top, end), -0.25, 1.0)
    sketch.dots(column(0, top + 3, cut.length - 8, 7), 0.85)


def draw_metal_button_front(sketch: Sketch, cut: Cut) -> None:
    top, end = cut.neck_depth, cut.length + 1.5
    sketch.both("line", column(2.2, top, end))
    sketch.both("line", column(1.7, top, end), "stitch", 0.2)
    sketch.dots(column(0, top + 3, cut.length - 2.5, 6), 1.1, "metal")


def draw_zip(sketch: Sketch, cut: Cut, end: float | None = None) -> None:
    top = -0.5 if cut.collar == "stand" else cut.neck_depth + 1
    end = cut.length + 1.5 if end is None else end
    sketch.both("line", column(1.3, top, end), "ink", 0.25)
    sketch.line(column(0, top, end), "metal", 1.0)
    sketch.line(column(0, top, end), "ink", 0.25)
    sketch.fill(panel(0, top + 1, 1.4, 3.5), "metal")


def draw_half_zip(sketch: Sketch, cut: Cut) -> None:
    draw_zip(sketch, cut, 31.0)
    draw_drawcords(sketch, replace(cut, neck_depth=cut.neck_depth - 1), 9)


def draw_drawcords(sketch: Sketch, cut: Cut, length: float = 17) -> None:
    top = cut.neck_depth - 0.5
    cord = curve((3.2, top), (4.4, top + 0.5 * length), (3.8, top + length))
    sketch.both("line", cord, "ink", 1.1)
    sketch.both("line", cord, "cord", 0.7)
    sketch.both("line", cord[-2:], "metal", 1.1)


def draw_placket(sketch: Sketch, cut: Cut) -> None:
    top = cut.neck_depth + 0.5
    sketch.fill(panel(0, top, 4, 17), "trim")
    sketch.line([(-2, top + 14.6), (2, top + 14.6)], "ink", 0.25)
    sketch.dots(column(0, top + 2.6, top + 12, 3), 0.95)


def draw_two_buttons(sketch: Sketch, cut: Cut) -> None:
    y, end = cut.neck_depth, cut.length - 18
    sketch.line(column(0, y, end), "ink", 0.35)
    sketch.shade(column(0.8, y, end), -0.4, 1.0)
    sketch.dots([(-1.6, y + 1.5), (-1.6, y + 11)], 1.2)


def draw_band_buttons(sketch: Sketch, cut: Cut) -> None:
    top, end = cut.neck_depth, cut.length + 1.7
    sketch.fill([(-3, top + 1), (0, top), (3, top + 1), (3, end), (-3, end)], "trim")
    sketch.shade(column(3.6, top, end), -0.35, 1.0)
    sketch.dots(column(0, top + 2.6, cut.length - 2, 5), 1.15)


def draw_storm_flap(sketch: Sketch, cut: Cut) -> None:
    top, end = cut.neck_depth + 2, cut.length + 1.5
    sketch.fill(panel(0, top, 6.8, end - top))
    sketch.line(column(2.7, top, end), "stitch", 0.2)
    sketch.shade(column(4, top, end), -0.4, 1.2)
    sketch.dots(column(0, top + 4, cut.length - 8, 6), 1.0, "metal")


def draw_double_breast(sketch: Sketch, cut: Cut) -> None:
    y = cut.neck_depth
    edge = curve((0, y), (8, y + 1), (10, y + 6), (10, cut.length + 1.2))
    sketch.line(edge, "ink", 0.35)
    sketch.shade(moved(edge, 0.8, 0), -0.4, 1.3)
    for x in (-7.2, 7.2):
        sketch.dots(column(x, y + 5, y + 33, 3), 1.7)
    sketch.dots([(-10.8, y - 5.5), (10.8, y - 5.5)], 1.5)


FRONTS = {
    "buttons": draw_button_front, "metal_buttons": draw_metal_button_front, "zip": draw_zip,
    "half_zip": draw_half_zip, "drawcords": draw_drawcords, "placket": draw_placket,
    "two_buttons": draw_two_buttons, "band_buttons": draw_band_buttons,
    "storm_flap": draw_storm_flap, "double": draw_double_breast,
}  # fmt: skip

# Pockets


def draw_chest_pocket(sketch: Sketch, cut: Cut, sides: tuple[int, ...] = (1,)) -> None:
    for side in sides:
        shape = panel(side * 11.5, 22, 10, 11.5, 1.8)
        sketch.fill(shape)
        sketch.line(moved(shape[:2], 0, 1.6), "ink", 0.22)
        sketch.shade(moved(shape[2:], 0, 0.5), -0.25, 1.0)


def draw_chest_flaps(sketch: Sketch, cut: Cut) -> None:
    draw_chest_pocket(sketch, cut, (-1, 1))
    sketch.both("shade", [(6.5, 27.5), (16.5, 27.5)], -0.5, 1.2)
    sketch.both("fill", panel(11.5, 21.5, 10.8, 5.6, 1.6))
    sketch.dots([(-11.5, 25), (11.5, 25)], 0.8)


def draw_trucker_pockets(sketch: Sketch, cut: Cut) -> None:
    flap = panel(12, 20, 11.5, 6, 2.6)
    sketch.both("shade", moved(flap[2:], 0, 1.2), -0.5, 1.2)
    sketch.both("fill", flap)
    sketch.both("line", flap[2:] - (0, 0.7), "stitch", 0.2)
    sketch.dots([(-12, 23.6), (12, 23.6)], 0.9, "metal")


def draw_patch_pockets(sketch: Sketch, cut: Cut) -> None:
    shape = panel(13.5, cut.length - 24, 11.5, 14, 0.8)
    sketch.both("fill", shape)
    sketch.both("fill", panel(13.5, cut.length - 24, 12, 2.8), "trim")
    sketch.both("shade", moved(shape[2:], 0, 0.6), -0.3, 1.2)


def draw_kangaroo(sketch: Sketch, cut: Cut) -> None:
    y = cut.length - 6.5
    shape = outline((0, y - 20), (10, y - 20), [(12, y - 12), (17, y - 8)], (17, y), (0, y))
    sketch.fill(mirrored(shape))
    sketch.both("line", shape[1:11] - (1, 0), "ink", 0.2)
    sketch.both("shade", moved(shape[2:10], 1, 0), -0.5, 1.6)


def draw_pouch(sketch: Sketch, cut: Cut) -> None:
    y = 36.0
    sketch.fill(panel(0, y, 36, 20))
    sketch.shade([(-18, y + 8.5), (18, y + 8.5)], -0.5, 1.5)
    sketch.fill(panel(0, y - 1, 37, 8.5))
    sketch.dots([(-14, y + 5), (0, y + 5), (14, y + 5)], 0.9, "metal")


def draw_welt_pockets(sketch: Sketch, cut: Cut) -> None:
    y = cut.length
    welt = np.array([(11, y - 24), (13, y - 24.6), (18, y - 12), (16, y - 11.4)])
    sketch.both("shade", moved(welt[1:3], 0.6, 0), -0.4, 1.4)
    sketch.both("fill", welt, "trim")


def draw_upright_pockets(sketch: Sketch, cut: Cut) -> None:
    y = 0.62 * cut.length
    welt = np.array([(15.5, y), (18.2, y - 0.6), (20.5, y + 14.5), (17.6, y + 15)])
    sketch.both("shade", moved(welt[1:3], 0.6, 0), -0.4, 1.4)
    sketch.both("fill", welt)


def draw_blazer_pockets(sketch: Sketch, cut: Cut) -> None:
    y = cut.length - 24
    sketch.both("shade", [(8, y + 5.8), (21, y + 5.8)], -0.5, 1.3)
    sketch.both("fill", panel(14.5, y, 13, 5))
    sketch.fill([(10.5, 26.2), (19, 24.6), (19.2, 27), (10.7, 28.6)])


def draw_big_flaps(sketch: Sketch, cut: Cut) -> None:
    y = cut.length - 36
    sketch.both("fill", panel(14.5, y, 15, 17))
    sketch.both("shade", [(7, y + 5.8), (22, y + 5.8)], -0.5, 1.3)
    sketch.both("fill", panel(14.5, y, 15.6, 5))
    sketch.both("dots", [(10.5, y + 3), (18.5, y + 3)], 0.8, "metal")
    sketch.both("line", [(11, 29), (19, 25)], "ink", 0.9)


POCKETS = {
    "chest": draw_chest_pocket, "two_chest": draw_chest_flaps, "two_flaps": draw_trucker_pockets,
    "patch": draw_patch_pockets, "kangaroo": draw_kangaroo, "pouch": draw_pouch,
    "welt": draw_welt_pockets, "upright": draw_upright_pockets, "blazer": draw_blazer_pockets,
    "big_flaps": draw_big_flaps,
}  # fmt: skip

# Seams and decorations


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
