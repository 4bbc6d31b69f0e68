"""Pictures -> the features of one model after the other, in shards."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from config import Config
from data import DETAIL, PictureDataset, eval_transform, make_loader
from features.checksums import file_stamp
from features.database import COLOR, CONTENT, PALETTE, deep_file, plain_file
from features.incremental import DIGEST, STAMP_BYTES, look
from features.inference import (
    CPU_BATCH,
    faster,
    in_order,
    keeps_embeddings,
    one_core_each,
    streams_of,
)
from features.metadata import ModelRecord
from features.shards import Columns, Shard
from net import FeatureNet, Network, extract_features, find_model, held_out_of, load_net
from network.color import PALETTE_BINS, color_features
from pictures.decode import PictureError
from pictures.table import Pictures
from utils import UserError, progress_bar, sha256_of

SAVE_SECONDS = 10.0  # of work that a kill may cost
INFINITE = "the network's features of it are infinite or NaN; try --amp off, or another model"
STAMPS = "stamps"


@dataclass(frozen=True)
class Model:
    """A model that makes features, and what all_feat.json says of it."""

    file: Path
    net: FeatureNet
    network: Network
    record: ModelRecord


class Readable(Dataset[tuple[Tensor, str, Tensor]]):
    """A dataset whose unreadable pictures become zeros and a reason instead of an error.

    With each comes what it is made of: see `changes.look`.

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

    def __getitem__(self, row: int) -> tuple[Tensor, str, Tensor]:
        pictures, base = self.dataset.pictures, self.dataset.base
        box, crop = pictures.boxes[row], self.dataset.crop
        seen = torch.from_numpy(look(base, pictures.paths[row], box, crop))
        try:
            return self.dataset[row][0], "", seen
        except PictureError as error:
            none = torch.zeros(self.crop_size, self.crop_size, 3, dtype=torch.uint8)
            return none, str(error), seen


def dataset_of(base: Path, pictures: Pictures, crop: bool, model: Model) -> Readable:
    """The pictures as a model takes them."""
    transform = eval_transform(model.network.img_size, model.network.crop_size)
    dataset = PictureDataset(base, pictures, transform, crop, DETAIL * model.network.img_size)
    return Readable(dataset, model.network.crop_size)


def key_of(facts: dict[str, Any], pictures: Pictures) -> str:
    """A hash of all that the features depend on."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update("\n".join(pictures.paths).encode(errors="surrogateescape"))
    digest.update(pictures.boxes.tobytes())
    return digest.hexdigest()


def is_harmless(
    models: Sequence[Model],
    datasets: Sequence[Readable],
    device: torch.device,
    amp: torch.dtype,
) -> bool:
    """Whether models give the same embeddings of a few of the pictures in 16 bits."""
    rows = np.unique(np.linspace(0, len(datasets[0]) - 1, CPU_BATCH).astype(int)).tolist()
    batches = (torch.stack([dataset[row][0] for row in rows]) for dataset in datasets)
    return all(
        keeps_embeddings(model.net, images, device, amp)
        for model, images in zip(models, batches, strict=True)
    )


def extract(
    net: FeatureNet,
    dataset: Readable,
    shards: Sequence[Shard],
    device: torch.device,
    amp: torch.dtype | None,
    workers: int,
    batch_size: int,
    shown: bool = True,
) -> float:
    """Send pictures through a network; returns the seconds it took.

    Parameters
    ----------
    net : in evaluation mode, on `device`
    dataset : all pictures of the extraction
    shards : empty ones, for those that this process takes
    device, amp : see `net.extract_features`
    workers : processes that read
    batch_size : pictures of a batch; the shards are planned by it
    shown : whether there is a progress bar
    """
    rows = [row for shard in shards for row in shard.planned]
    if not rows:
        return 0.0
    streams = streams_of(device)
    names = shards[0].columns

    def features(batch: tuple[Tensor, tuple[str, ...], Tensor]) -> tuple[list[np.ndarray], Any]:
        found = extract_features(fast, batch[0], device, amp)
        made_of = np.split(batch[2].numpy(), [STAMP_BYTES], axis=1) if CONTENT in names else []
        return [*found, *made_of], batch[1]

    bar = progress_bar(len(rows), "extracting", "picture", shown=shown)
    with one_core_each(streams), bar:
        fast = faster(net, len(dataset), batch_size, dataset.crop_size, device, amp)
        rest = Subset(dataset, rows)
        loader = make_loader(rest, workers, device, batch_size=batch_size)
        start = saved = time.perf_counter()
        waiting = list(shards)
        for found, errors in in_order(features, loader, streams):
            shard = waiting[0]
            sound = np.all([np.isfinite(feature).all(axis=1) for feature in found], axis=0)
            paths = dataset.dataset.pictures.paths[shard.rows.stop :][: len(errors)]
            named = zip(errors, sound, paths, strict=True)
            errors = [e or ("" if ok else f"{path!a}: {INFINITE}") for e, ok, path in named]
            shard.append(found, errors)
            bar.update(len(errors))
            full = shard.done == len(shard.planned)
            if full or time.perf_counter() - saved > SAVE_SECONDS:
                shard.save()
                saved = time.perf_counter()
            if full:
                waiting.pop(0)
        return time.perf_counter() - start


def load_models(config: Config, category_names: list[str], device: torch.device) -> list[Model]:
    """Load the models of the settings.

    Raises
    ------
    UserError : one is missing, damaged or of another network, or was replaced meanwhile
    """
    base = config.DATASET_BASE
    bare = Network(
        config.BACKBONE, config.INTER_DIM, category_names, config.IMG_SIZE, config.CROP_SIZE
    )
    names = config.MODELS or (config.DUMPED_MODEL,)
    files = [find_model(base, name) for name in names]
    stamps = [file_stamp(file) for file in files]
    models = []
    for name, file in zip(names, files, strict=True):
        net, network = load_net(file, bare)
        colors = [] if models else color_features(settings_of(config, device))
        features = FeatureNet(net, colors, config.FLIP, plain=True).eval()
        features.to(device, memory_format=torch.channels_last)
        record = ModelRecord(
            file=name, sha256=sha256_of(file), network=network, held_out=held_out_of(file)
        )
        models.append(Model(file, features, network, record))
    if stamps != [file_stamp(file) for file in files]:
        raise UserError(f"{', '.join(names)}: replaced while it was read; run this again")
    return models


def settings_of(config: Config, device: torch.device) -> dict[str, Any]:
    """The settings that the features depend on, but for AMP."""
    return {
        "COLOR_TOP_N": config.COLOR_TOP_N,
        "PALETTE": config.PALETTE,
        "FLIP": config.FLIP,
        "CROP_TO_BBOX": config.CROP_TO_BBOX,
        "EXTRACT_BATCH_SIZE": config.EXTRACT_BATCH_SIZE,
        "DEVICE": device.type,
    }


def columns_of(number: int, model: Model, settings: dict[str, Any]) -> Columns:
    """The matrices that a model makes, in the order of `FeatureNet`."""
    dim = model.net.net.fc2.in_features
    widths = {deep_file(number): dim}
    if not number:
        widths |= {COLOR: 3 * settings["COLOR_TOP_N"]}
        widths |= {PALETTE: PALETTE_BINS**3} if settings["PALETTE"] else {}
    if settings["FLIP"]:
        widths[plain_file(number)] = dim
    made_of = {} if number else {STAMPS: (STAMP_BYTES, "|u1"), CONTENT: (DIGEST, "|u1")}
    return {name: (width, "<f4") for name, width in widths.items()} | made_of
