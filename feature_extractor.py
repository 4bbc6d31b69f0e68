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
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch

from config import DISTANCE, MILVUS, Config
from features.database import DEEP, FeatureDatabase, open_database
from features.extraction import (
    STAMPS,
    LoadedModel,
    choose_arithmetic,
    columns_of,
    dataset_of,
    extract,
    key_of,
    load_models,
    settings_of,
)
from features.incremental import (
    STAMP,
    Changes,
    all_new,
    database_to_update,
    find_changes,
    is_same,
    save_stamps,
)
from features.inference import CPU_BATCH
from features.lock import locked
from features.metadata import FeatureSettings
from features.shards import (
    Columns,
    Shard,
    missing_rows,
    read_shards,
    remove_shards,
    shard_name,
    split_rows,
)
from features.watch import changes_below
from features.writer import Stacked, finish_writing, write_database
from network.distributed import Distributed, init_distributed, per_process
from pictures.collection import read_collection
from pictures.table import Pictures
from search import clustering, milvus_push
from search.milvus_client import Place
from search.quantised import open_quantised
from search.signals import signals_of
from utils import UserError, parse_args, run_script

USES = (
    "DATASET_BASE", "CATEGORIES", "CROP_TO_BBOX", "ENABLE_INSHOP_DATASET", "VAL_SHARE", "IMG_SIZE",
    "CROP_SIZE", "BACKBONE", "INTER_DIM", "RECIPE", "DUMPED_MODEL", "MODELS", "FLIP",
    "EXTRACT_BATCH_SIZE", "COLOR_TOP_N", "PALETTE", *DISTANCE, "TARGET_RECALL", *MILVUS, "DEVICE",
    "AMP", "NUM_WORKERS",
)  # fmt: skip


def _arguments(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--update",
        action="store_true",
        help="extract what is new or changed only, drop what is gone, and keep the rest",
    )
    how.add_argument(
        "--watch",
        action="store_true",
        help="update now, and again whenever pictures come, change or go, until Ctrl-C",
    )


def main(argv: Sequence[str] | None = None) -> int:
    config, args = parse_args(argv, __doc__ or "", USES, _arguments)
    with init_distributed(config.DEVICE) as (distributed, device):
        if not args.watch:
            return run(config, args.update, distributed, device)
        if distributed.world_size > 1:
            raise UserError("--watch takes one process; --update may have several")
        for _ in changes_below(config.DATASET_BASE):
            try:
                run(config, True, distributed, device)
            except UserError as error:  # a list that is just being written, say
                print(f"{error}; waiting for the next change", file=sys.stderr)
    return 0


