"""Train the embedding network: cross entropy on categories plus a metric loss on items.

Writes model_1_final.pth.tar ... below DATASET_BASE/models, one an epoch, the best of them by
retrieval among held-out training pictures as model_best.pth.tar, and the curves for TensorBoard
(models/tensorboard).
"""

if __name__ == "__main__":
    import interrupt

    interrupt.catch()

import argparse
from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader, Subset

from command_line import parse_args
from data import DETAIL, PictureDataset, TrainBatches, eval_transform, make_loader, train_transform
from device import amp_type, pick_device
from holdout import read_parts
from lock import locked
from net import Network, initial_net, save_checkpoint
from recipe import build_metric_loss, build_optimizer
from trainer import BEST, RESUME_POINT, Progress, Trainer, mark_best
from utils import run_script

MOST_SCORED = 5000  # held-out pictures that ask for each other after each epoch

# A resumed run has to have the same values of these, or it would be another run.
IDENTITY = (
    "CATEGORIES", "CROP_TO_BBOX", "ENABLE_INSHOP_DATASET", "INSHOP_DATASET_PERCENT", "IMG_SIZE",
    "CROP_SIZE", "BACKBONE", "PRETRAINED", "INTER_DIM", "POOLING", "NORMALIZE", "TRAIN_BATCH_SIZE",
    "TRIPLET_BATCH_SIZE", "PER_CLASS", "LABEL_SMOOTHING", "METRIC_LOSS", "TRIPLET_WEIGHT",
    "ENABLE_TRIPLET_WITH_COSINE", "OPTIMIZER", "LR", "MOMENTUM", "TEST_BATCH_SIZE",
    "TEST_BATCH_COUNT", "TEST_INTERVAL", "FREEZE_PARAM", "PALETTE", "PALETTE_WEIGHT",
    "SEED",
)  # fmt: skip


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last resume point; where there is none, from the beginning",
    )


def main(argv: Sequence[str] | None = None) -> None:
    uses = ("data set", "network", "training", "machine")
    config, args = parse_args(argv, __doc__ or "", uses, _arguments)
    base, models = config.DATASET_BASE, config.DATASET_BASE / "models"
    device = pick_device(config.DEVICE)
    amp = amp_type(device, config.AMP)
    pin = device.type == "cuda"

    parts = read_parts(base, config.CATEGORIES, config.ENABLE_INSHOP_DATASET, config.VAL_SHARE)
    held_out = {
        "inshop": config.ENABLE_INSHOP_DATASET,
        "val_share": config.VAL_SHARE,
        "digest": parts.digest(),
    }
    train, labelled, held = parts.train, parts.labelled, parts.held
    torch.manual_seed(config.SEED)
    network = Network(
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
        path = models / "model_0_final.pth.tar"
        with locked(models, "a training run"):
            save_checkpoint(path, net, network, held_out=None)
            print(f"{path}: the untrained network")
            if not (models / RESUME_POINT).exists():  # nor is there a trained one to mark
                mark_best(path)
                print(f"{models / BEST}: the same")
        return

    batches = TrainBatches(
        train,
        labelled,
        config.TRAIN_BATCH_SIZE,
        config.TRIPLET_BATCH_SIZE if config.TRIPLET_WEIGHT else 0,
        config.INSHOP_DATASET_PERCENT if config.ENABLE_INSHOP_DATASET else 0.0,
        config.PER_CLASS,
        config.SEED,
    )
    of_items = config.ENABLE_INSHOP_DATASET and config.INSHOP_DATASET_PERCENT > 0
    classes = len(set(train.items.tolist()) - {""}) if of_items else len(held.category_names)
    metric = build_metric_loss(
        config.METRIC_LOSS,
        config.PER_CLASS,
        config.ENABLE_TRIPLET_WITH_COSINE,
        classes,
        net.fc2.in_features,
    ).to(device)
    sizes, least = (config.IMG_SIZE, config.CROP_SIZE), DETAIL * config.IMG_SIZE
    pictures = PictureDataset(base, train, train_transform(*sizes), config.CROP_TO_BBOX, least)
    validation = PictureDataset(base, held, eval_transform(*sizes), config.CROP_TO_BBOX, least)
    items = PictureDataset(base, parts.items, eval_transform(*sizes), False, least)
    workers = config.NUM_WORKERS

    def spread(dataset: PictureDataset, most: int) -> DataLoader:
        """A loader of evenly spread pictures."""
        rows = torch.linspace(0, len(dataset) - 1, min(len(dataset), most)).round().int().tolist()
        subset = Subset(dataset, rows)
        return make_loader(subset, workers, pin, batch_size=config.TEST_BATCH_SIZE)

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
        loader=make_loader(pictures, workers, pin, batch_sampler=batches),
        batches=batches,
        part_loader=spread(validation, config.TEST_BATCH_COUNT * config.TEST_BATCH_SIZE),
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
        progress=Progress(frozen=config.FREEZE_PARAM != "false"),
    )
    with locked(models, "a training run"):
        if trainer.resume_point.exists():
            if args.resume:
                trainer.resume()
                print(f"resumed: epoch {trainer.progress.epoch}, step {trainer.progress.step}")
            else:
                trainer.refuse_to_overwrite()
        print(
            f"{len(train):,} pictures to train on ({labelled:,} with a category); held out from the"
            f" training part: {len(held):,} and {len(parts.items):,} of items; {config.BACKBONE} on"
            f" {device}, {amp or torch.float32}"
        )
        trainer.run(config.LOG_INTERVAL, config.TEST_INTERVAL, config.DUMP_INTERVAL)
        best = trainer.progress.best
        print(
            f"best: epoch {best['epoch']}, {best['score']:.2%} among the held out: {models / BEST}"
        )


if __name__ == "__main__":
    run_script(main)
