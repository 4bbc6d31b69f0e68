"""Items of the drawn collection: shape, pattern and colours."""

from dataclasses import dataclass, replace

import numpy as np

from tools.synthetic.garments import CATEGORY_NAMES, CUTS, MOTIFS
from tools.synthetic.shapes import Cut

COLOURS = {
    name: np.array([int(rgb[i : i + 2], 16) for i in (0, 2, 4)], np.float32)
    for name, rgb in {
        "White": "f4f3ef", "Ivory": "f0e6d2", "Stone": "c9c1b4", "Sand": "d8c09c",
        "Camel": "b98b5a", "Rust": "b5542f", "Terracotta": "cb755a", "Coral": "ee8a75",
        "Blush": "ecc3bd", "Rose": "cf6f8c", "Berry": "942f5b", "Burgundy": "6d2131",
        "Red": "c63a3f", "Mustard": "d8a03c", "Lemon": "efd87c", "Olive": "7b7b44",
        "Sage": "a5b599", "Mint": "b5dcc8", "Forest": "305a45", "Teal": "26797c",
        "Sky": "a6cbe5", "Denim": "50769f", "Cobalt": "3357b2", "Navy": "27334f",
        "Lavender": "b9abd6", "Plum": "613d69", "Grey": "9d9fa3", "Charcoal": "484b52",
        "Black": "2b2b30", "Chocolate": "5d4032",
    }.items()
}  # fmt: skip

PATTERNS = {
    "plain": "Solid",
    "stripes": "Striped",
    "pinstripes": "Pinstriped",
    "checks": "Checked",
    "dots": "Dotted",
    "block": "Colorblock",
    "print": "Graphic",
}


@dataclass(frozen=True)
class Item:
    """One garment as a shop would sell it: a shape, a pattern and one to three colour variants."""

    seed: int
    number: int
    category: int
    cut: Cut
    pattern: str
    pitch: float
    contrast: bool
    colours: tuple[tuple[str, str], ...]


def make_item(category: int, seed: int, item: int) -> Item:
    """Design a garment.

    Parameters
    ----------
    category : 1 to 20, DeepFashion's number
    seed, item : seed of the collection and number of the item in it; they decide everything else
    """
    rng = np.random.default_rng([seed, item])
    name = CATEGORY_NAMES[category - 1]
    cut = CUTS[name]
    wide, long, sleeve = rng.uniform((0.94, 0.94, 0.93), (1.06, 1.06, 1.06))
    cut = replace(
        cut,
        length=cut.length * long,
        chest=cut.chest * wide,
        waist=cut.waist * wide * rng.uniform(0.98, 1.02),
        hem=cut.hem * wide * rng.uniform(0.97, 1.03),
        neck_depth=cut.neck_depth * rng.uniform(0.9, 1.1),
        sleeve=cut.sleeve * sleeve,
        sleeve_width=cut.sleeve_width * rng.uniform(0.92, 1.1),
    )
    pattern = str(rng.choice(tuple(PATTERNS), p=(0.34, 0.16, 0.1, 0.1, 0.12, 0.1, 0.08)))
    motif = MOTIFS[rng.integers(len(MOTIFS))]
    if pattern == "print" and name in ("Tee", "Tank", "Halter", "Hoodie", "Turtleneck"):
        cut = replace(cut, motif=motif)
    elif pattern == "print" or name in ("Jersey", "Sweater"):
        pattern = "plain"
    if name == "Flannel":
        pattern = "checks"
    elif name == "Button-Down" and pattern == "checks":  # it would be a flannel
        pattern = "pinstripes"
    return Item(
        seed, item, category, cut, pattern,
        pitch=rng.uniform(3.5, 8.0),
        contrast=bool(rng.random() < 0.4),
        colours=tuple(_choose_colours(rng) for _ in range(rng.integers(1, 4))),
    )  # fmt: skip


def _choose_colours(rng: np.random.Generator) -> tuple[str, str]:
    """Names of a main colour and of one that stands out from it."""
    names = list(COLOURS)
    main = names[rng.integers(len(names))]
    apart = [n for n in names if np.abs(COLOURS[n] - COLOURS[main]).sum() > 170]
    return main, apart[rng.integers(len(apart))]