def run(config: Config, update: bool, distributed: Distributed, device: torch.device) -> int:
    """Extract all pictures, or those only that have changed; returns the exit status.

    Parameters
    ----------
    config : the settings
    update : keep the features of what has not changed
    distributed : the processes that extract together; the first one writes the database
    device : of this one

    Raises
    ------
    UserError : pictures, models or the disk do not allow it, or another process extracts
    """
    base, crop = config.DATASET_BASE, config.CROP_TO_BBOX
    pictures = read_collection(
        base, config.CATEGORIES, config.ENABLE_INSHOP_DATASET, config.VAL_SHARE
    )
    _agree(distributed, len(pictures), base)
    models = load_models(config, pictures.category_names, device)
    settings = settings_of(config, device)
    with locked(base, "an extraction") if distributed.is_main else nullcontext():
        old = None
        if update and distributed.is_main:
            finish_writing(base)
            old = database_to_update(base, [model.record for model in models], settings, config.AMP)
        changes = find_changes(old, pictures, crop) if old else all_new(len(pictures))
        job = distributed.broadcast(np.flatnonzero(changes.origin < 0))
        if old:
            print(f"{len(pictures):,} pictures, {len(job):,} of them new or changed")
            clustering.follow(config, old)  # the last update may have been killed before
        datasets = [dataset_of(base, pictures.select(job), crop, model) for model in models]
        chosen: tuple[torch.dtype | None, str] = (None, "")
        if distributed.is_main:
            before = old.metadata.settings.AMP if old else ""
            chosen = choose_arithmetic(config.AMP, before, models, datasets, device)
        amp, settings["AMP"] = distributed.broadcast(chosen)
        columns = [columns_of(number, model, settings) for number, model in enumerate(models)]

        shards, seconds, fresh = [], 0.0, 0
        for number, (model, dataset) in enumerate(zip(models, datasets, strict=True)):
            key = key_of({**settings, **model.record.model_dump()}, dataset.dataset.pictures)
            _agree(distributed, key, base)
            folder = base / f".extract_{number + 1}"
            read = partial(read_shards, folder, key, columns[number], len(job))
            gaps = distributed.broadcast(
                missing_rows(read(), len(job)) if distributed.is_main else []
            )
            left = sum(map(len, gaps))
            resumed = f", going on from {len(job) - left:,}" if left < len(job) else ""
            if len(job):
                print(f"{len(job):,} pictures, {model.file} on {device}{resumed}", flush=True)
            size = config.EXTRACT_BATCH_SIZE
            size = min(size, CPU_BATCH) if device.type == "cpu" else size
            own = split_rows(gaps, distributed.world_size, size, len(job))[distributed.rank]
            empty = [Shard(folder / shard_name(r.start), key, r, columns[number]) for r in own]
            workers = per_process(config.NUM_WORKERS)
            seconds += extract(
                model.net, dataset, empty, device, amp, workers, size, distributed.is_main
            )
            fresh += left
            distributed.barrier()
            shards.append(read() if distributed.is_main else [])
        if not distributed.is_main:
            return 0

        errors: dict[int, str] = {}  # what one model could not read is left out of all
        for shard in (shard for own in shards for shard in own):
            errors |= shard.errors
        places = changes.origin.copy()
        places[job] = np.arange(len(job)) + (len(old.categories) if old else 0)
        places[job[sorted(errors)]] = -1
        readable = bool((places >= 0).any())
        if readable:
            _write(
                pictures, places, shards, columns, models, FeatureSettings(**settings), base, old
            )
            stamps = changes.stamps
            stamps[job] = _stamps_of(shards[0], len(job))
            database = open_database(base)
            save_stamps(database, stamps[places >= 0])
        for folder in base.glob(".extract_*"):  # also of models that are no longer extracted
            remove_shards(folder)
        if not readable:
            raise UserError(f"{base}: no picture can be read: {errors[0]}")
        # So that no query has to make them.
        open_quantised(database, signals_of(database, **config.distance | {"model_weights": ()}))
        clustering.follow(config, database)

    speed = fresh / seconds if seconds else 0.0
    count = len(database.categories)
    print(f"{count:,} pictures in {base / DEEP}: {seconds:.1f} s, {speed:.1f} pictures/s")
    if old:
        _tell_of_update(old, changes, len(job))
    if errors:
        print(f"{len(errors):,} pictures were skipped:", file=sys.stderr)
    for _, reason in sorted(errors.items()):
        print(f"  {reason}", file=sys.stderr)
    if update:
        place = Place(**config.milvus)
        milvus_push.push_update(database, config.distance, place, config.TARGET_RECALL)
    return 1 if errors else 0


def _agree(distributed: Distributed, value: object, base: Path) -> None:
    """See to it that all processes have the same value."""
    if value != distributed.broadcast(value):
        raise UserError(f"{base}: rank {distributed.rank} finds other pictures or models there")


def _stamps_of(shards: Sequence[Shard], count: int) -> np.ndarray:
    """The stamps of all pictures of an extraction, count x 7, int64."""
    if not count:
        return np.empty((0, STAMP), np.int64)
    stacked = Stacked([shard.matrix(STAMPS) for shard in shards])
    return stacked.take(np.arange(count)).view(np.int64)


def _write(
    pictures: Pictures,
    places: np.ndarray,
    shards: Sequence[Sequence[Shard]],
    columns: Sequence[Columns],
    models: Sequence[LoadedModel],
    settings: FeatureSettings,
    base: Path,
    old: FeatureDatabase | None,
) -> None:
    """Write the database, where it is another one than there is."""
    if old and is_same(old, pictures, places):
        return
    weight, bias = (tensor.cpu().numpy() for tensor in models[0].net.net.classifier())
    matrices = _stacked(base if old else None, shards, columns)
    records = [model.record for model in models]
    write_database(base, pictures, matrices, places, (weight, bias), records, settings, old)


def _stacked(
    old: Path | None, shards: Sequence[Sequence[Shard]], columns: Sequence[Columns]
) -> dict[str, Stacked]:
    """The matrices of a new database: the rows of the old one, then those of the shards."""
    stacked = {}
    for own, names in zip(shards, columns, strict=True):
        for name in (name for name in names if name != STAMPS):
            kept = [np.load(old / name, mmap_mode="r")] if old else []
            stacked[name] = Stacked([*kept, *(shard.matrix(name) for shard in own)])
    return stacked


def _tell_of_update(old: FeatureDatabase, changes: Changes, extracted: int) -> None:
    kept = int((changes.origin >= 0).sum())
    gone = len(np.setdiff1d(np.arange(len(old.categories)), changes.origin))
    print(f"{kept:,} kept, {extracted:,} extracted, {gone:,} dropped")


if __name__ == "__main__":
    run_script(main)
