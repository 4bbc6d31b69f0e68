"""One training run: steps, validations, checkpoints."""

import inspect
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from evaluation.metrics import balanced_score
from net import EmbeddingNet, save_checkpoint
from network.color import Palette
from network.device import autocast, copy_to, explain_out_of_memory, to_device
from network.distributed import Distributed
from pictures.samplers import TrainBatches
from training.losses import TrainingLoss
from training.optimizer import Updater, rate_factor
from training.resume import Progress, ResumePoint
from training.validation import (
    Predictions,
    is_stable,
    loss_and_accuracy,
    predict,
    retrieval_score,
)
from utils import UserError, atomic_write, progress_bar

BEST = "model_best.pth.tar"
SCORES = {"category": "mAP@R by category", "item": "MRR by item"}


@dataclass
class Trainer:
    """One training run.

    The network is not compiled: torch 2.11 made 7 graphs of a ResNet on an H100, and a frozen
    backbone, a trained one and the last batch would be compiled separately.

    Attributes
    ----------
    net : what is trained
    loss : what is minimised
    updater : changes the weights
    loader, batches : the training pictures, and the sampler of whole batches
    quick_loader : some validation pictures with categories
    validation : by "category" and, where there are items, by "item": all validation pictures, and
        how many of all processes', from the first on, have a retrieval score
    palette_weight : of the palette's distance beside the embedding's in that score
    resume_point : saves and restores the run
    epochs : of the whole run
    freeze : the setting FREEZE_PARAM
    split : record of the split, for the checkpoints
    device, amp : where the network lies, and the 16-bit type it computes in
    distributed : the processes that train together; each loader gives this one its part
    progress : how far the run is
    """

    net: EmbeddingNet
    loss: TrainingLoss
    updater: Updater
    loader: DataLoader
    batches: TrainBatches
    quick_loader: DataLoader
    validation: dict[str, tuple[DataLoader, int]]
    palette_weight: float
    resume_point: ResumePoint
    epochs: int
    freeze: str
    split: dict[str, Any]
    device: torch.device
    amp: torch.dtype | None
    distributed: Distributed
    progress: Progress

    def __post_init__(self) -> None:
        self.models = self.resume_point.path.parent
        self.palette = to_device(Palette(), self.device)
        self.writer: Any = None
        self._freeze_backbone(self.progress.frozen)

    def _freeze_backbone(self, frozen: bool) -> None:
        """Freeze or unfreeze it; several processes average the gradients of what is trained."""
        self.net.freeze_backbone(frozen)
        self.wrapped: nn.Module = self.net
        if dist.is_initialized():
            known = inspect.signature(DistributedDataParallel).parameters
            names = "forward_sync_buffers", "broadcast_buffers"  # since PyTorch 2.14, before
            name = next(name for name in names if name in known)
            # Synchronised batch norms have the same statistics in all processes already.
            flags: dict[str, Any] = {name: self.device.type == "cpu"}
            # Some timm models have parameters that their features do not use.
            self.wrapped = DistributedDataParallel(self.net, static_graph=True, **flags)

    def resume(self) -> None:
        """Continue from the resume point.

        Raises
        ------
        UserError : it is damaged, or of a run with other settings
        """
        self.progress = self.resume_point.load()
        if not self.distributed.is_main:  # the file has the state of the main process only
            done = self.distributed.world_size * self.progress.total_steps  # draws no number twice
            torch.manual_seed(torch.initial_seed() + self.distributed.rank + done)
        self._freeze_backbone(self.progress.frozen)
        best = self.models / f"model_{self.progress.best.get('epoch')}_final.pth.tar"
        if best.exists() and self.distributed.is_main:  # the copy may have been replaced since
            mark_best(best)

    def run(self, log_interval: int, test_interval: int, dump_interval: int) -> None:
        """Train to the end of the last epoch.

        Parameters
        ----------
        log_interval : steps between points of the curves
        test_interval : steps between quick validations
        dump_interval : steps between resume points
        """
        at = self.progress
        if at.epoch > self.epochs:
            return
        at.log = at.log or time.strftime("%Y-%m-%d_%H-%M-%S")
        folder = self.models / "tensorboard"
        if self.distributed.is_main:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

            self.writer = SummaryWriter(str(folder / at.log), purge_step=at.total_steps + 1)
        print(f"curves: tensorboard --logdir {folder}")
        if not at.total_steps:
            self._report(self._predict(self.validation["category"][0]), "before training")
        while at.epoch <= self.epochs:
            self._epoch(log_interval, test_interval, dump_interval)
        if self.writer:
            self.writer.close()

    def _epoch(self, log_interval: int, test_interval: int, dump_interval: int) -> None:
        at = self.progress
        self.batches.enter(at.epoch, at.step)
        self.net.train()
        steps, title = self.batches.steps(), f"epoch {at.epoch}/{self.epochs}"
        with progress_bar(steps, title, "step", at.step, self.distributed.is_main) as bar:
            for images, categories, items in self.loader:
                losses = self.step(images, categories, items, self.batches.size(at.step))
                at.step += 1
                at.total_steps += 1
                bar.update()
                if at.total_steps % log_interval == 0:
                    self._log(bar, losses)
                if at.total_steps % test_interval == 0:
                    self._validate_quickly(f"{title}, step {at.step}")
                # A run too short for the heads to settle is to train the backbone, too.
                if self.freeze == "auto" and at.total_steps >= max(self.epochs * steps // 2, 1):
                    self._unfreeze("half of the steps are done")
                if at.total_steps % dump_interval == 0:
                    self._require_finite(losses["loss"].item())
                    self._save()
        self._end_epoch(title)

    def _end_epoch(self, title: str) -> None:
        """Validate, write the epoch's model and the resume point."""
        at, scores = self.progress, {}
        for name, (loader, count) in self.validation.items():
            predictions = self._predict(loader)
            if name == "category":
                loss, accuracy = self._report(predictions, title)
            scores[name] = retrieval_score(
                predictions, count, self.palette_weight, name == "item", self.distributed
            )
        self._keep(loss, accuracy, scores)
        at.epoch += 1
        at.step = 0
        self._save(finished=at.epoch > self.epochs)

    def step(
        self, images: Tensor, categories: Tensor, items: Tensor, total: int
    ) -> dict[str, Tensor]:
        """One step; nothing in it waits for the device, but for the metric loss's library.

        Parameters
        ----------
        images : this process's pictures of the batch, n x H x W x 3, uint8
        categories, items : n, int64; -1 where unknown
        total : pictures of the whole batch

        Returns
        -------
        The losses and the accuracy of the whole batch: scalars, see `TrainingLoss`.
        """
        at, gather = self.progress, self.distributed.all_gather
        x = self.net.normalize(copy_to(self.device, images))
        labels = [copy_to(self.device, part) for part in (categories, items)]
        with autocast(self.device, self.amp):
            logits, embedding, _ = self.wrapped(x)
        parts = [gather(part, total) for part in (logits, embedding, *labels)]
        losses = self.loss(*parts, total - self.batches.metric_pictures)
        warm = at.total_steps - at.unfrozen
        factor = rate_factor(at.total_steps, warm, self.batches.steps(), self.epochs)
        self.updater.step(losses["loss"], factor)
        return {name: value.detach() for name, value in losses.items()}

    def _predict(self, loader: DataLoader) -> Predictions:
        with explain_out_of_memory("TEST_BATCH_SIZE"):
            return predict(self.net, self.palette, loader, self.device, self.amp)

    def _save(self, finished: bool = False) -> None:
        if self.distributed.is_main:
            self.resume_point.save(self.progress, finished)
        self.distributed.barrier()

    def _say(self, text: str) -> None:
        if self.distributed.is_main:
            tqdm.write(text)

    def _plot(self, values: Mapping[str, float]) -> None:
        """Add a point to each of the named curves."""
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, self.progress.total_steps)

    def _log(self, bar: tqdm, losses: dict[str, Tensor]) -> None:
        values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
        self._require_finite(values["loss"])
        self._plot({f"train/{name}": value for name, value in values.items()})
        self._plot({"learning rate": self.updater.optimizer.param_groups[0]["lr"]})
        shown = {name: f"{value:.3f}" for name, value in values.items()}
        bar.set_postfix({**shown, "backbone": "frozen"} if self.progress.frozen else shown)

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {self.progress.total_steps}; start again with a lower"
                f" LR, or with AMP=off (delete {self.resume_point.path} if it exists)"
            )

    def _report(self, predictions: Predictions, title: str) -> tuple[float, float]:
        loss, accuracy = loss_and_accuracy(predictions, self.distributed)
        self._plot({"validation/cross entropy": loss, "validation/accuracy": accuracy})
        frozen = ", backbone frozen" if self.progress.frozen else ""
        self._say(f"{title}: validation loss {loss:.4f}, accuracy {accuracy:.2%}{frozen}")
        self._require_finite(loss)
        return loss, accuracy

    def _validate_quickly(self, title: str) -> None:
        result = self._report(self._predict(self.quick_loader), title)
        if self.freeze == "auto" and self.progress.frozen:
            self.progress.history.append(result)
            if is_stable(self.progress.history):
                self._unfreeze("loss and accuracy are stable")

    def _unfreeze(self, reason: str) -> None:
        """Train the backbone from here on, if it was frozen."""
        if self.progress.frozen:
            self._say(f"{reason}: the backbone is trained from here on")
            self.progress.frozen = False
            self.progress.unfrozen = self.progress.total_steps
            self._freeze_backbone(False)

    def _keep(self, loss: float, accuracy: float, scores: dict[str, tuple[float, int]]) -> None:
        """Write the epoch's model, and mark it if it is the best so far.

        The best one retrieves best: the mean of the tasks, for categories' pictures are many more.
        """
        at = self.progress
        self._plot({f"validation/{SCORES[name]}": score for name, (score, _) in scores.items()})
        shown = ", ".join(
            f"{SCORES[name]} {f'{score:.2%}' if count else 'not measured'}"
            for name, (score, count) in scores.items()
        )
        self._say(f"epoch {at.epoch}/{self.epochs}: validation {shown}")
        score = balanced_score(list(scores.values()))
        result = {"epoch": at.epoch, "score": score, "accuracy": accuracy, "loss": loss}
        result |= {name: value for name, (value, _) in scores.items()}
        better = not at.best or (score, -loss) > (at.best["score"], -at.best["loss"])
        if better:
            at.best = result
        if self.distributed.is_main:
            path = self.models / f"model_{at.epoch}_final.pth.tar"
            facts = {"validation": result, "held_out": self.split}
            save_checkpoint(path, self.net, self.resume_point.architecture, **facts)
            if better:
                mark_best(path)


def synchronise_norms(net: EmbeddingNet, device: torch.device) -> EmbeddingNet:
    """Have batch norms use the statistics of all processes' pictures; on CUDA only."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)
    if any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        print("batch norms use the pictures of each process alone; only on CUDA are they joined")
    return net


def mark_best(model: Path) -> None:
    """Copy an epoch's model to model_best.pth.tar beside it."""
    with atomic_write(model.with_name(BEST)) as part:
        shutil.copyfile(model, part)
