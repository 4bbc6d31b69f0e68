"""Pictures -> the features of all models, in chunks; each picture is decoded once."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from config import Config
from data import DETAIL, TRANSFORM, PictureDataset, Transform, eval_transform, make_loader
from features.chunks import Chunk, missing_rows, read_chunks, save_chunk, split_rows
from features.database import COLOR, CONTENT, PALETTE, deep_file, unit_rows
from features.incremental import DIGEST, STAMP_BYTES, fingerprint, open_file
from features.inference import CPU_BATCH, faster, features_in_order, one_thread
from features.metadata import ModelRecord
from net import (
    Architecture,
    FeatureNet,
    Network,
    extract_features,
    find_model,
    load_net,
    read_split,
)
from network.color import PALETTE_BINS, color_features
from network.device import amp_type, explain_out_of_memory, query_type, to_device
from network.distributed import Distributed, per_process
from pictures.decode import PictureError
from pictures.folder import picture_file
from pictures.table import Pictures
from utils import UserError, evenly_spaced, file_stamp, progress_bar, sha256_of

SAVE_SECONDS, MAX_CHUNK = 10.0, 16_384  # of work that a kill may cost; pictures
INFINITE = "the network's features of it are infinite or NaN; try --amp off, or another model"
STAMPS = "stamps"  # a matrix that is not one of the database
MAX_COSINE_CHANGE = 1e-3  # of an embedding by 16 bits

OF_FILES = {STAMPS: (STAMP_BYTES, "|u1"), CONTENT: (DIGEST, "|u1")}
Columns = Mapping[str, tuple[int, str]]  # width and dtype of each matrix, by its file's name


@dataclass(frozen=True)
class LoadedModel:
    """A model that makes features, what all_feat.json records of it, and the matrices it makes."""

    net: FeatureNet
    record: ModelRecord
    columns: Columns


@dataclass(frozen=True)
class Job:
    """By what is extracted.

    Attributes
    ----------
    base : DATASET_BASE
    models : one or more
    settings : see `FeatureSettings`
    workers : processes of this machine that read pictures
    distributed : the processes that extract together; the main one writes the database
    device : of this process
    """

    base: Path
    models: Sequence[LoadedModel]
    settings: dict[str, Any]
    workers: int
    distributed: Distributed
    device: torch.device

    @property
    def columns(self) -> Columns:
        """The matrices of all models, in the order of the features."""
        return {name: form for model in self.models for name, form in model.columns.items()}


@dataclass(frozen=True)
class Extracted:
    """What the models make of the pictures of an extraction.

    Attributes
    ----------
    chunks : the features; of the main process only
    count, seconds : pictures that this run has extracted, and the time without compilation
    """

    chunks: Sequence[Chunk]
    count: int
    seconds: float


class Readable(Dataset[tuple[Tensor, str, Tensor]]):
    """A dataset whose unreadable pictures become zeros and a reason instead of an error.

    With each picture comes what it is made of, see `incremental.look`: its bytes are hashed and
    decoded from one open file.

    Parameters
    ----------
    dataset : whose transform gives what `packed` gives
    sides : of the picture of each model, in px
    """

    def __init__(self, dataset: PictureDataset, *sides: int) -> None:
        self.dataset = dataset
        self.sides = sides

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[Tensor, str, Tensor]:
        """Picture, see `packed`; why it cannot be read, or ""; 56 + 32 bytes of `look`."""
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
            image = packed([torch.zeros(s, s, 3, dtype=torch.uint8) for s in self.sides])
            reason = str(error)
        return image, reason, torch.from_numpy(made_of)


def packed(images: Sequence[Tensor]) -> Tensor:
    """A picture as each model takes it, H x W x 3, uint8: of several models, all in one vector."""
    return images[0] if len(images) == 1 else torch.cat([image.flatten() for image in images])


def unpacked(images: Tensor, sides: Sequence[int]) -> list[Tensor]:
    """A batch of `packed` pictures -> for each model N x H x W x 3."""
    if images.dim() > 2:
        return [images]
    parts = images.split([3 * side**2 for side in sides], 1)
    shaped = zip(parts, sides, strict=True)
    return [part.unflatten(1, (side, side, 3)).contiguous() for part, side in shaped]


def _transformed(picture: Image.Image, transforms: Sequence[Transform]) -> Tensor:
    return packed([transform(picture) for transform in transforms])


def dataset_of(
    base: Path, pictures: Pictures, settings: Mapping[str, Any], models: Sequence[LoadedModel]
) -> Readable:
    """The pictures as the models take them; `settings` are those of `Job`."""
    networks = [model.record.network for model in models]
    crop, truncated = settings["CROP_TO_BBOX"], settings["TRUNCATED"] == "accept"
    seen = partial(_transformed, transforms=[eval_transform(**n.transform) for n in networks])
    detail = DETAIL * max(network.img_size for network in networks)
    dataset = PictureDataset(base, pictures, seen, crop, detail, truncated)
    return Readable(dataset, *(network.crop_size for network in networks))


def key_of(facts: Any, pictures: Pictures) -> str:
    """A hash of some facts and of the paths and boxes of pictures."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update("\n".join(pictures.paths).encode(errors="surrogateescape"))
    digest.update(pictures.boxes.tobytes())
    return digest.hexdigest()


