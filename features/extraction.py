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
from features.database import COLOR, CONTENT, PALETTE, deep_file, plain_file, unit_rows
from features.incremental import DIGEST, STAMP_BYTES, fingerprint, open_file
from features.inference import CPU_BATCH, faster, features_in_order, one_thread
from features.metadata import ModelRecord
from features.shards import Columns, Shard
from net import Architecture, FeatureNet, extract_features, find_model, load_net, read_split
from network.color import PALETTE_BINS, color_features
from network.device import amp_type, explain_out_of_memory, query_type, to_device
from pictures.decode import PictureError
from pictures.folder import picture_file
from pictures.table import Pictures
from utils import UserError, evenly_spaced, progress_bar, sha256_of

SAVE_SECONDS = 10.0  # of work that a kill may cost
INFINITE = "the network's features of it are infinite or NaN; try --amp off, or another model"
STAMPS = "stamps"
MAX_COSINE_CHANGE = 1e-3  # of an embedding by 16 bits


@dataclass(frozen=True)
class LoadedModel:
    """A model that makes features, and what all_feat.json records of it."""

    file: Path
    net: FeatureNet
    record: ModelRecord


class Readable(Dataset[tuple[Tensor, str, Tensor]]):
    """A dataset whose unreadable pictures become zeros and a reason instead of an error.

    With each picture, of `crop_size` x `crop_size` px, comes what it is made of, see
    `incremental.look`: its bytes are hashed and decoded from one open file.
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
            try:
                with open_file(picture_file(source.base, source.pictures.paths[row])) as content:
                    made_of = fingerprint(content, source.pictures.boxes[row], source.crop)
                    image = source.transform(source.picture(row, content))
            except OSError:  # reading it by its path says what is wrong
                image = source[row][0]
            reason = ""
        except PictureError as error:
            image = torch.zeros(self.crop_size, self.crop_size, 3, dtype=torch.uint8)
            reason = str(error)
        return image, reason, torch.from_numpy(made_of)


def dataset_of(base: Path, pictures: Pictures, crop: bool, model: LoadedModel) -> Readable:
    """The pictures as a model takes them."""
    size, side = model.record.network.img_size, model.record.network.crop_size
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
    pairs = zip(models, datasets, strict=True)
    if kind and amp == "auto" and not all(_keeps_embeddings(*pair, device, kind) for pair in pairs):
        print("float32, as 16 bits would change these embeddings by more than rounding")
        kind = None
    return kind, str(kind or torch.float32).removeprefix("torch.")


def _keeps_embeddings(
    model: LoadedModel, dataset: Readable, device: torch.device, kind: torch.dtype
) -> bool:
    """Whether a model gives the same embeddings of a few of the pictures in 16 bits.

    With depthwise convolutions, as in MobileNet, it often does not.
    """
    rows = evenly_spaced(len(dataset), CPU_BATCH).tolist()
    images = torch.stack([dataset[row][0] for row in rows])
    exact, rounded = (
        unit_rows(extract_features(model.net, images, device, dtype)[0]) for dtype in (None, kind)
    )
    return bool((1 - (exact * rounded).sum(1)).max() <= MAX_COSINE_CHANGE)


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
        batches = ((images, (reasons, made_of)) for images, reasons, made_of in waiting)
        results = features_in_order(fast, batches, device, amp, threads)
        paths = dataset.dataset.pictures.paths
        for shard in shards:
            _fill(shard, results, paths, bar)
        return time.perf_counter() - start


def _fill(
    shard: Shard,
    results: Iterator[tuple[list[np.ndarray], tuple[Sequence[str], Tensor]]],
    paths: Sequence[str],
    bar: tqdm,
) -> None:
    """Write the features of the planned pictures to their shard, and save it now and then."""
    saved = time.perf_counter()
    while shard.done < len(shard.planned):
        features, (reasons, made_of) = next(results)
        place = shard.rows.stop
        names = paths[place : place + len(reasons)]
        sound = np.all([np.isfinite(feature).all(axis=1) for feature in features], axis=0)
        errors = [
            reason or ("" if ok else f"{path!a}: {INFINITE}")
            for reason, ok, path in zip(reasons, sound, names, strict=True)
        ]
        if CONTENT in shard.columns:
            features += np.split(made_of.numpy(), [STAMP_BYTES], axis=1)
        shard.append(features, errors)
        bar.update(len(errors))
        if time.perf_counter() - saved > SAVE_SECONDS:
            shard.save()
            saved = time.perf_counter()
    shard.save()


def load_models(
    config: Config, category_names: list[str], device: torch.device
) -> list[LoadedModel]:
    """Load the models of the settings.

    Raises
    ------
    UserError : one is missing, damaged or of another network, or was replaced meanwhile
    """
    base = config.DATASET_BASE
    sizes = config.IMG_SIZE, config.CROP_SIZE
    default = Architecture(config.BACKBONE, config.INTER_DIM, category_names, *sizes)
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
        models.append(LoadedModel(file, features, record))
    if stamps != [file_stamp(file) for file in files]:
        raise UserError(f"{', '.join(names)}: replaced while it was read; run this again")
    return models


def settings_of(config: Config, device: torch.device) -> dict[str, Any]:
    """The settings that the features depend on, but for AMP."""
    names = ("COLOR_TOP_N", "PALETTE", "FLIP", "CROP_TO_BBOX", "EXTRACT_BATCH_SIZE")
    return {name: getattr(config, name) for name in names} | {"DEVICE": device.type}


def columns_of(number: int, model: LoadedModel, settings: dict[str, Any]) -> Columns:
    """The matrices that a model makes, in the order of `FeatureNet`."""
    dim = model.net.net.fc2.in_features
    widths = {deep_file(number): dim}
    if not number:
        widths |= {COLOR: 3 * settings["COLOR_TOP_N"]}
        widths |= {PALETTE: PALETTE_BINS**3} if settings["PALETTE"] else {}
    widths |= {plain_file(number): dim} if settings["FLIP"] else {}
    made_of = {} if number else {STAMPS: (STAMP_BYTES, "|u1"), CONTENT: (DIGEST, "|u1")}
    return {name: (width, "<f4") for name, width in widths.items()} | made_of
