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

import torch

from config import Config
from data import count_unreadable
from net import EmbeddingNet, initial_net, load_net, save_checkpoint
from network.architecture import new_architecture
from network.backbones import checkpoint_gradients
from network.device import amp_type, explain_out_of_memory, to_device
from network.distributed import Distributed, init_distributed
from network.garments import read_head
from pictures.folder import allow_roots
from pictures.splits import Splits, read_splits
from training.boxes import train_boxes
from training.loop import BEST, Trainer, mark_best
from training.resume import IDENTITY, refuse_to_overwrite
from utils import locked, parse_args, run_script

USES = (
    *IDENTITY,
    *("DATASET_BASE", "RECIPE", "EPOCH", "LOG_INTERVAL", "DUMP_INTERVAL"),
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
        item_categories=config.RECIPE == "modern",
    )
    torch.manual_seed(config.SEED)
    network = new_architecture(config, splits.category_names)
    net = to_device(initial_net(network, config.PRETRAINED), device)
    if config.EPOCH == 0:
        if distributed.is_main:
            write_untrained(config, splits, net, device, amp)
        return

    if config.GRAD_CHECKPOINTING:
        checkpoint_gradients(net.backbone, config.BACKBONE)
    trainer = Trainer(config, splits, net, device, amp, distributed)
    with locked(models) if distributed.is_main else nullcontext():
        distributed.barrier()
        if trainer.resume_point.exists():
            if resume:
                trainer.resume()
                print(f"resumed: epoch {trainer.progress.epoch}, step {trainer.progress.step}")
            else:
                refuse_to_overwrite(trainer.resume_point)
                distributed.barrier()  # all have read it
                if distributed.is_main:  # else --resume would take up the finished run
                    trainer.resume_point.unlink()
        count, processes = len(splits.train), distributed.world_size
        print(
            f"{count:,} training pictures ({splits.labelled:,} with a category); validation:"
            f" {len(splits.validation):,} and {len(splits.validation_items):,} of items;"
            f" {config.BACKBONE} on {device}, {amp or torch.float32}"
            + (f", {processes} processes" if processes > 1 else "")
        )
        trainer.run()
        loaders = [trainer.loader, *(loader for loader, _ in trainer.validation.values())]
        if left_out := count_unreadable(loaders):
            print(f"pictures left out, as they cannot be read: {left_out:,}", file=sys.stderr)
        best = trainer.progress.best
        path = models / f"model_{best['epoch']}_final.pth.tar"
        if distributed.is_main and path.exists():
            if not read_head(path):
                train_boxes(config, splits, path, load_net(path), device, amp)
            mark_best(path)
        print(f"best: epoch {best['epoch']}, validation score {best['score']:.2%}: {models / BEST}")


def write_untrained(
    config: Config,
    splits: Splits,
    net: EmbeddingNet,
    device: torch.device,
    amp: torch.dtype | None,
) -> None:
    """Write the network as it is before training, to extract features with."""
    models = config.DATASET_BASE / "models"
    path = models / "model_0_final.pth.tar"
    with locked(models):
        save_checkpoint(path, net, held_out=None)
        if config.PRETRAINED != "none":
            train_boxes(config, splits, path, net, device, amp)
        print(f"{path}: the untrained network")
        if not any(models.glob("model_[1-9]*_final.pth.tar")):  # there is no trained one to mark
            mark_best(path)
            print(f"{models / BEST}: the same")


if __name__ == "__main__":
    run_script(main)
