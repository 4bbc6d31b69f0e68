"""Fronts and pockets of drawn garments, by name."""

from dataclasses import replace

import numpy as np

from tools.synthetic.shapes import (
    Cut,
    Sketch,
    column,
    curve,
    mirrored,
    moved,
    outline,
    panel,
)


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
