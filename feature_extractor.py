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
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from config import DISTANCE, Config
from features.database import DEEP, FeatureDatabase, open_database
from features.extraction import (
    Job,
    choose_arithmetic,
    dataset_of,
    extract,
    key_of,
    load_models,
    settings_of,
)
from features.incremental import Chunk, database_to_update, find_changes, is_same, save_stamps
from features.metadata import FeatureSettings
from features.watch import changes_below
from features.writer import Stacked, finish_writing, write_database
from network.distributed import Distributed, init_distributed
from pictures.collection import read_collection
from pictures.folder import allow_roots
from pictures.table import Pictures
from search import clustering
from search.quantised import open_quantised
from search.signals import signals_of
from utils import UserError, locked, parse_args, run_script

USES = (
    "DATASET_BASE", "CATEGORIES", "ALLOWED_ROOTS", "TRUNCATED", "CROP_TO_BBOX",
    "ENABLE_INSHOP_DATASET", "VAL_SHARE", "IMG_SIZE", "CROP_SIZE", "BACKBONE", "INTER_DIM",
    "RECIPE", "DUMPED_MODEL", "MODELS", "FLIP", "EXTRACT_BATCH_SIZE", "COLOR_TOP_N", "PALETTE",
    *DISTANCE, "DEVICE", "AMP", "NUM_WORKERS",
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
                status = run(config, update, distributed, device)
            except UserError as error:  # a list that is just being written, say
                if not args.watch:
                    raise
                print(f"{error}; waiting for the next change", file=sys.stderr)
    return status


def run(config: Config, update: bool, distributed: Distributed, device: torch.device) -> int:
    """Extract all pictures, or those only that have changed; returns the exit status.

    Raises
    ------
    UserError : pictures, models or the disk do not allow it, or another process extracts
    """
    base, distance = config.DATASET_BASE, config.distance
    inshop = config.ENABLE_INSHOP_DATASET
    pictures = read_collection(base, config.CATEGORIES, inshop, config.VAL_SHARE)
    models = load_models(config, pictures.category_names, device)
    records, settings = [model.record for model in models], settings_of(config, device)
    key = key_of([record.sha256 for record in records], pictures.paths, pictures.boxes)
    if key != distributed.broadcast(key):
        rank = distributed.rank
        raise UserError(f"{base}: rank {rank} finds other pictures or models there")
    with locked(base) if distributed.is_main else nullcontext():
        old = None
        if distributed.is_main:
            finish_writing(base)
            old = database_to_update(base, records, settings) if update else None
        places, stamps = find_changes(base, old, pictures, config.CROP_TO_BBOX)
        rows = distributed.broadcast(np.flatnonzero(places < 0))
        if old:
            print(f"{len(pictures):,} pictures, {len(rows):,} of them new or changed")
            clustering.follow(distance, old)  # the last update may have been killed before
        dataset = dataset_of(base, pictures.select(rows), settings, models)
        arithmetic: tuple[torch.dtype | None, str] = None, ""
        if distributed.is_main:
            stored = old.metadata.settings.AMP if old else ""
            arithmetic = choose_arithmetic(config.AMP, stored, models, dataset, device)
        dtype, settings["AMP"] = distributed.broadcast(arithmetic)
        job = Job(base, models, settings, config.NUM_WORKERS, distributed, device)
        chunks = extract(job, dataset, stamps[rows], dtype)
        if not distributed.is_main:
            return 0
        errors = dict(sorted(item for chunk in chunks for item in chunk.errors.items()))
        count = len(old.categories) if old else 0
        places[rows] = count + np.arange(len(rows))
        places[rows[list(errors)]] = -1
        if not (places >= 0).any():
            _remove_chunks(base)
            raise UserError(f"{base}: no picture can be read: {next(iter(errors.values()))}")
        database = _write(job, pictures, places, chunks, old)
        save_stamps(database, stamps[places >= 0])
        _remove_chunks(base)
        # So that no query has to make them.
        open_quantised(database, signals_of(database, **{**distance, "model_weights": ()}))
        clustering.follow(distance, database)
    _report(database, count, places, [*errors.values()])
    return 1 if errors else 0


def _write(
    job: Job,
    pictures: Pictures,
    places: np.ndarray,
    chunks: Sequence[Chunk],
    old: FeatureDatabase | None,
) -> FeatureDatabase:
    """Write the database, if it changes; `places` as for `write_database`."""
    base, count = job.base, len(old.categories) if old else 0
    if not (old and is_same(old, pictures, places)):
        matrices = {}
        for name in job.matrices:
            parts = [(base / name, np.arange(count))] if old else []
            parts += [(chunk.file, count + chunk.rows) for chunk in chunks]
            matrices[name] = Stacked(name, parts)
        weight, bias = (tensor.cpu().numpy() for tensor in job.models[0].net.net.classifier())
        records = [model.record for model in job.models]
        settings = FeatureSettings(**job.settings)
        write_database(base, pictures, matrices, places, (weight, bias), records, settings, old)
    return open_database(base)


def _remove_chunks(base: Path) -> None:
    for folder in base.glob(".extract_*"):
        shutil.rmtree(folder)


def _report(
    database: FeatureDatabase, count: int, places: np.ndarray, errors: Sequence[str]
) -> None:
    """Print what was done with the `count` old pictures; what was skipped to standard error."""
    print(f"{len(database.categories):,} pictures in {database.base / DEEP}")
    if count:
        kept = int(((places >= 0) & (places < count)).sum())
        dropped = len(np.setdiff1d(np.arange(count), places))
        print(f"{kept:,} kept, {len(places) - kept:,} extracted, {dropped:,} dropped")
    if errors:
        print(f"{len(errors):,} pictures were skipped:", file=sys.stderr)
        print(*(f"  {reason}" for reason in errors), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
