"""One training run: steps, validations, curves, checkpoints, and how to go on after a stop."""

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from data import MEAN, STD, TrainBatches
from net import EmbeddingNet, Network, autocast, read_checkpoint, save_checkpoint
from utils import UserError, atomic_write, progress_bar

BEST, RESUME_POINT = "model_best.pth.tar", "checkpoint.pth.tar"


@dataclass
class Progress:
    """Where a run stands; with the weights and the optimizer's state, all that resuming needs.

    Attributes
    ----------
    epoch : the current one, from 1
    step : steps done of it
    total_steps : steps done since the beginning
    frozen : the backbone is frozen
    history : (loss, accuracy) of the validations between epochs while it was frozen
    best : epoch, accuracy and loss of the best epoch so far
    log : name of the folder with the curves
    """

    epoch: int = 1
    step: int = 0
    total_steps: int = 0
    frozen: bool = False
    history: list[tuple[float, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    log: str = ""


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, cosine: bool) -> Tensor:
    """Triplet margin loss with margin 1.

    Parameters
    ----------
    anchor, positive, negative : N x D
    cosine : the distance is 1 - cosine similarity instead of the Euclidean one

    Returns
    -------
    Scalar: the mean of max(0, 1 + d(anchor, positive) - d(anchor, negative)).
    """
    if not cosine:
        return F.triplet_margin_loss(anchor, positive, negative)
    return F.triplet_margin_with_distance_loss(
        anchor,
        positive,
        negative,
        distance_function=lambda x, y: 1 - F.cosine_similarity(x, y),
    )


def is_stable(history: Sequence[tuple[float, float]], patience: int = 3) -> bool:
    """Whether training has settled: neither loss nor accuracy still gets better.

    Parameters
    ----------
    history : (loss, accuracy in 0 to 1) of each validation, in order
    patience : validations to look at

    Returns
    -------
    True where none of the last `patience` validations lowers the best loss before them by more
    than 1%, or raises the best accuracy by more than half a percentage point.
    """
    before, last = history[:-patience], history[-patience:]
    if not before:
        return False
    loss_falls = min(loss for loss, _ in last) < 0.99 * min(loss for loss, _ in before)
    accuracy_rises = max(a for _, a in last) > 0.005 + max(a for _, a in before)
    return not loss_falls and not accuracy_rises


@torch.inference_mode()
def validate(
    net: EmbeddingNet, loader: DataLoader, device: torch.device, amp: torch.dtype | None
) -> tuple[float, float]:
    """Mean cross entropy, and accuracy in 0 to 1, over a loader's pictures."""
    training = net.training
    net.eval()
    loss, right, count = torch.zeros(()), torch.zeros(()), 0
    for images, targets in loader:
        images, targets = _to_device(images, device), targets.to(device)
        with autocast(device, amp):
            logits = net(images)[0]
        loss += F.cross_entropy(logits, targets, reduction="sum").cpu()
        right += (logits.argmax(1) == targets).sum().cpu()
        count += len(targets)
    net.train(training)
    return loss.item() / count, right.item() / count


def _to_device(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device, non_blocking=True, memory_format=torch.channels_last)


@dataclass
class Trainer:
    """One training run.

    Attributes
    ----------
    models : folder of the checkpoints
    net, network : what is trained
    optimizer : over all parameters of `net`; those of a frozen backbone get no gradient
    loader, batches : the training pictures and the sampler behind them
    part_loader, val_loader : loaders of a part of the validation pictures, and of all
    device, amp : where and in which 16-bit type the forward pass runs
    triplet_weight, cosine : of the triplet loss
    unfreeze : train the backbone once the heads have settled
    identity : settings and data that a resumed run must share
    progress : where the run stands
    """

    models: Path
    net: EmbeddingNet
    network: Network
    optimizer: torch.optim.Optimizer
    loader: DataLoader
    batches: TrainBatches
    part_loader: DataLoader
    val_loader: DataLoader
    device: torch.device
    amp: torch.dtype | None
    triplet_weight: float
    cosine: bool
    unfreeze: bool
    identity: dict[str, Any]
    progress: Progress

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)
        self.net.freeze_backbone(self.progress.frozen)

    @property
    def resume_point(self) -> Path:
        """The file that `save` writes and `resume` reads."""
        return self.models / RESUME_POINT

    def save(self, finished: bool = False) -> None:
        """Write the resume point."""
        save_checkpoint(
            self.resume_point,
            self.net,
            self.network,
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            rng=torch.get_rng_state(),
            cuda_rng=torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            progress=vars(self.progress),
            identity=self.identity,
            finished=finished,
        )

    def refuse_to_overwrite(self) -> None:
        """Raise a `UserError` where the resume point is of a run that is not finished."""
        content = self._read_resume_point()
        if not content["finished"]:
            raise UserError(
                f"{self.resume_point}: a run that stopped in epoch {content['progress']['epoch']};"
                " go on with --resume, or delete the file to start anew"
            )

    def _read_resume_point(self) -> dict[str, Any]:
        content = read_checkpoint(self.resume_point)
        if not {"identity", "optimizer", "scaler", "rng", "progress", "finished"} <= set(content):
            raise UserError(f"{self.resume_point}: no resume point; delete it to start anew")
        return content

    def resume(self) -> None:
        """Take up the run where the resume point left it.

        Raises
        ------
        UserError : it is of a run with other settings
        """
        content = self._read_resume_point()
        for name, value in self.identity.items():
            was = content["identity"].get(name)
            if was != value:
                raise UserError(
                    f"--resume: the run in {self.resume_point} has {name}={was}, this one {value};"
                    " set it as it was, or delete the file to start anew"
                )
        self.net.load_state_dict(content["state_dict"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(content["rng"])
        if content["cuda_rng"]:
            torch.cuda.set_rng_state_all(content["cuda_rng"])
        self.progress = Progress(**content["progress"])
        self.net.freeze_backbone(self.progress.frozen)
        best = self.models / f"model_{self.progress.best.get('epoch')}_final.pth.tar"
        if best.exists():  # something else may have been marked since
            mark_best(best)

    def run(self, epochs: int, log_every: int, test_every: int, dump_every: int) -> None:
        """Train to the end of epoch `epochs`; the intervals are in steps."""
        if self.progress.epoch > epochs:
            return
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        self.progress.log = self.progress.log or time.strftime("%Y-%m-%d_%H-%M-%S")
        folder = self.models / "tensorboard" / self.progress.log
        writer = SummaryWriter(str(folder), purge_step=self.progress.total_steps + 1)
        print(f"curves: tensorboard --logdir {folder.parent}")
        if not self.progress.total_steps:
            self._validate(self.val_loader, writer, "before training")
        while self.progress.epoch <= epochs:
            self._epoch(writer, epochs, log_every, test_every, dump_every)
        writer.close()

    def _epoch(
        self, writer: Any, epochs: int, log_every: int, test_every: int, dump_every: int
    ) -> None:
        at = self.progress
        self.batches.enter(at.epoch, at.step)
        self.net.train()
        title = f"epoch {at.epoch}/{epochs}"
        with progress_bar(self.batches.steps(), title, "step", at.step) as bar:
            for images, targets in self.loader:
                losses = self._step(images, targets)
                at.step += 1
                at.total_steps += 1
                bar.update()
                if at.step == 1:
                    self._show_triplets(writer, images)
                if at.total_steps % log_every == 0:
                    self._log(writer, bar, losses)
                if at.total_steps % test_every == 0:
                    result = self._validate(self.part_loader, writer, f"{title}, step {at.step}")
                    self._unfreeze_when_stable(result)
                # A run too short for the heads to settle is to train the backbone, too.
                if at.total_steps >= max(epochs * self.batches.steps() // 2, 1):
                    self._unfreeze("half of the steps are done")
                if at.total_steps % dump_every == 0:
                    self._require_finite(losses["loss"].item())
                    self.save()
        loss, accuracy = self._validate(self.val_loader, writer, title)
        self._keep(loss, accuracy)
        at.epoch += 1
        at.step = 0
        self.save(finished=at.epoch > epochs)

    def _step(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """One step of the optimizer; returns the losses and the accuracy as scalars."""
        triplets = 3 * self.batches.triplets
        count = len(images) - triplets
        images = _to_device(images, self.device)
        targets = targets[:count].to(self.device, non_blocking=True)
        with autocast(self.device, self.amp):
            logits, embedding, _ = self.net(images)
        logits = logits[:count]
        classification = F.cross_entropy(logits, targets)
        loss, triplet = classification, torch.zeros(())
        if triplets:
            triplet = triplet_loss(*embedding[count:].chunk(3), cosine=self.cosine)
            loss = loss + self.triplet_weight * triplet
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        right = (logits.argmax(1) == targets).float().mean()
        return {
            "loss": loss.detach(),
            "cross entropy": classification.detach(),
            "triplet": triplet.detach(),
            "accuracy": right,
        }

    def _log(self, writer: Any, bar: tqdm, losses: dict[str, Tensor]) -> None:
        self._require_finite(losses["loss"].item())
        values = {name: value.item() for name, value in losses.items()}
        for name, value in values.items():
            writer.add_scalar(f"train/{name}", value, self.progress.total_steps)
        writer.add_scalar(
            "learning rate", self.optimizer.param_groups[0]["lr"], self.progress.total_steps
        )
        shown = {name: f"{value:.3f}" for name, value in values.items()}
        bar.set_postfix({**shown, "backbone": "frozen"} if self.progress.frozen else shown)

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {self.progress.total_steps}; start anew with a lower"
                f" LR, or with AMP=off (delete {self.resume_point} if it is there)"
            )

    def _validate(self, loader: DataLoader, writer: Any, title: str) -> tuple[float, float]:
        loss, accuracy = validate(self.net, loader, self.device, self.amp)
        writer.add_scalar("validation/cross entropy", loss, self.progress.total_steps)
        writer.add_scalar("validation/accuracy", accuracy, self.progress.total_steps)
        frozen = ", backbone frozen" if self.progress.frozen else ""
        tqdm.write(f"{title}: validation loss {loss:.4f}, accuracy {accuracy:.2%}{frozen}")
        self._require_finite(loss)
        return loss, accuracy

    def _unfreeze_when_stable(self, result: tuple[float, float]) -> None:
        if self.progress.frozen:
            self.progress.history.append(result)
            if is_stable(self.progress.history):
                self._unfreeze("loss and accuracy are stable")

    def _unfreeze(self, reason: str) -> None:
        """With FREEZE_PARAM=auto, train the backbone from here on."""
        if self.unfreeze and self.progress.frozen:
            tqdm.write(f"{reason}: the backbone is trained from here on")
            self.progress.frozen = False
            self.net.freeze_backbone(False)

    def _keep(self, loss: float, accuracy: float) -> None:
        """Write the epoch's model, and mark it where it is the best so far."""
        at = self.progress
        path = self.models / f"model_{at.epoch}_final.pth.tar"
        result = {"epoch": at.epoch, "accuracy": accuracy, "loss": loss}
        save_checkpoint(path, self.net, self.network, validation=result)
        best = at.best
        if not best or (accuracy, -loss) > (best["accuracy"], -best["loss"]):
            at.best = result
            mark_best(path)

    def _show_triplets(self, writer: Any, images: Tensor, most: int = 4) -> None:
        """A few triplets as pictures for TensorBoard: anchor, positive, negative a row."""
        from torchvision.utils import make_grid

        if not self.batches.triplets:
            return
        rows = images[-3 * self.batches.triplets :].unflatten(0, (3, -1))[:, :most].transpose(0, 1)
        pixels = rows.flatten(0, 1) * torch.tensor(STD)[:, None, None]
        pixels = (pixels + torch.tensor(MEAN)[:, None, None]).clamp(0, 1)
        writer.add_image("triplets", make_grid(pixels, nrow=3), self.progress.total_steps)


def mark_best(model: Path) -> None:
    """Copy an epoch's model to model_best.pth.tar beside it."""
    with atomic_write(model.with_name(BEST)) as part:
        shutil.copyfile(model, part)
