"""Pictures -> the features of all models, in chunks; each picture is decoded once."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from config import Config
from data import DETAIL, TRANSFORM, PictureDataset, Transform, eval_transform, make_loader
from features.database import COLOR, CONTENT, PALETTE, deep_file, unit_rows
from features.incremental import (
    DIGEST,
    Chunk,
    digest_of,
    missing_rows,
    read_chunks,
    save_chunk,
    split_rows,
)
from features.inference import CPU_BATCH, features_in_order, fold_batch_norms
from features.metadata import ModelRecord
from net import Architecture, FeatureNet, extract_features, find_model, load_net, read_split
from network.color import color_features
from network.device import amp_type, explain_out_of_memory, query_type, to_device
from network.distributed import Distributed, per_process
from pictures.decode import PictureError
from pictures.table import Pictures
from utils import UserError, evenly_spaced, file_stamp, progress_bar, sha256_of

SAVE_SECONDS, MAX_CHUNK = 10.0, 16_384  # of work that a kill may cost; pictures
INFINITE = "the network's features of it are infinite or NaN; try --amp off, or another model"
MAX_COSINE_CHANGE = 1e-3  # of an embedding by 16 bits


@dataclass(frozen=True)
class LoadedModel:
    """A model that makes features, what all_feat.json records of it, and its matrices' names."""

    net: FeatureNet
    record: ModelRecord
    matrices: Sequence[str]


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
    def matrices(self) -> list[str]:
        """The matrices of all models, in the order of the features, then what pictures hold."""
        return [*chain(*(model.matrices for model in self.models)), CONTENT]


class Readable(Dataset[tuple[list[Tensor], str, bytes]]):
    """A dataset whose unreadable pictures become zeros and a reason instead of an error.

    Parameters
    ----------
    dataset : whose transform gives a picture for each model
    sides : of these, in px
    """

    def __init__(self, dataset: PictureDataset, *sides: int) -> None:
        self.dataset = dataset
        self.sides = sides

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[list[Tensor], str, bytes]:
        """A picture for each model; why it cannot be read, or ""; see `incremental.digest_of`."""
        source = self.dataset
        # Hashed first: a file that is replaced meanwhile is then extracted again by an update.
        path, box = source.pictures.paths[row], source.pictures.boxes[row]
        digest = digest_of(source.base, path, box, source.crop) or bytes(DIGEST)
        try:
            images: Any = source[row][0]
            return images, "", digest
        except PictureError as error:
            images = [torch.zeros(side, side, 3, dtype=torch.uint8) for side in self.sides]
            return images, str(error), digest


def _transformed(picture: Image.Image, transforms: Sequence[Transform]) -> Any:
    return [transform(picture) for transform in transforms]


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


