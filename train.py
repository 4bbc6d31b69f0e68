"""Train the embedding network: cross entropy on categories plus a metric loss on items.

Writes model_1_final.pth.tar ... below DATASET_BASE/models, one an epoch, the best of them by
retrieval among held-out training pictures as model_best.pth.tar, and the curves for TensorBoard
(models/tensorboard). On several GPUs or machines, with the same batches and so the same result:

    torchrun --nproc-per-node 4 train.py
"""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch.utils.data import DataLoader, Subset

from config import Config
from data import DETAIL, PictureDataset, eval_transform, make_loader, train_transform
from features.lock import locked
from net import Architecture, initial_net, save_checkpoint
from network.device import amp_type
from network.distributed import Distributed, init_distributed, per_process
from pictures.samplers import ShardedBatches, TrainBatches
from pictures.splits import read_splits
from training.loop import (
    BEST,
    RESUME_POINT,
    Progress,
    Trainer,
    mark_best,
    synchronise_norms,
)
from training.losses import build_metric_loss, build_optimizer
from utils import UserError, parse_args, run_script

MOST_SCORED = 5000  # held-out pictures that ask for each other after each epoch
VALIDATION_BATCHES = 30  # of a validation between epochs; each epoch ends with a full one

# A resumed run has to have the same values of these, or it would be another run.
IDENTITY = (
    "CATEGORIES", "CROP_TO_BBOX", "ENABLE_INSHOP_DATASET", "INSHOP_DATASET_PERCENT", "IMG_SIZE",
    "CROP_SIZE", "BACKBONE", "PRETRAINED", "INTER_DIM", "POOLING", "NORMALIZE", "TRAIN_BATCH_SIZE",
    "TRIPLET_BATCH_SIZE", "PER_CLASS", "LABEL_SMOOTHING", "METRIC_LOSS", "TRIPLET_WEIGHT",
    "ENABLE_TRIPLET_WITH_COSINE", "OPTIMIZER", "LR", "MOMENTUM", "TEST_BATCH_SIZE",
    "TEST_INTERVAL", "FREEZE_PARAM", "PALETTE", "PALETTE_WEIGHT",
    "SEED",
)  # fmt: skip

USES = (
    *IDENTITY,
    *("DATASET_BASE", "VAL_SHARE", "RECIPE", "EPOCH", "LOG_INTERVAL", "DUMP_INTERVAL"),
    *("DEVICE", "AMP", "NUM_WORKERS"),
)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last resume point; where there is none, from the beginning",
    )


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse_args(argv, __doc__ or "", USES, _arguments)
    with init_distributed(config.DEVICE) as (distributed, device):
        train(config, args.resume, distributed, device)


