"""Send every picture of the data set through the network: the feature database.

Writes all_feat.npy, all_color_feat.npy, all_category.npy, all_feat.list and all_feat.json below
DATASET_BASE. A run that was stopped goes on where it was; exit status 1 says that pictures were
skipped.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from annotations import Pictures
from collection import read_collection
from config import parse_args
from data import PictureDataset, eval_transform, make_loader
from index import CATEGORY, COLOR, DEEP, INFO, LIST
from net import (
    FeatureNet,
    Network,
    amp_type,
    extract_features,
    find_model,
    load_net,
    pick_device,
)
from utils import PictureError, UserError, atomic_write, progress_bar, run_script, sha256_of

SAVE_SECONDS = 10.0  # of work that a kill may cost


class Readable(Dataset[tuple[Tensor, str]]):
    """A dataset whose unreadable pictures become zeros and a reason instead of an error.

    Parameters
    ----------
    dataset : the pictures
    crop_size : side in px of their tensors
    """

    def __init__(self, dataset: PictureDataset, crop_size: int) -> None:
        self.dataset = dataset
        self.crop_size = crop_size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[Tensor, str]:
        try:
            return self.dataset[row][0], ""
        except PictureError as error:
            return torch.zeros(3, self.crop_size, self.crop_size), str(error)


class PartialFeatures:
    """The features of an unfinished extraction, in a hidden folder; they survive a kill.

    Parameters
    ----------
    folder : where they lie
    key : what the extraction depends on; features found there under another key are dropped
    count, dim, color_dim : N, D and 3T
    """

    def __init__(self, folder: Path, key: str, count: int, dim: int, color_dim: int) -> None:
        self.folder = folder
        self.key = key
        self.done = 0
        self.errors: dict[int, str] = {}
        shapes = {DEEP: (count, dim), COLOR: (count, color_dim)}
        state = self._read_state()
        if state:
            try:
                self.deep, self.color = (_matrix(folder / n, "r+", s) for n, s in shapes.items())
            except (OSError, ValueError):
                state = None
        if state:
            self.done = state["done"]
            self.errors = {int(row): reason for row, reason in state["errors"].items()}
        else:
            self.remove()
            folder.mkdir(parents=True)
            self.deep, self.color = (_matrix(folder / n, "w+", s) for n, s in shapes.items())

    def _read_state(self) -> dict[str, Any] | None:
        try:
            state = json.loads((self.folder / "state.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return state if state.get("key") == self.key else None

    def append(self, deep: np.ndarray, color: np.ndarray, errors: Sequence[str]) -> None:
        """Add the features of the next pictures."""
        rows = slice(self.done, self.done + len(deep))
        self.deep[rows], self.color[rows] = deep, color
        self.errors |= {self.done + i: reason for i, reason in enumerate(errors) if reason}
        self.done += len(deep)

    def save(self) -> None:
        """Make what was added survive: first the features, then the word that they are there."""
        self.deep.flush()
        self.color.flush()
        state = {"key": self.key, "done": self.done, "errors": self.errors}
        with atomic_write(self.folder / "state.json") as part:
            part.write_text(json.dumps(state), "utf-8")

    def remove(self) -> None:
        """Delete the folder: first the word that features are there, then the features."""
        (self.folder / "state.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _matrix(path: Path, mode: Any, shape: tuple[int, int]) -> np.memmap:
    """Open or make a float32 .npy file; a `ValueError` where an old one has another shape."""
    matrix = np.lib.format.open_memmap(path, mode=mode, dtype=np.float32, shape=shape)
    if matrix.shape != shape or matrix.dtype != np.float32:
        raise ValueError(f"{path}: {matrix.shape}")
    return matrix


def write_database(
    base: Path, pictures: Pictures, partial: PartialFeatures, facts: dict[str, Any]
) -> None:
    """Write the files of the feature database, without the rows of unreadable pictures.

    all_feat.json goes first and comes last: without it the other files are no database, so that
    old and new ones are never read together.
    """
    kept = np.setdiff1d(np.arange(len(pictures)), list(partial.errors))
    (base / INFO).unlink(missing_ok=True)
    hashes = {}
    for name, source in ((DEEP, partial.deep), (COLOR, partial.color)):
        with atomic_write(base / name) as part:
            target = _matrix(part, "w+", (len(kept), source.shape[1]))
            for start in range(0, len(kept), 8192):
                target[start : start + 8192] = source[kept[start : start + 8192]]
            target.flush()
        hashes[name] = sha256_of(base / name)
    with atomic_write(base / CATEGORY) as part, open(part, "wb") as file:
        np.save(file, pictures.categories[kept])
    with atomic_write(base / LIST) as part:
        part.write_text("".join(pictures.paths[row] + "\n" for row in kept), "utf-8")
    info = {
        **facts,
        "pictures": len(kept),
        "skipped": [pictures.paths[row] for row in sorted(partial.errors)],
        "category_names": pictures.category_names,
        "sha256": hashes,
    }
    with atomic_write(base / INFO) as part:
        part.write_text(json.dumps(info, indent=1), "utf-8")


def _key(facts: dict[str, Any], pictures: Pictures) -> str:
    """A hash of all that the features depend on."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update("\n".join(pictures.paths).encode())
    digest.update(pictures.boxes.tobytes())
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    uses = ("data set", "feature database", "network", "machine")
    config, _ = parse_args(argv, __doc__ or "", uses)
    base = config.DATASET_BASE
    device = pick_device(config.DEVICE)
    amp = amp_type(device, config.AMP)
    pictures = read_collection(
        base, config.CATEGORIES, config.ENABLE_INSHOP_DATASET, config.VAL_SHARE
    )
    model = find_model(base, config.DUMPED_MODEL)
    bare = Network(
        config.BACKBONE,
        config.INTER_DIM,
        pictures.category_names,
        config.IMG_SIZE,
        config.CROP_SIZE,
    )
    net, network = load_net(model, bare)
    features = FeatureNet(net, config.COLOR_TOP_N).eval()
    features = features.to(device, memory_format=torch.channels_last)
    facts = {
        "model": {"file": config.DUMPED_MODEL, "sha256": sha256_of(model)},
        "network": asdict(network),
        "settings": {
            "COLOR_TOP_N": config.COLOR_TOP_N,
            "CROP_TO_BBOX": config.CROP_TO_BBOX,
            "EXTRACT_BATCH_SIZE": config.EXTRACT_BATCH_SIZE,
            "AMP": str(amp or torch.float32).removeprefix("torch."),
            "DEVICE": device.type,
        },
    }
    partial = PartialFeatures(
        base / ".extract",
        _key(facts, pictures),
        len(pictures),
        net.fc2.in_features,
        3 * config.COLOR_TOP_N,
    )
    transform = eval_transform(network.img_size, network.crop_size)
    dataset = Readable(
        PictureDataset(base, pictures, transform, config.CROP_TO_BBOX), network.crop_size
    )
    rest = Subset(dataset, range(partial.done, len(pictures)))
    loader = make_loader(
        rest, config.NUM_WORKERS, device.type == "cuda", batch_size=config.EXTRACT_BATCH_SIZE
    )
    resumed = f", going on from {partial.done:,}" if partial.done else ""
    print(f"{len(pictures):,} pictures, {model} on {device}{resumed}", flush=True)

    start = saved = time.perf_counter()
    with progress_bar(len(pictures), "extracting", "picture", partial.done) as bar:
        for images, errors in loader:
            partial.append(*extract_features(features, images, device, amp), errors)
            bar.update(len(images))
            if time.perf_counter() - saved > SAVE_SECONDS:
                partial.save()
                saved = time.perf_counter()
    partial.save()
    seconds = time.perf_counter() - start
    if len(partial.errors) == len(pictures):
        partial.remove()
        raise UserError(f"{base}: no picture can be read: {partial.errors[0]}")
    write_database(base, pictures, partial, facts)
    partial.remove()

    speed = len(rest) / seconds if seconds else 0.0
    count = len(pictures) - len(partial.errors)
    print(f"{count:,} pictures in {base / DEEP}: {seconds:.1f} s, {speed:.1f} pictures/s")
    if not partial.errors:
        return 0
    print(f"{len(partial.errors):,} pictures were skipped:", file=sys.stderr)
    for _, reason in sorted(partial.errors.items()):
        print(f"  {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    run_script(main)
