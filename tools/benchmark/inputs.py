"""What the benchmark measures with: random features, and a folder of drawn pictures."""

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from features.database import CATEGORY, CLASSIFIER, COLOR, DEEP, INFO, ITEM, LIST
from features.metadata import FeatureSettings, Metadata, ModelRecord
from net import Architecture
from tools.benchmark.timing import run_project
from tools.synthetic.draw import make_collection
from utils import sha256_of

DIM, COLORS, PALETTE = 512, 30, 512  # lengths of the embedding, colour feature and palette
LATENT = 32  # embeddings lie near a surface of few dimensions
GROUPS = 2000  # kinds of garment
SPREAD = 0.5  # deviation of the pictures of one kind, in units of that between kinds
BLOCK = 1 << 16  # rows made at once

QUERIES = 10**9  # the seed of queries: none of them is in the collection

DRAWN = 64  # different pictures; the others are copies
SIZE = (256, 341)  # width and height in px
FOLDERS = 8  # categories


def random_features(
    seed: int, rows: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Embeddings, rows x 512, and colour features, rows x 30, float32, on `device`.

    Each seed gives other pictures of the same kinds.
    """
    fixed = torch.Generator().manual_seed(0)
    kinds = torch.randn(GROUPS, LATENT, generator=fixed).to(device)
    directions = torch.randn(LATENT, DIM, generator=fixed).to(device) / LATENT**0.5
    random = torch.Generator(device).manual_seed(1 + seed)
    chosen = torch.randint(GROUPS, (rows,), generator=random, device=device)
    latent = torch.randn(rows, LATENT, generator=random, device=device)
    deep = (kinds[chosen] + SPREAD * latent) @ directions
    deep += 0.1 * torch.randn(rows, DIM, generator=random, device=device)
    return deep, torch.randn(rows, COLORS, generator=random, device=device)


def make_database(base: Path, count: int) -> None:
    """Write a feature database of `count` random pictures; one that is there is kept."""
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
        features = random_features(start, block.stop - start)
        for matrix, rows in zip(matrices.values(), features, strict=True):
            matrix[block] = rows
    for matrix in matrices.values():
        matrix.flush()
    others = (CATEGORY, ITEM, CLASSIFIER, LIST)
    np.save(base / CATEGORY, np.zeros(count, np.int16))
    np.save(base / ITEM, np.full(count, "", "<U1"))
    np.savez(base / CLASSIFIER, weight=np.zeros((1, DIM)), bias=np.zeros(1))
    with open(base / LIST, "w", encoding="utf-8") as file:
        file.writelines(f"img/Some_Kind_of_Garment/img_{row:08}.jpg\n" for row in range(count))
    metadata = Metadata(
        models=[
            ModelRecord(
                file="none", sha256="0" * 64, network=Architecture("none", DIM, ["all"], 224, 224)
            )
        ],
        settings=FeatureSettings(
            COLOR_TOP_N=COLORS // 3, PALETTE=False, FLIP=False, CROP_TO_BBOX=False, AMP="float32"
        ),
        pictures=count,
        category_names=["all"],
        sha256={name: sha256_of(base / name) for name in shapes},
        sha256_others={name: sha256_of(base / name) for name in others},
    )
    (base / INFO).write_bytes(metadata.to_json())


def make_photos(base: Path, count: int, backbone: str, side: int) -> None:
    """Write `count` JPEG pictures in folders by category, and an untrained network for them.

    Parameters
    ----------
    base : the folder; what it held is replaced
    count : pictures, most of them links to the first ones
    backbone : of the network
    side : of its input in px
    """
    drawn = base.with_name("drawn")
    make_collection(drawn, DRAWN, views=1, inshop_items=0, seed=0)
    sources = sorted(drawn.glob("img/*/*.jpg"))
    shutil.rmtree(base, ignore_errors=True)
    for folder in range(FOLDERS):
        (base / f"kind_{folder}").mkdir(parents=True)
    paths = [base / f"kind_{number % FOLDERS}" / f"{number:06}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if number < DRAWN:
            Image.open(sources[number]).resize(SIZE).save(path, quality=90)
        else:
            os.link(paths[number % DRAWN], path)
    network = (f"--backbone={backbone}", f"--img-size={side}", f"--crop-size={side}")
    run_project("train.py", base, "--epoch=0", "--pretrained=none", "--device=cpu", *network)
