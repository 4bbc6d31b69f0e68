"""The resume point: the file from which a stopped run continues as if it had not stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from config import Config
from net import read_checkpoint
from pictures.splits import Splits
from utils import UserError

RESUME_POINT = "checkpoint.pth.tar"
DATA = "data set"  # of the identity, the hash of pictures and labels: these may change

# A resumed run must have the same values of these, or it would be another run.
IDENTITY = (
    "CATEGORIES", "CROP_TO_BBOX", "ENABLE_INSHOP_DATASET", "INSHOP_DATASET_PERCENT",
    "VAL_SHARE", "IMG_SIZE", "CROP_SIZE", "TRAIN_SIZE", "BACKBONE", "PRETRAINED", "INTER_DIM",
    "POOLING", "NORMALIZE", "TRAIN_BATCH_SIZE", "TRIPLET_BATCH_SIZE", "PER_CLASS",
    "LABEL_SMOOTHING", "METRIC_LOSS", "TRIPLET_WEIGHT", "ENABLE_TRIPLET_WITH_COSINE",
    "OPTIMIZER", "LR", "BACKBONE_LR", "LAYER_DECAY", "MOMENTUM", "TEST_BATCH_SIZE",
    "TEST_INTERVAL", "FREEZE_PARAM", "PALETTE", "PALETTE_WEIGHT", "SEED",
)  # fmt: skip


@dataclass
class Progress:
    """How far a run is; with the weights and the optimizer's state, all that resuming needs.

    Attributes
    ----------
    epoch : the current one, from 1
    step : steps done in it
    total_steps : steps done since the beginning
    frozen : the backbone is frozen
    history : (loss, accuracy) of the validations between epochs while it was frozen
    unfrozen : total steps when it was unfrozen
    best : epoch and figures of the best epoch so far
    log : name of the folder with the curves
    """

    epoch: int = 1
    step: int = 0
    total_steps: int = 0
    frozen: bool = False
    unfrozen: int = 0
    history: list[tuple[float, float]] = field(default_factory=list)
    best: dict[str, int | float] = field(default_factory=dict)
    log: str = ""


def identity_of(config: Config, splits: Splits, arithmetic: str) -> dict[str, Any]:
    """What a resumed run must have in common with the one that stopped."""
    identity = {name: getattr(config, name) for name in IDENTITY}
    items = sorted(set(splits.train.items.tolist()))
    identity |= {"categories": splits.category_names, "items": items}
    identity |= {DATA: splits.digest(), "arithmetic": arithmetic}
    if config.FREEZE_PARAM == "auto" or config.OPTIMIZER == "adamw":  # both depend on the end
        identity["EPOCH"] = config.EPOCH
    return identity


@contextmanager
def explain_damage(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the content of a resume point into a `UserError`."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # of many types, where something else is loaded
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path}: no resume point ({reason}); move it away to start again"
        ) from None


def read_resume_point(path: Path) -> dict[str, Any]:
    """The state of a run, its `Progress` among it."""
    content = read_checkpoint(path)
    with explain_damage(path):
        if lacks := {"progress", "identity", "finished"} - content.keys():
            raise ValueError(f"it has no {min(lacks)}")
        return content | {"progress": TypeAdapter(Progress).validate_python(content["progress"])}


def refuse_to_overwrite(path: Path) -> None:
    """Raise a `UserError` if the run of a resume point has not finished."""
    content = read_resume_point(path)
    if not content["finished"]:
        raise UserError(
            f"{path}: of a run that stopped in epoch {content['progress'].epoch};"
            " continue it with --resume, or move the file away to start another run"
        )


def require_same(path: Path, before: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise a `UserError` if a run differs in `identity` from `before`, that of a resume point."""
    for name, value in identity.items():
        if before.get(name) == value:
            continue
        if name == "VAL_SHARE" and before.get(DATA) == identity[DATA]:  # it changed no split
            continue
        if name == DATA:
            print("pictures came or went since this run began; it goes on with those there are")
            continue
        reason = f"has {name}={before.get(name)}, this one {value}; set it as it was"
        if name in ("categories", "items"):  # too long to print
            reason = f"has other {name}; undo that"
        raise UserError(
            f"--resume: the run in {path} {reason}, or move the file away to start another run"
        )