def load_models(
    config: Config, category_names: list[str], device: torch.device
) -> list[LoadedModel]:
    """Load the models of the settings.

    Raises
    ------
    UserError : one is missing, damaged or of another network, or was replaced meanwhile
    """
    sizes = config.IMG_SIZE, config.CROP_SIZE
    default = Architecture(config.BACKBONE, config.INTER_DIM, category_names, *sizes)
    names = config.MODELS or (config.DUMPED_MODEL,)
    files = [find_model(config.DATASET_BASE, name) for name in names]
    stamps = [file_stamp(file) for file in files]
    models: list[LoadedModel] = []
    for number, (name, file) in enumerate(zip(names, files, strict=True)):
        net, architecture = load_net(file, default)
        columns, colors = {deep_file(number): (net.dim, "<f4")}, []
        if not number:
            colors = color_features(settings_of(config, device))
            widths = {COLOR: 3 * config.COLOR_TOP_N, PALETTE: PALETTE_BINS**3}
            columns |= {key: (widths[key], "<f4") for key in [COLOR, PALETTE][: len(colors)]}
        record = ModelRecord(
            file=name, sha256=sha256_of(file), network=architecture, held_out=read_split(file)
        )
        features = to_device(FeatureNet(net, colors, config.FLIP).eval(), device)
        models.append(LoadedModel(features, record, columns))
    if stamps != [file_stamp(file) for file in files]:
        raise UserError(f"{', '.join(names)}: replaced while it was read; run this again")
    return models


def settings_of(config: Config, device: torch.device) -> dict[str, Any]:
    """The settings that the features depend on, but for AMP."""
    names = ("COLOR_TOP_N", "PALETTE", "FLIP", "CROP_TO_BBOX", "TRUNCATED", "EXTRACT_BATCH_SIZE")
    settings = {name: getattr(config, name) for name in names}
    return settings | {"DEVICE": device.type, "TRANSFORM": TRANSFORM}


def choose_arithmetic(
    amp: str,
    stored: str,
    models: Sequence[LoadedModel],
    dataset: Readable,
    device: torch.device,
) -> tuple[torch.dtype | None, str]:
    """The 16-bit type in which to extract, None for float32, and what all_feat.json records.

    Parameters
    ----------
    amp : the setting AMP; `auto` takes 16 bits where they do not change the embeddings
    stored : of the database that is updated, float32, float16 or bfloat16; "": there is none
    models, dataset : what is extracted
    device : where
    """
    if stored:  # maybe on another machine; its features differ by rounding only
        return query_type(stored, device), stored
    kind = amp_type(device, amp)
    if kind and amp == "auto" and not _keeps_embeddings(models, dataset, device, kind):
        print("float32, as 16 bits would change these embeddings by more than rounding")
        kind = None
    return kind, str(kind or torch.float32).removeprefix("torch.")


def _keeps_embeddings(
    models: Sequence[LoadedModel], dataset: Readable, device: torch.device, kind: torch.dtype
) -> bool:
    """Whether the models give the same embeddings of a few of the pictures in 16 bits.

    With depthwise convolutions, as in MobileNet, they often do not.
    """
    rows = evenly_spaced(len(dataset), CPU_BATCH).tolist()
    images = unpacked(torch.stack([dataset[row][0] for row in rows]), dataset.sides)
    changes = []
    for model, own in zip(models, images, strict=True):
        exact, rounded = (
            unit_rows(extract_features(model.net, own, device, dtype)[0]) for dtype in (None, kind)
        )
        changes.append(float((1 - (exact * rounded).sum(1)).max()))
    return max(changes) <= MAX_COSINE_CHANGE


