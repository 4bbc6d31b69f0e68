"""Pictures -> the features of one model after the other, in shards."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from config import Config
from data import DETAIL, PictureDataset, eval_transform, make_loader
from features.checksums import file_stamp
from features.database import COLOR, CONTENT, PALETTE, deep_file, plain_file
from features.incremental import DIGEST, STAMP_BYTES, fingerprint, open_file
from features.inference import CPU_BATCH, faster, features_in_order, keeps_embeddings, one_thread
from features.metadata import ModelRecord
from features.shards import Columns, Shard
from net import Architecture, FeatureNet, find_model, load_net, read_split
from network.color import PALETTE_BINS, color_features
from network.device import amp_type, explain_out_of_memory, query_type, to_device
from pictures.decode import PictureError
from pictures.folder import picture_file
from pictures.table import Pictures
from utils import UserError, evenly_spaced, progress_bar, sha256_of

SAVE_SECONDS = 10.0  # of work that a kill may cost
INFINITE = "the network's features of it are infinite or NaN; try --amp off, or another model"
STAMPS = "stamps"


@dataclass(frozen=True)
class LoadedModel:
    """A model that makes features, and what all_feat.json records of it."""

    file: Path
    net: FeatureNet
    architecture: Architecture
    record: ModelRecord


class Readable(Dataset[tuple[Tensor, str, Tensor]]):
    """A dataset whose unreadable pictures become zeros and a reason instead of an error.

    With each picture comes what it is made of, see `incremental.look`: its bytes are hashed and
    decoded from one open file.

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
        """Picture H x W x 3, uint8; why it cannot be read, or ""; 56 + 32 bytes of `look`."""
        source = self.dataset
        made_of = np.zeros(STAMP_BYTES + DIGEST, np.uint8)
        try:
            path = picture_file(source.base, source.pictures.paths[row])
            try:
                with open_file(path) as content:
                    made_of = fingerprint(content, source.pictures.boxes[row], source.crop)
                    image = source.transform(source.picture(row, content))
            except OSError:  # reading it by its path says what is wrong
                image = source[row][0]
            return image, "", torch.from_numpy(made_of)
        except PictureError as error:
            none = torch.zeros(self.crop_size, self.crop_size, 3, dtype=torch.uint8)
            return none, str(error), torch.from_numpy(made_of)


def dataset_of(base: Path, pictures: Pictures, crop: bool, model: LoadedModel) -> Readable:
    """The pictures as a model takes them."""
    size, side = model.architecture.img_size, model.architecture.crop_size
    dataset = PictureDataset(base, pictures, eval_transform(size, side), crop, DETAIL * size)
    return Readable(dataset, side)


