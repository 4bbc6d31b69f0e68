"""Send every picture of the data set through the network: the feature database.

Writes all_feat.npy (all_feat_2.npy ... of further models), all_color_feat.npy,
all_palette_feat.npy, all_category.npy, all_item.npy, all_content.npy, all_classifier.npz,
all_feat.list and all_feat.json below DATASET_BASE. A run that was stopped goes on where it was;
exit status 1 says that pictures were skipped.

    python feature_extractor.py --update                      what is new, changed or gone only
    python feature_extractor.py --watch                       again whenever something changes
    torchrun --nproc-per-node 4 feature_extractor.py          on several GPUs or machines
"""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import DISTANCE, MILVUS
from features import extraction, incremental, shards
from features.database import DEEP, FeatureDatabase, open_database
from features.extraction import STAMPS, LoadedModel, Readable
from features.incremental import Changes
from features.inference import CPU_BATCH
from features.lock import locked
from features.metadata import FeatureSettings
from features.shards import Columns, Shard
from features.watch import changes_below
from features.writer import Stacked, finish_writing, write_database
from network.distributed import Distributed, init_distributed, per_process
from pictures.collection import read_collection
from pictures.folder import allow_roots
from pictures.table import Pictures
from search import clustering
from search.milvus_client import Place
from search.milvus_push import push_update
from search.quantised import open_quantised
from search.signals import signals_of
from utils import UserError, parse_args, run_script

USES = (
    "DATASET_BASE", "CATEGORIES", "ALLOWED_ROOTS", "CROP_TO_BBOX", "ENABLE_INSHOP_DATASET",
    "VAL_SHARE", "IMG_SIZE", "CROP_SIZE", "BACKBONE", "INTER_DIM", "RECIPE", "DUMPED_MODEL",
    "MODELS", "FLIP",
    "EXTRACT_BATCH_SIZE", "COLOR_TOP_N", "PALETTE", *DISTANCE, "TARGET_RECALL", *MILVUS, "DEVICE",
    "AMP", "NUM_WORKERS",
)  # fmt: skip


