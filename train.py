"""Train the embedding network: cross entropy on categories plus a metric loss on items.

Writes model_1_final.pth.tar ... below DATASET_BASE/models, one for each epoch. model_best.pth.tar
is a copy of the one with the best retrieval on the validation split; models/tensorboard has the
curves. On several GPUs or machines, with the same batches and so the same result:

    torchrun --nproc-per-node 4 train.py
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from config import Config
from data import (
    DETAIL,
    PictureDataset,
    count_unreadable,
    eval_transform,
    make_loader,
    train_transform,
)
from net import (
    Architecture,
    EmbeddingNet,
    conv_map_of,
    initial_net,
    load_net,
    save_checkpoint,
)
from network.architecture import new_architecture
from network.backbones import checkpoint_gradients
from network.device import amp_type, explain_out_of_memory, to_device
from network.distributed import Distributed, init_distributed, per_process
from network.garments import read_head
from pictures.folder import allow_roots
from pictures.samplers import TrainBatches
from pictures.splits import Splits, read_splits
from training.boxes import side_and_channels, train_boxes
from training.loop import BEST, Trainer, mark_best, synchronise_norms
from training.losses import TrainingLoss, build_metric_loss
from training.optimizer import Updater, build_optimizer
from training.resume import DATA, RESUME_POINT, Progress, ResumePoint
from utils import UserError, evenly_spaced, locked, parse_args, run_script

VALIDATION_BATCHES = 30  # of a validation between epochs; each epoch ends with a full one
MAX_SCORED = 5000  # pictures of a retrieval score, which sorts the distances of all pairs

# A resumed run must have the same values of these, or it would be another run.
IDENTITY = (
    "CATEGORIES", "CROP_TO_BBOX", "ENABLE_INSHOP_DATASET", "INSHOP_DATASET_PERCENT", "IMG_SIZE",
    "CROP_SIZE", "TRAIN_SIZE", "BACKBONE", "PRETRAINED", "INTER_DIM", "POOLING", "NORMALIZE",
    "TRAIN_BATCH_SIZE", "TRIPLET_BATCH_SIZE", "PER_CLASS", "LABEL_SMOOTHING", "METRIC_LOSS",
    "TRIPLET_WEIGHT", "ENABLE_TRIPLET_WITH_COSINE", "OPTIMIZER", "LR", "BACKBONE_LR",
    "LAYER_DECAY", "MOMENTUM",
    "TEST_BATCH_SIZE", "TEST_INTERVAL", "FREEZE_PARAM", "PALETTE", "PALETTE_WEIGHT", "SEED",
)  # fmt: skip


USES = (
    *IDENTITY,
    *("DATASET_BASE", "VAL_SHARE", "RECIPE", "EPOCH", "LOG_INTERVAL", "DUMP_INTERVAL"),
    *("GRAD_CHECKPOINTING", "ALLOWED_ROOTS", "TRUNCATED", "DEVICE", "AMP", "NUM_WORKERS"),
)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last resume point; without one, start from the beginning",
    )


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse_args(argv, __doc__ or "", USES, _arguments)
    settings = "TRAIN_BATCH_SIZE", "TRIPLET_BATCH_SIZE"
    with init_distributed(config.DEVICE) as (distributed, device), explain_out_of_memory(*settings):
        train(config, args.resume, distributed, device)


def train(config: Config, resume: bool, distributed: Distributed, device: torch.device) -> None:
    """Train by the settings; a `UserError` where data set, settings or resume point forbid it."""
    models = config.DATASET_BASE / "models"
    allow_roots(config.DATASET_BASE, config.ALLOWED_ROOTS)
    amp = amp_type(device, config.AMP)

    splits = read_splits(
        config.DATASET_BASE,
        config.CATEGORIES,
        config.ENABLE_INSHOP_DATASET,
        config.VAL_SHARE,
        assigned=config.EPOCH == 0,  # nothing is learnt of them
    )
    torch.manual_seed(config.SEED)
    network = new_architecture(config, splits.validation.category_names)
    net = to_device(initial_net(network, config.PRETRAINED), device)
    if config.EPOCH == 0:
        if distributed.is_main:
            write_untrained(config, splits, net, network, device, amp)
        return

    if config.GRAD_CHECKPOINTING:
        checkpoint_gradients(net.backbone, network.backbone)
    trainer = build_trainer(config, splits, net, network, device, amp, distributed)
    with locked(models) if distributed.is_main else nullcontext():
        distributed.barrier()
        if trainer.resume_point.path.exists():
            if resume:
                trainer.resume()
                print(f"resumed: epoch {trainer.progress.epoch}, step {trainer.progress.step}")
            else:
                trainer.resume_point.refuse_to_overwrite()
        count, processes = len(splits.train), distributed.world_size
        print(
            f"{count:,} training pictures ({splits.labelled:,} with a category); validation:"
            f" {len(splits.validation):,} and {len(splits.validation_items):,} of items;"
            f" {config.BACKBONE} on {device}, {amp or torch.float32}"
            + (f", {processes} processes" if processes > 1 else "")
        )
        trainer.run(config.LOG_INTERVAL, config.TEST_INTERVAL, config.DUMP_INTERVAL)
        loaders = [trainer.loader, *(loader for loader, _ in trainer.validation.values())]
        if left_out := count_unreadable(loaders):
            print(f"pictures left out, as they cannot be read: {left_out:,}", file=sys.stderr)
        best = trainer.progress.best
        path = models / f"model_{best['epoch']}_final.pth.tar"
        if distributed.is_main and path.exists() and not read_head(path):
            net = load_net(path)[0]
            train_boxes(config, splits, path, net, network.crop_size, device, amp)
            mark_best(path)
        print(f"best: epoch {best['epoch']}, validation score {best['score']:.2%}: {models / BEST}")


def write_untrained(
    config: Config,
    splits: Splits,
    net: EmbeddingNet,
    network: Architecture,
    device: torch.device,
    amp: torch.dtype | None,
) -> None:
    """Write the network as it is before training, to extract features with."""
    models = config.DATASET_BASE / "models"
    path = models / "model_0_final.pth.tar"
    with locked(models):
        save_checkpoint(path, net, network, held_out=None)
        if config.PRETRAINED != "none":
            train_boxes(config, splits, path, net, network.crop_size, device, amp)
        print(f"{path}: the untrained network")
        if not (models / RESUME_POINT).exists():  # nor is there a trained one to mark
            mark_best(path)
            print(f"{models / BEST}: the same")


def build_trainer(
    config: Config,
    splits: Splits,
    net: EmbeddingNet,
    network: Architecture,
    device: torch.device,
    amp: torch.dtype | None,
    distributed: Distributed,
) -> Trainer:
    """Put together what a run needs: batches, loss, optimizer, validation, resume point."""
    inshop = config.inshop_share
    batches = TrainBatches(
        splits.train,
        splits.labelled,
        config.TRAIN_BATCH_SIZE,
        config.TRIPLET_BATCH_SIZE if config.metric_weight else 0,
        inshop,
        config.PER_CLASS,
        config.SEED,
        distributed.shard,
    )
    loss = build_loss(config, splits, inshop > 0, net).to(device)
    if distributed.world_size > 1:
        net = synchronise_norms(net, device)
        torch.manual_seed(config.SEED + distributed.rank)  # of what networks draw, as dropout
    rates = config.LR, config.MOMENTUM, config.BACKBONE_LR, config.LAYER_DECAY
    updater = Updater(
        net,
        build_optimizer(config.OPTIMIZER, net, loss.metric, *rates),
        torch.amp.GradScaler(device.type, enabled=amp == torch.float16),
        scheduled=config.OPTIMIZER == "adamw",
    )
    point = config.DATASET_BASE / "models" / RESUME_POINT
    identity = identity_of(config, splits, f"{amp or torch.float32} on {device.type}")
    side = train_side(config, net, network, device)
    loader, quick_loader, validation = build_loaders(
        config, splits, batches, network, side, device, distributed
    )
    return Trainer(
        net=net,
        loss=loss,
        updater=updater,
        loader=loader,
        batches=batches,
        quick_loader=quick_loader,
        validation=validation,
        palette_weight=config.PALETTE_WEIGHT if config.PALETTE else 0.0,
        resume_point=ResumePoint(point, identity, net, network, loss.metric, updater, device),
        epochs=config.EPOCH,
        freeze=config.FREEZE_PARAM,
        split={
            "inshop": config.ENABLE_INSHOP_DATASET,
            "val_share": config.VAL_SHARE,
            "digest": splits.digest(),
        },
        device=device,
        amp=amp,
        distributed=distributed,
        progress=Progress(frozen=config.FREEZE_PARAM != "false"),
    )


def build_loss(config: Config, splits: Splits, by_item: bool, net: EmbeddingNet) -> TrainingLoss:
    """What is minimised."""
    items = set(splits.train.items.tolist()) - {""}
    classes = len(items if by_item else splits.validation.category_names)
    kind, cosine = config.METRIC_LOSS, config.ENABLE_TRIPLET_WITH_COSINE
    dim = net.dim - net.category_dims
    metric = build_metric_loss(kind, config.PER_CLASS, cosine, classes, dim)
    smoothing = config.LABEL_SMOOTHING
    return TrainingLoss(metric, config.metric_weight, by_item, smoothing, net.category_dims)


def identity_of(config: Config, splits: Splits, arithmetic: str) -> dict[str, Any]:
    """What a resumed run must have in common with the one that stopped."""
    identity = {name: getattr(config, name) for name in IDENTITY}
    items = sorted(set(splits.train.items.tolist()))
    identity |= {"categories": splits.validation.category_names, "items": items}
    identity |= {DATA: splits.digest(), "arithmetic": arithmetic}
    if config.FREEZE_PARAM == "auto" or config.OPTIMIZER == "adamw":  # both depend on the end
        identity["EPOCH"] = config.EPOCH
    return identity


def train_side(
    config: Config, net: EmbeddingNet, network: Architecture, device: torch.device
) -> int:
    """Side in px of the training crops.

    Garments look larger in random crops than in the middle of a picture; smaller crops make up for
    that (Touvron et al., Fixing the Train-Test Resolution Discrepancy, NeurIPS 2019). A backbone
    that takes one size only gets that.
    """
    if config.TRAIN_SIZE or config.RECIPE == "original":
        return config.TRAIN_SIZE or network.crop_size
    sides = round(network.crop_size * 6 / 7), network.crop_size
    return side_and_channels(conv_map_of(net.eval(), device), *sides)[0]


def build_loaders(
    config: Config,
    splits: Splits,
    batches: TrainBatches,
    network: Architecture,
    side: int,
    device: torch.device,
    distributed: Distributed,
) -> tuple[DataLoader, DataLoader, dict[str, tuple[DataLoader, int]]]:
    """The loaders of this process: see `loader`, `quick_loader` and `validation` of `Trainer`.

    `side` is that of the training crops in px.
    """
    base, crop, detail = config.DATASET_BASE, config.CROP_TO_BBOX, DETAIL * network.img_size
    workers = per_process(config.NUM_WORKERS)
    seen = eval_transform(**network.transform)
    shown = train_transform(side, network.interpolation, network.resize == "padded")
    how = detail, config.TRUNCATED == "accept", True
    train_set = PictureDataset(base, splits.train, shown, crop, *how)
    pictures = PictureDataset(base, splits.validation, seen, crop, *how)
    items = PictureDataset(base, splits.validation_items, seen, False, *how)

    def load(dataset: PictureDataset, rows: np.ndarray) -> DataLoader:
        if len(rows) < distributed.world_size:
            raise UserError(
                f"{len(rows)} validation pictures for {distributed.world_size} processes;"
                " start fewer"
            )
        own = Subset(dataset, rows[distributed.shard(len(rows))].tolist())
        return make_loader(own, workers, device, batch_size=config.TEST_BATCH_SIZE)

    loader = make_loader(train_set, workers, device, batch_sampler=batches, persistent=True)
    quick = evenly_spaced(len(pictures), VALIDATION_BATCHES * config.TEST_BATCH_SIZE)
    scored = evenly_spaced(len(pictures), MAX_SCORED)
    rows = np.concatenate([scored, np.setdiff1d(np.arange(len(pictures)), scored)])
    validation = {"category": (load(pictures, rows), len(scored))}
    if len(items):
        scored = evenly_spaced(len(items), MAX_SCORED)
        validation["item"] = load(items, scored), len(scored)
    return loader, load(pictures, quick), validation


if __name__ == "__main__":
    run_script(main)