def key_of(facts: dict[str, Any], pictures: Pictures) -> str:
    """A hash of all that the features depend on."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update("\n".join(pictures.paths).encode(errors="surrogateescape"))
    digest.update(pictures.boxes.tobytes())
    return digest.hexdigest()


def choose_arithmetic(
    amp: str,
    stored: str,
    models: Sequence[LoadedModel],
    datasets: Sequence[Readable],
    device: torch.device,
) -> tuple[torch.dtype | None, str]:
    """The 16-bit type in which to extract, None for float32, and what all_feat.json records.

    Parameters
    ----------
    amp : the setting AMP; `auto` takes 16 bits where they do not change the embeddings
    stored : of the database that is updated, float32, float16 or bfloat16; "": there is none
    models, datasets : what is extracted
    device : where
    """
    if stored:  # maybe on another machine; its features differ by rounding only
        return query_type(stored, device), stored
    kind = amp_type(device, amp)
    if amp == "auto" and kind and not _keeps_embeddings(models, datasets, device, kind):
        print("float32, as 16 bits would change these embeddings by more than rounding")
        kind = None
    return kind, str(kind or torch.float32).removeprefix("torch.")


def _keeps_embeddings(
    models: Sequence[LoadedModel],
    datasets: Sequence[Readable],
    device: torch.device,
    kind: torch.dtype,
) -> bool:
    """Whether models give the same embeddings of a few of the pictures in 16 bits."""
    rows = evenly_spaced(len(datasets[0]), CPU_BATCH).tolist()
    batches = (torch.stack([dataset[row][0] for row in rows]) for dataset in datasets)
    return all(
        keeps_embeddings(model.net, images, device, kind)
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
    """Send pictures through a network; returns the seconds it took, without compilation.

    Parameters
    ----------
    net : in evaluation mode, on `device`
    dataset : all pictures of the extraction
    shards : empty ones, for those that this process takes
    device, amp : see `net.extract_features`
    workers : processes that read
    batch_size : pictures of a batch; the shards are planned by it
    shown : whether there is a progress bar

    Raises
    ------
    UserError : the memory of the GPU or the disk is too small
    """
    rows = [row for shard in shards for row in shard.planned]
    if not rows:
        return 0.0
    bar = progress_bar(len(rows), "extracting", "picture", shown=shown)
    with one_thread() as threads, bar, explain_out_of_memory("EXTRACT_BATCH_SIZE"):
        loader = make_loader(Subset(dataset, rows), workers, device, batch_size=batch_size)
        waiting = iter(loader)  # its processes read while the network is compiled
        fast = faster(net, len(dataset), batch_size, dataset.crop_size, device, amp)
        start = time.perf_counter()
        at_once = threads if device.type == "cpu" else 1
        batches = features_in_order(fast, _batches(waiting), device, amp, at_once)
        _fill(shards, batches, dataset, bar)
        return time.perf_counter() - start


def _batches(loader: Iterator) -> Iterator[tuple[Tensor, tuple[Sequence[str], np.ndarray]]]:
    """Batches of a `Readable`: pictures, and beside them the reasons and what they are made of."""
    for images, reasons, made_of in loader:
        yield images, (reasons, made_of.numpy())


def _fill(
    shards: Sequence[Shard],
    batches: Iterator[tuple[list[np.ndarray], tuple[Sequence[str], np.ndarray]]],
    dataset: Readable,
    bar: tqdm,
) -> None:
    """Write the features of the planned pictures to their shards, and save these now and then."""
    waiting, saved = list(shards), time.perf_counter()
    for features, (reasons, made_of) in batches:
        shard = waiting[0]
        place = shard.rows.stop
        paths = dataset.dataset.pictures.paths[place : place + len(reasons)]
        sound = np.all([np.isfinite(feature).all(axis=1) for feature in features], axis=0)
        errors = [
            reason or ("" if ok else f"{path!a}: {INFINITE}")
            for reason, ok, path in zip(reasons, sound, paths, strict=True)
        ]
        if CONTENT in shard.columns:
            features += np.split(made_of, [STAMP_BYTES], axis=1)
        shard.append(features, errors)
        bar.update(len(errors))
        full = shard.done == len(shard.planned)
        if full or time.perf_counter() - saved > SAVE_SECONDS:
            shard.save()
            saved = time.perf_counter()
        if full:
            waiting.pop(0)


def load_models(
    config: Config, category_names: list[str], device: torch.device
) -> list[LoadedModel]:
    """Load the models of the settings.

    Raises
    ------
    UserError : one is missing, damaged or of another network, or was replaced meanwhile
    """
    base = config.DATASET_BASE
    default = Architecture(
        config.BACKBONE, config.INTER_DIM, category_names, config.IMG_SIZE, config.CROP_SIZE
    )
    names = config.MODELS or (config.DUMPED_MODEL,)
    files = [find_model(base, name) for name in names]
    stamps = [file_stamp(file) for file in files]
    models: list[LoadedModel] = []
    for name, file in zip(names, files, strict=True):
        net, architecture = load_net(file, default)
        colors = [] if models else color_features(settings_of(config, device))
        features = to_device(FeatureNet(net, colors, config.FLIP, plain=True).eval(), device)
        record = ModelRecord(
            file=name, sha256=sha256_of(file), network=architecture, held_out=read_split(file)
        )
        models.append(LoadedModel(file, features, architecture, record))
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


def columns_of(number: int, model: LoadedModel, settings: dict[str, Any]) -> Columns:
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