def key_of(facts: Any, paths: Sequence[str], known: np.ndarray) -> str:
    """A hash of some facts, of the paths of pictures, and of what is known of them."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update("\n".join(paths).encode(errors="surrogateescape"))
    digest.update(known.tobytes())
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
        net = load_net(file, default)
        net.backbone = fold_batch_norms(net.backbone)
        colors = [] if number else color_features(settings_of(config, device))
        record = ModelRecord(
            file=name, sha256=sha256_of(file), network=net.architecture, held_out=read_split(file)
        )
        features = to_device(FeatureNet(net, colors, config.FLIP).eval(), device)
        matrices = [deep_file(number), COLOR, PALETTE][: 1 + len(colors)]
        models.append(LoadedModel(features, record, matrices))
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
    images = zip(*(dataset[row][0] for row in rows), strict=True)
    changes = []
    for model, own in zip(models, map(torch.stack, images), strict=True):
        with explain_out_of_memory():
            exact, rounded = (
                unit_rows(extract_features(model.net, own, device, dtype)[0])
                for dtype in (None, kind)
            )
        changes.append(float((1 - (exact * rounded).sum(1)).max()))
    return max(changes) <= MAX_COSINE_CHANGE


def extract(
    job: Job, dataset: Readable, stamps: np.ndarray, dtype: torch.dtype | None
) -> list[Chunk]:
    """Extract what earlier runs have not: this process its part of the pictures.

    Parameters
    ----------
    job : by what
    dataset : all pictures of the extraction
    stamps : of these, see `incremental.find_changes`
    dtype : 16-bit type of the networks; None: float32

    Returns
    -------
    The features; to the main process only.

    Raises
    ------
    UserError : the memory of the GPU or the disk is too small
    """
    distributed, total = job.distributed, len(dataset)
    records = [model.record for model in job.models]
    facts = [[record.model_dump() for record in records], job.settings]
    key = distributed.broadcast(key_of(facts, dataset.dataset.pictures.paths, stamps))
    folder = job.base / f".extract_{key[:16]}"
    if distributed.is_main:
        for other in set(job.base.glob(".extract_*")) - {folder}:
            shutil.rmtree(other)
    saved = read_chunks(folder) if distributed.is_main else []
    rest = distributed.broadcast(missing_rows(saved, total))
    if len(rest):
        resumed = f", going on from {total - len(rest):,}" if len(rest) < total else ""
        names = ", ".join(record.file for record in records)
        print(f"{total:,} pictures, {names} on {job.device}{resumed}", flush=True)
        start = time.perf_counter()
        _extract_by(job, dataset, rest, folder, dtype)
        distributed.barrier()
        seconds = time.perf_counter() - start
        print(f"{seconds:.1f} s, {len(rest) / seconds:.1f} pictures/s")
    return read_chunks(folder) if distributed.is_main else []


def _extract_by(
    job: Job,
    dataset: Readable,
    rest: np.ndarray,
    folder: Path,
    dtype: torch.dtype | None,
) -> None:
    """Extract the part of this process of some rows of a dataset to chunks."""
    device, size = job.device, job.settings["EXTRACT_BATCH_SIZE"]
    size = min(size, CPU_BATCH) if device.type == "cpu" else size
    rows = split_rows(rest, job.distributed.world_size, size)[job.distributed.rank]
    own, workers = Subset(dataset, rows.tolist()), per_process(job.workers)
    bar = progress_bar(len(rows), "extracting", "picture", shown=job.distributed.is_main)
    with bar, explain_out_of_memory("EXTRACT_BATCH_SIZE"):
        batches = make_loader(own, workers, device, batch_size=size)
        nets = [model.net for model in job.models]
        saved, done, first = time.perf_counter(), 0, 0
        unsaved: list[Any] = []
        for features, rest_of_batch in features_in_order(nets, batches, device, dtype):
            unsaved.append([*features, *rest_of_batch])
            done += len(features[0])
            bar.update(len(features[0]))
            late = time.perf_counter() - saved > SAVE_SECONDS
            if late or done == len(rows) or done - first >= MAX_CHUNK:
                paths = [dataset.dataset.pictures.paths[row] for row in rows[first:done]]
                _save(folder, job.matrices, rows[first:done], unsaved, paths)
                first, unsaved, saved = done, [], time.perf_counter()


def _save(
    folder: Path,
    names: Sequence[str],
    rows: np.ndarray,
    batches: Sequence[Sequence[Any]],
    paths: Sequence[str],
) -> None:
    """Save batches as a chunk: features, why pictures have none, and what these hold."""
    *features, reasons, digests = zip(*batches, strict=True)
    content = np.frombuffer(b"".join(chain(*digests)), np.uint8).reshape(-1, DIGEST)
    matrices = dict(zip(names, [*map(np.concatenate, features), content], strict=True))
    sound = np.all([np.isfinite(matrix).all(axis=1) for matrix in matrices.values()], axis=0)
    errors = [
        reason or ("" if ok else f"{path!a}: {INFINITE}")
        for path, reason, ok in zip(paths, chain(*reasons), sound, strict=True)
    ]
    save_chunk(folder, rows, errors, matrices)
