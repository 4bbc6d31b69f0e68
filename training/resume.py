"""The resume point: the file from which a stopped run continues as if it had not stopped."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from net import Architecture, EmbeddingNet, read_checkpoint, save_checkpoint
from training.optimizer import Updater
from utils import UserError

RESUME_POINT = "checkpoint.pth.tar"
NAMES = "categories", "items"  # of the identity, lists that are too long to print
DATA = "data set"  # of the identity, the hash of pictures and labels: these may change
KEYS = {"state_dict", "metric", "optimizer", "scaler", "rng", "cuda_rng"}
KEYS |= {"progress", "identity", "finished"}


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


@dataclass(frozen=True)
class ResumePoint:
    """Saves and restores the state of a run.

    Attributes
    ----------
    path : of the file
    identity : settings and data that a resumed run must share
    net, architecture : the network
    metric : the metric loss
    updater : the optimizer and the scale of the loss
    device : of this process
    """

    path: Path
    identity: dict[str, Any]
    net: EmbeddingNet
    architecture: Architecture
    metric: nn.Module
    updater: Updater
    device: torch.device

    def save(self, progress: Progress, finished: bool = False) -> None:
        """Write the file; `finished` when there is nothing left to resume."""
        on_cuda = self.device.type == "cuda"
        save_checkpoint(
            self.path,
            self.net,
            self.architecture,
            metric=self.metric.state_dict(),
            optimizer=self.updater.optimizer.state_dict(),
            scaler=self.updater.scaler.state_dict(),
            rng=torch.get_rng_state(),
            cuda_rng=[torch.cuda.get_rng_state(self.device)] if on_cuda else [],
            progress=vars(progress),
            identity=self.identity,
            finished=finished,
        )

    def refuse_to_overwrite(self) -> None:
        """Raise a `UserError` if the run of the file has not finished."""
        content = self._read()
        if not content["finished"]:
            raise UserError(
                f"{self.path}: of a run that stopped in epoch {content['progress'].epoch};"
                " continue it with --resume, or move the file away to start another run"
            )

    def load(self) -> Progress:
        """Restore everything.

        Raises
        ------
        UserError : the file is damaged, or of a run with other settings
        """
        content = self._read()
        for name, value in self.identity.items():
            before = content["identity"].get(name)
            if before == value:
                continue
            if name == DATA:
                print("pictures came or went since this run began; it goes on with those there are")
                continue
            if name in NAMES:
                reason = f"has other {name}, {_changed(before or [], value)}; undo that"
            else:
                reason = f"has {name}={before}, this one {value}; set it as it was"
            raise UserError(
                f"--resume: the run in {self.path} {reason}, or move the file away to start"
                " another run"
            )
        try:
            self.net.load_state_dict(content["state_dict"])
            self.metric.load_state_dict(content["metric"])
            self.updater.optimizer.load_state_dict(content["optimizer"])
            self.updater.scaler.load_state_dict(content["scaler"])
            torch.set_rng_state(content["rng"])
            if content["cuda_rng"]:  # of one card; earlier versions wrote those of all cards
                torch.cuda.set_rng_state(content["cuda_rng"][0], self.device)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # of many types, where something else is loaded
            raise self._damaged(error) from None
        return content["progress"]

    def _read(self) -> dict[str, Any]:
        content = read_checkpoint(self.path)
        try:
            if KEYS - set(content):
                raise ValueError(f"it has no {min(KEYS - set(content))}")
            content["progress"] = TypeAdapter(Progress).validate_python(content["progress"])
            content["identity"] = dict(content["identity"])
        except (ValueError, TypeError) as error:
            raise self._damaged(error) from None
        return content

    def _damaged(self, error: Exception) -> UserError:
        reason = str(error).split("\n")[0]
        return UserError(f"{self.path}: no resume point ({reason}); delete it to start again")


def _changed(before: Sequence[str], now: Sequence[str]) -> str:
    """How two lists of names differ, by an example of each kind."""
    gone, new = (sorted(set(a) - set(b)) for a, b in ((before, now), (now, before)))
    examples = [f"{len(gone)} are gone as {gone[0]!r}"] if gone else []
    examples += [f"{len(new)} are new as {new[0]!r}"] if new else []
    return " and ".join(examples) or "in another order"