def _arguments(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    update = "extract what is new or changed only, drop what is gone, and keep the rest"
    how.add_argument("--update", action="store_true", help=update)
    watch = "update now, and again whenever pictures come, change or go, until Ctrl-C"
    how.add_argument("--watch", action="store_true", help=watch)


def main(argv: Sequence[str] | None = None) -> int:
    config, args = parse_args(argv, __doc__ or "", USES, _arguments)
    base, update, status = config.DATASET_BASE, args.update or args.watch, 0
    allow_roots(base, config.ALLOWED_ROOTS)
    with init_distributed(config.DEVICE) as (distributed, device):
        if args.watch and distributed.world_size > 1:
            raise UserError("--watch takes one process; --update may have several")
        for _ in changes_below(base) if args.watch else [None]:
            try:
                pictures = read_collection(
                    base, config.CATEGORIES, config.ENABLE_INSHOP_DATASET, config.VAL_SHARE
                )
                models = extraction.load_models(config, pictures.category_names, device)
                settings = extraction.settings_of(config, device)
                job = Job(base, pictures, models, settings, config.NUM_WORKERS, distributed, device)
                status = run(job, config.AMP, config.distance, update)
                if update and distributed.is_main:
                    milvus = Place(**config.milvus)
                    push_update(open_database(base), config.distance, milvus, config.TARGET_RECALL)
            except UserError as error:  # a list that is just being written, say
                if not args.watch:
                    raise
                print(f"{error}; waiting for the next change", file=sys.stderr)
    return status


@dataclass(frozen=True)
class Job:
    """What is extracted, and by what.

    Attributes
    ----------
    base : DATASET_BASE
    pictures, models : what is extracted, and by what
    settings : see `FeatureSettings`
    workers : processes of this machine that read pictures
    distributed : the processes that extract together; the main one writes the database
    device : of this process
    """

    base: Path
    pictures: Pictures
    models: Sequence[LoadedModel]
    settings: dict[str, Any]
    workers: int
    distributed: Distributed
    device: torch.device

    def require_same(self, value: object) -> None:
        """Raise a UserError where a process has another value than the main one."""
        if value != self.distributed.broadcast(value):
            rank = self.distributed.rank
            raise UserError(f"{self.base}: rank {rank} finds other pictures or models there")


@dataclass(frozen=True)
class ModelFeatures:
    """The features that one model makes of the pictures of an extraction.

    Attributes
    ----------
    columns : its matrices
    shards : which hold them, in the order of the pictures; of the main process only
    count : pictures that this run has extracted
    seconds : that it took
    """

    columns: Columns
    shards: Sequence[Shard]
    count: int
    seconds: float


def run(job: Job, amp: str, distance: Mapping[str, Any], update: bool) -> int:
    """Extract all pictures, or those only that have changed; returns the exit status.

    Parameters
    ----------
    job : its settings get the arithmetic, AMP
    amp : the setting AMP
    distance : the arguments of `signals_of`
    update : keep the features of what has not changed

    Raises
    ------
    UserError : pictures, models or the disk do not allow it, or another process extracts
    """
    base, pictures, models, settings = job.base, job.pictures, job.models, job.settings
    is_main, crop = job.distributed.is_main, settings["CROP_TO_BBOX"]
    job.require_same(len(pictures))
    with locked(base) if is_main else nullcontext():
        old = None
        if update and is_main:
            finish_writing(base)
            records = [model.record for model in models]
            old = incremental.database_to_update(base, records, settings, amp)
        changes = incremental.find_changes(old, pictures, crop)
        rows = job.distributed.broadcast(np.flatnonzero(changes.origin < 0))
        if old:
            print(f"{len(pictures):,} pictures, {len(rows):,} of them new or changed")
            clustering.follow(distance, old)  # the last update may have been killed before
        new = pictures.select(rows)
        datasets = [extraction.dataset_of(base, new, crop, model) for model in models]
        arithmetic: tuple[torch.dtype | None, str] = None, ""
        if is_main:
            stored = old.metadata.settings.AMP if old else ""
            arithmetic = extraction.choose_arithmetic(amp, stored, models, datasets, job.device)
        kind, settings["AMP"] = job.distributed.broadcast(arithmetic)
        features = [_extract(job, number, each, kind) for number, each in enumerate(datasets)]
        if not is_main:
            return 0
        database, errors = _write(job, changes, rows, features, old)
        # So that no query has to make them.
        open_quantised(database, signals_of(database, **{**distance, "model_weights": ()}))
        clustering.follow(distance, database)
    _report(database, old, changes, features, errors)
    return 1 if errors else 0


def _extract(job: Job, number: int, dataset: Readable, kind: torch.dtype | None) -> ModelFeatures:
    """Extract by a model what earlier runs have not: this process its part of the dataset."""
    model, distributed, settings = job.models[number], job.distributed, job.settings
    columns = extraction.columns_of(number, model, settings)
    facts = {**settings, **model.record.model_dump()}
    key = extraction.key_of(facts, dataset.dataset.pictures)
    job.require_same(key)
    total, folder = len(dataset), job.base / f".extract_{number + 1}"
    saved = shards.read_shards(folder, key, columns) if distributed.is_main else []
    rest = distributed.broadcast(shards.missing_rows(saved, total))
    count = sum(map(len, rest))
    if total:
        resumed = f", going on from {total - count:,}" if count < total else ""
        print(f"{total:,} pictures, {model.file} on {job.device}{resumed}", flush=True)
    size = settings["EXTRACT_BATCH_SIZE"]
    size = min(size, CPU_BATCH) if job.device.type == "cpu" else size
    own = shards.split_rows(rest, distributed.world_size, size, total)[distributed.rank]
    planned = [Shard(folder / shards.shard_name(rows.start), key, rows, columns) for rows in own]
    workers = per_process(job.workers)
    seconds = extraction.extract(
        model.net, dataset, planned, job.device, kind, workers, size, distributed.is_main
    )
    distributed.barrier()
    whole = shards.read_shards(folder, key, columns) if distributed.is_main else []
    return ModelFeatures(columns, whole, count, seconds)


def _write(
    job: Job,
    changes: Changes,
    rows: np.ndarray,
    features: Sequence[ModelFeatures],
    old: FeatureDatabase | None,
) -> tuple[FeatureDatabase, dict[int, str]]:
    """Write the database if it changes; `features` are those of the pictures in `rows`.

    Returns
    -------
    The new database, and why pictures could not be read, by their numbers in the extraction.
    """
    # What one model could not read is missing in all matrices.
    errors = {row: why for each in features for s in each.shards for row, why in s.errors.items()}
    places = changes.origin.copy()
    places[rows] = np.arange(len(rows)) + (len(old.categories) if old else 0)
    places[rows[sorted(errors)]] = -1
    readable = bool((places >= 0).any())
    if readable:
        if not (old and incremental.is_same(old, job.pictures, places)):
            weight, bias = (tensor.cpu().numpy() for tensor in job.models[0].net.net.classifier())
            write_database(
                job.base,
                job.pictures,
                _matrices(job.base if old else None, features),
                places,
                (weight, bias),
                [model.record for model in job.models],
                FeatureSettings(**job.settings),
                old,
            )
        if len(rows):
            stamps = np.concatenate([shard.matrix(STAMPS) for shard in features[0].shards])
            changes.stamps[rows] = stamps.view(np.int64)
        database = open_database(job.base)
        incremental.save_stamps(database, changes.stamps[places >= 0])
    for folder in job.base.glob(".extract_*"):  # also of models that are no longer extracted
        shutil.rmtree(folder)
    if not readable:
        raise UserError(f"{job.base}: no picture can be read: {errors[min(errors)]}")
    return database, errors


def _matrices(old: Path | None, features: Sequence[ModelFeatures]) -> dict[str, Stacked]:
    """The matrices of a new database: the rows of the old one, then those of the shards."""
    matrices = {}
    for each in features:
        for name in (name for name in each.columns if name != STAMPS):
            before = [np.load(old / name, mmap_mode="r")] if old else []
            matrices[name] = Stacked([*before, *(shard.matrix(name) for shard in each.shards)])
    return matrices


def _report(
    database: FeatureDatabase,
    old: FeatureDatabase | None,
    changes: Changes,
    features: Sequence[ModelFeatures],
    errors: dict[int, str],
) -> None:
    """Print what was done; what was skipped goes to standard error."""
    seconds = sum(each.seconds for each in features)
    speed = sum(each.count for each in features) / seconds if seconds else 0.0
    where = f"{len(database.categories):,} pictures in {database.base / DEEP}"
    print(f"{where}: {seconds:.1f} s, {speed:.1f} pictures/s")
    if old:
        kept = int((changes.origin >= 0).sum())
        dropped = len(np.setdiff1d(np.arange(len(old.categories)), changes.origin))
        extracted = len(changes.origin) - kept
        print(f"{kept:,} kept, {extracted:,} extracted, {dropped:,} dropped")
    if errors:
        print(f"{len(errors):,} pictures were skipped:", file=sys.stderr)
    for _, reason in sorted(errors.items()):
        print(f"  {reason}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