def train(config: Config, resume: bool, distributed: Distributed, device: torch.device) -> None:
    """Train by the settings.

    Parameters
    ----------
    config : the settings
    resume : go on from the last resume point
    distributed : the processes that train together
    device : of this one

    Raises
    ------
    UserError : the data set, the settings or the resume point do not allow it
    """
    base, models = config.DATASET_BASE, config.DATASET_BASE / "models"
    amp = amp_type(device, config.AMP)

    splits = read_splits(base, config.CATEGORIES, config.ENABLE_INSHOP_DATASET, config.VAL_SHARE)
    held_out = {
        "inshop": config.ENABLE_INSHOP_DATASET,
        "val_share": config.VAL_SHARE,
        "digest": splits.digest(),
    }
    labelled, held = splits.labelled, splits.validation
    torch.manual_seed(config.SEED)
    network = Architecture(
        config.BACKBONE,
        config.INTER_DIM,
        held.category_names,
        config.IMG_SIZE,
        config.CROP_SIZE,
        config.POOLING,
        config.NORMALIZE,
    )
    net = initial_net(network, config.PRETRAINED).to(device, memory_format=torch.channels_last)
    if config.EPOCH == 0:
        if not distributed.is_main:
            return
        path = models / "model_0_final.pth.tar"
        with locked(models, "a training run"):
            save_checkpoint(path, net, network, held_out=None)
            print(f"{path}: the untrained network")
            if not (models / RESUME_POINT).exists():  # nor is there a trained one to mark
                mark_best(path)
                print(f"{models / BEST}: the same")
        return

    batches = TrainBatches(
        splits.train,
        labelled,
        config.TRAIN_BATCH_SIZE,
        config.TRIPLET_BATCH_SIZE if config.TRIPLET_WEIGHT else 0,
        config.INSHOP_DATASET_PERCENT if config.ENABLE_INSHOP_DATASET else 0.0,
        config.PER_CLASS,
        config.SEED,
    )
    of_items = config.ENABLE_INSHOP_DATASET and config.INSHOP_DATASET_PERCENT > 0
    classes = len(set(splits.train.items.tolist()) - {""}) if of_items else len(held.category_names)
    metric = build_metric_loss(
        config.METRIC_LOSS,
        config.PER_CLASS,
        config.ENABLE_TRIPLET_WITH_COSINE,
        classes,
        net.fc2.in_features,
    ).to(device)
    if distributed.world_size > 1:
        net = synchronise_norms(net, device)
        torch.manual_seed(config.SEED + distributed.rank)  # of what networks draw, dropout for one
    sizes, least = (config.IMG_SIZE, config.CROP_SIZE), DETAIL * config.IMG_SIZE
    pictures = PictureDataset(
        base, splits.train, train_transform(*sizes), config.CROP_TO_BBOX, least
    )
    validation = PictureDataset(base, held, eval_transform(*sizes), config.CROP_TO_BBOX, least)
    items = PictureDataset(base, splits.validation_items, eval_transform(*sizes), False, least)
    workers = per_process(config.NUM_WORKERS)

    def spread(dataset: PictureDataset, most: int) -> DataLoader:
        """A loader of this rank's part of evenly spread pictures."""
        count = min(len(dataset), most)
        if 0 < count < distributed.world_size:
            world_size = distributed.world_size
            raise UserError(f"{count} held-out pictures for {world_size} processes; take fewer")
        rows = torch.linspace(0, len(dataset) - 1, count).round().int().tolist()
        subset = Subset(dataset, rows[distributed.shard(count)])
        return make_loader(subset, workers, device, batch_size=config.TEST_BATCH_SIZE)

    identity = {name: getattr(config, name) for name in IDENTITY}
    identity["data set"] = held_out["digest"]
    identity["arithmetic"] = f"{amp or torch.float32} on {device.type}"
    if config.FREEZE_PARAM == "auto" or config.OPTIMIZER == "adamw":  # the end tells the middle
        identity["EPOCH"] = config.EPOCH
    trainer = Trainer(
        models=models,
        net=net,
        network=network,
        optimizer=build_optimizer(config.OPTIMIZER, net, metric, config.LR, config.MOMENTUM),
        loader=make_loader(
            pictures,
            workers,
            device,
            batch_sampler=ShardedBatches(batches, distributed.shard),
            persistent=True,
        ),
        batches=batches,
        part_loader=spread(validation, VALIDATION_BATCHES * config.TEST_BATCH_SIZE),
        val_loader=spread(validation, len(validation)),
        palette_weight=config.PALETTE_WEIGHT if config.PALETTE else 0.0,
        score_loaders={
            "category": spread(validation, MOST_SCORED),
            **({"item": spread(items, MOST_SCORED)} if len(items) else {}),
        },
        device=device,
        amp=amp,
        smoothing=config.LABEL_SMOOTHING,
        metric=metric,
        metric_weight=config.TRIPLET_WEIGHT,
        of_items=of_items,
        scheduled=config.OPTIMIZER == "adamw",
        epochs=config.EPOCH,
        freeze=config.FREEZE_PARAM,
        identity=identity,
        held_out=held_out,
        distributed=distributed,
        progress=Progress(frozen=config.FREEZE_PARAM != "false"),
    )
    with locked(models, "a training run") if distributed.is_main else nullcontext():
        distributed.barrier()
        if trainer.resume_point.exists():
            if resume:
                trainer.resume()
                print(f"resumed: epoch {trainer.progress.epoch}, step {trainer.progress.step}")
            else:
                trainer.refuse_to_overwrite()
        print(
            f"{len(splits.train):,} pictures to train on ({labelled:,} with a category); held out"
            f" from the training part: {len(held):,} and {len(splits.validation_items):,} of items;"
            f" {config.BACKBONE} on {device}, {amp or torch.float32}"
            + (f", {distributed.world_size} processes" if distributed.world_size > 1 else "")
        )
        trainer.run(config.LOG_INTERVAL, config.TEST_INTERVAL, config.DUMP_INTERVAL)
        best = trainer.progress.best
        print(
            f"best: epoch {best['epoch']}, {best['score']:.2%} among the held out: {models / BEST}"
        )


if __name__ == "__main__":
    run_script(main)