def extract(
    job: Job, pictures: Pictures, dataset: Readable, dtype: torch.dtype | None
) -> Extracted:
    """Extract what earlier runs have not: this process its part of the pictures.

    Parameters
    ----------
    job : by what
    pictures : all of the extraction
    dataset : these, for the models
    dtype : 16-bit type of the networks; None: float32

    Raises
    ------
    UserError : the memory of the GPU or the disk is too small
    """
    distributed, total = job.distributed, len(pictures)
    records = [model.record for model in job.models]
    key = key_of([[record.model_dump() for record in records], job.settings], pictures)
    folder = job.base / f".extract_{key[:16]}"
    if distributed.is_main:
        for other in set(job.base.glob(".extract_*")) - {folder}:
            shutil.rmtree(other)
    saved = read_chunks(folder) if distributed.is_main else []
    rest = distributed.broadcast(missing_rows(saved, total))
    if total:
        resumed = f", going on from {total - len(rest):,}" if len(rest) < total else ""
        names = ", ".join(record.file for record in records)
        print(f"{total:,} pictures, {names} on {job.device}{resumed}", flush=True)
    seconds = _extract_by(job, dataset, rest, folder, dtype) if len(rest) else 0.0
    distributed.barrier()
    return Extracted(read_chunks(folder) if distributed.is_main else [], len(rest), seconds)


def _extract_by(
    job: Job,
    dataset: Readable,
    rest: np.ndarray,
    folder: Path,
    dtype: torch.dtype | None,
) -> float:
    """Extract the part of this process of some rows of a dataset to chunks; returns the seconds."""
    device, size = job.device, job.settings["EXTRACT_BATCH_SIZE"]
    size = min(size, CPU_BATCH) if device.type == "cpu" else size
    rows = split_rows(rest, job.distributed.world_size, size)[job.distributed.rank]
    own, workers = Subset(dataset, rows.tolist()), per_process(job.workers)
    paths, shown = dataset.dataset.pictures.paths, job.distributed.is_main
    bar = progress_bar(len(rows), "extracting", "picture", shown=shown)
    with one_thread() as threads, bar, explain_out_of_memory("EXTRACT_BATCH_SIZE"):
        waiting = iter(make_loader(own, workers, device, batch_size=size))
        # The loader's processes read while the network is compiled.
        nets: list[Network] = []
        for model, side in zip(job.models, dataset.sides, strict=True):
            nets.append(faster(model.net, len(dataset), size, side, device, dtype))

        def fused(images: Tensor) -> list[Tensor]:
            pairs = zip(nets, unpacked(images, dataset.sides), strict=True)
            return [feature for net, own in pairs for feature in net(own)]

        start = saved = time.perf_counter()
        batches = ((images, companions) for images, *companions in waiting)
        done, first = 0, 0
        unsaved: list[Any] = []
        results = features_in_order(fused, batches, device, dtype, threads)
        for features, (reasons, made_of) in results:
            unsaved.append((reasons, [*features, made_of.numpy()]))
            done += len(reasons)
            bar.update(len(reasons))
            late = time.perf_counter() - saved > SAVE_SECONDS
            if late or done == len(rows) or done - first >= MAX_CHUNK:
                _save(folder, job.columns, rows[first:done], unsaved, paths)
                first, unsaved, saved = done, [], time.perf_counter()
        return time.perf_counter() - start


def _save(
    folder: Path,
    columns: Columns,
    rows: np.ndarray,
    batches: Sequence[tuple[Sequence[str], Sequence[np.ndarray]]],
    paths: Sequence[str],
) -> None:
    """Save batches as a chunk: for each why pictures have no features, and the arrays."""
    *features, made_of = map(np.concatenate, zip(*(arrays for _, arrays in batches), strict=True))
    sound = np.all([np.isfinite(feature).all(axis=1) for feature in features], axis=0)
    reasons = [reason for batch, _ in batches for reason in batch]
    errors = [
        reason or ("" if ok else f"{paths[row]!a}: {INFINITE}")
        for row, reason, ok in zip(rows.tolist(), reasons, sound, strict=True)
    ]
    matrices = dict(zip(columns, features, strict=True))
    matrices[STAMPS], matrices[CONTENT] = np.split(made_of, [STAMP_BYTES], axis=1)
    save_chunk(folder, rows, errors, matrices)
