"""Made-up feature databases of any size, for the benchmark: no pictures, no network."""

import json
from pathlib import Path

import numpy as np

from features.database import CATEGORY, CLASSIFIER, COLOR, DEEP, INFO, ITEM, LIST
from utils import sha256_of

DIM, COLORS = 512, 30  # of the embedding and of the colour feature, as in 2018
LATENT = 32  # directions in which pictures differ, as embeddings lie near a surface of few
GROUPS = 2000  # kinds of garment
SPREAD = 0.5  # of the pictures of a kind, in units of that of the kinds
BLOCK = 1 << 16  # rows made at once


def made_up(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of embeddings, rows x 512, and of colour features, rows x 30; float32.

    Each seed gives other pictures of the same kinds.
    """
    fixed = np.random.default_rng(0)
    kinds = fixed.standard_normal((GROUPS, LATENT), np.float32)
    spread = fixed.standard_normal((LATENT, DIM), np.float32) / np.float32(LATENT**0.5)
    rng = np.random.default_rng([1, seed])
    latent = kinds[rng.integers(GROUPS, size=rows)]
    latent += SPREAD * rng.standard_normal((rows, LATENT), np.float32)
    deep = latent @ spread
    deep += 0.1 * rng.standard_normal((rows, DIM), np.float32)
    return deep, rng.standard_normal((rows, COLORS), np.float32)


def make_database(base: Path, count: int) -> None:
    """Write a feature database of `count` made-up pictures; kept where there is one already."""
    if (base / INFO).is_file():
        return
    base.mkdir(parents=True, exist_ok=True)
    shapes = {DEEP: (count, DIM), COLOR: (count, COLORS)}
    matrices = {
        name: np.lib.format.open_memmap(base / name, "w+", np.float32, shape)
        for name, shape in shapes.items()
    }
    for start in range(0, count, BLOCK):
        block = slice(start, min(start + BLOCK, count))
        made = made_up(start, block.stop - start)
        for matrix, rows in zip(matrices.values(), made, strict=True):
            matrix[block] = rows
    for matrix in matrices.values():
        matrix.flush()
    others = (CATEGORY, ITEM, CLASSIFIER, LIST)
    np.save(base / CATEGORY, np.zeros(count, np.int16))
    np.save(base / ITEM, np.full(count, "", "<U1"))
    np.savez(base / CLASSIFIER, weight=np.zeros((1, DIM)), bias=np.zeros(1))
    with open(base / LIST, "w", encoding="utf-8") as file:
        file.writelines(f"img/Some_Kind_of_Garment/img_{row:08}.jpg\n" for row in range(count))
    settings = {"AMP": "float32", "COLOR_TOP_N": COLORS // 3, "CROP_TO_BBOX": False}
    network = {"backbone": "none", "inter_dim": DIM, "categories": ["all"], "img_size": 224}
    info = {
        "pictures": count,
        "models": [{"file": "none", "sha256": "0" * 64, "network": {**network, "crop_size": 224}}],
        "settings": {**settings, "PALETTE": False, "FLIP": False},
        "category_names": ["all"],
        "sha256": {name: sha256_of(base / name) for name in shapes},
        "sha256_others": {name: sha256_of(base / name) for name in others},
    }
    (base / INFO).write_text(json.dumps(info), "utf-8")
