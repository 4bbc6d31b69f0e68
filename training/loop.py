"""One training run: steps, validations, checkpoints."""

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

from config import Config
from evaluation.metrics import balanced_score
from net import EmbeddingNet, SplitRecord, save_checkpoint
from network.color import Palette
from network.device import autocast, copy_to, explain_out_of_memory, to_device
from network.distributed import Distributed
from pictures.samplers import TrainBatches
from pictures.splits import Splits
from training.loaders import build_loaders
from training.losses import build_loss
from training.optimizer import build_optimizer, rate_factor, update
from training.resume import (
    DATA,
    RESUME_POINT,
    Progress,
    explain_damage,
    identity_of,
    read_resume_point,
    require_same,
)
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
    config : the settings of the run
    splits : the pictures
    net : what is trained
    device, amp : where the network lies, and the 16-bit type it computes in
    distributed : the processes that train together; each loader gives this one its part
    loss, optimizer, scaler : what is minimised, and see `update`
    loader, batches : the training pictures, and the sampler of whole batches
    quick_loader : some validation pictures with categories
    validation : by "category" and, where there are items, by "item": all validation pictures, and
        how many of all processes', from the first on, have a retrieval score
    resume_point, identity, parts : its file, what a resumed run must share, and by name what has
        a state beside the network
    progress : how far the run is
    """

    config: Config
    splits: Splits
    net: EmbeddingNet
    device: torch.device
    amp: torch.dtype | None
    distributed: Distributed

    def __post_init__(self) -> None:
        config, splits, device = self.config, self.splits, self.device
        metric_size = config.TRIPLET_BATCH_SIZE if config.metric_weight else 0
        how = config.TRAIN_BATCH_SIZE, metric_size, config.inshop_share, config.PER_CLASS
        shard = self.distributed.shard
        self.batches = TrainBatches(splits.train, splits.labelled, *how, config.SEED, shard)
        self.loss = build_loss(config, splits, self.net).to(device)
        if self.distributed.world_size > 1:
            if device.type == "cuda":  # else batch norms see the pictures of one process alone
                self.net = nn.SyncBatchNorm.convert_sync_batchnorm(self.net)
            torch.manual_seed(config.SEED + self.distributed.rank)  # of what dropout draws
        self.optimizer = build_optimizer(config, self.net, self.loss.metric)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp == torch.float16)
        self.loader, self.quick_loader, self.validation = build_loaders(
            config, splits, self.batches, self.net, device, self.distributed
        )
        self.models = config.DATASET_BASE / "models"
        self.resume_point = self.models / RESUME_POINT
        self.identity = identity_of(config, splits, f"{self.amp or torch.float32} on {device.type}")
        self.parts: dict[str, Any] = {"metric": self.loss.metric, "optimizer": self.optimizer}
        self.parts["scaler"] = self.scaler
        self.progress = Progress(frozen=config.FREEZE_PARAM != "false")
        self.palette = to_device(Palette(), device)
        self.writer: Any = None
        self._freeze_backbone(self.progress.frozen)

    def _freeze_backbone(self, frozen: bool) -> None:
        """Freeze or unfreeze it; several processes average the gradients of what is trained."""
        self.net.freeze_backbone(frozen)
        self.wrapped: nn.Module = self.net
        if dist.is_initialized():
            # Static: some timm models have parameters that their features do not use.
            self.wrapped = DistributedDataParallel(self.net, static_graph=True)

    def resume(self) -> None:
        """Continue from the resume point; a `UserError` if it is of a run with other settings."""
        content = read_resume_point(self.resume_point)
        with explain_damage(self.resume_point):
            require_same(self.resume_point, dict(content["identity"]), self.identity)
            self.net.load_state_dict(content["state_dict"])
            for name, part in self.parts.items():
                part.load_state_dict(content[name])
            torch.set_rng_state(content["rng"])
            if content["cuda_rng"]:  # of one card; earlier versions wrote those of all cards
                torch.cuda.set_rng_state(content["cuda_rng"][0], self.device)
        self.progress = content["progress"]
        if not self.distributed.is_main:  # the file has the state of the main process only
            done = self.distributed.world_size * self.progress.total_steps  # draws no number twice
            torch.manual_seed(torch.initial_seed() + self.distributed.rank + done)
        self._freeze_backbone(self.progress.frozen)

    def run(self) -> None:
        """Train to the end of the last epoch."""
        at, epochs = self.progress, self.config.EPOCH
        if at.epoch > epochs:
            return
        at.log = at.log or time.strftime("%Y-%m-%d_%H-%M-%S")
        folder = self.models / "tensorboard"
        if self.distributed.is_main:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

            self.writer = SummaryWriter(str(folder / at.log), purge_step=at.total_steps + 1)
        print(f"curves: tensorboard --logdir {folder}")
        if not at.total_steps:
            self._report(self._predict(self.validation["category"][0]), "before training")
        while at.epoch <= epochs:
            self._epoch()
        if self.writer:
            self.writer.close()

    @property
    def steps_done(self) -> int:
        """As of now; a resumed run may have begun with more or fewer pictures, thus steps."""
        return (self.progress.epoch - 1) * self.batches.steps() + self.progress.step

    def _epoch(self) -> None:
        at, config = self.progress, self.config
        self.batches.enter(at.epoch, at.step)
        self.net.train()
        steps, title = self.batches.steps(), f"epoch {at.epoch}/{config.EPOCH}"
        with progress_bar(steps, title, "step", at.step, self.distributed.is_main) as bar:
            for images, categories, items in self.loader:
                losses = self.step(images, categories, items, self.batches.size(at.step))
                at.step += 1
                at.total_steps += 1
                bar.update()
                if at.total_steps % config.LOG_INTERVAL == 0:
                    self._log(bar, losses)
                if at.total_steps % config.TEST_INTERVAL == 0:
                    self._validate_quickly(f"{title}, step {at.step}")
                # A run too short for the heads to settle is to train the backbone, too.
                late = self.steps_done >= max(config.EPOCH * steps // 2, 1)
                if late and config.FREEZE_PARAM == "auto":
                    self._unfreeze("half of the steps are done")
                if at.total_steps % config.DUMP_INTERVAL == 0:
                    self._require_finite(losses["loss"].item())
                    self._save()
        self._end_epoch(title)

    def _end_epoch(self, title: str) -> None:
        """Validate, write the epoch's model, and mark it if it is the best so far.

        The best one retrieves best: the mean of the tasks, for categories' pictures are many more.
        """
        at, config, scores = self.progress, self.config, {}
        weight = config.PALETTE_WEIGHT if config.PALETTE else 0.0
        for name, (loader, count) in self.validation.items():
            predictions = self._predict(loader)
            if name == "category":
                loss, accuracy = self._report(predictions, title)
            by_item = name == "item"
            scores[name] = retrieval_score(predictions, count, weight, by_item, self.distributed)
        self._plot({f"validation/{SCORES[name]}": score for name, (score, _) in scores.items()})
        shown = ", ".join(
            f"{SCORES[name]} {f'{score:.2%}' if count else 'not measured'}"
            for name, (score, count) in scores.items()
        )
        tqdm.write(f"{title}: validation {shown}")
        score = balanced_score(list(scores.values()))
        result = {"epoch": at.epoch, "score": score, "accuracy": accuracy, "loss": loss}
        result |= {name: value for name, (value, _) in scores.items()}
        better = not at.best or (score, -loss) > (at.best["score"], -at.best["loss"])
        if better:
            at.best = result
        if self.distributed.is_main:
            path = self.models / f"model_{at.epoch}_final.pth.tar"
            split = SplitRecord(
                inshop=config.ENABLE_INSHOP_DATASET,
                val_share=config.VAL_SHARE,
                categories=config.CATEGORIES,
                digest=self.identity[DATA],
            )
            save_checkpoint(path, self.net, validation=result, held_out=split)
            if better:
                mark_best(path)
        at.epoch += 1
        at.step = 0
        self._save(finished=at.epoch > config.EPOCH)

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
        warm, factor = at.total_steps - at.unfrozen, None
        if self.config.OPTIMIZER == "adamw":
            factor = rate_factor(self.steps_done, warm, self.batches.steps(), self.config.EPOCH)
        update(self.net, self.optimizer, self.scaler, losses["loss"], factor)
        return {name: value.detach() for name, value in losses.items()}

    def _predict(self, loader: DataLoader) -> Predictions:
        with explain_out_of_memory("TEST_BATCH_SIZE"):
            return predict(self.net, self.palette, loader, self.device, self.amp)

    def _save(self, finished: bool = False) -> None:
        """Write the resume point; `finished` when there is nothing left to resume."""
        if self.distributed.is_main:
            on_cuda = self.device.type == "cuda"
            save_checkpoint(
                self.resume_point,
                self.net,
                **{name: part.state_dict() for name, part in self.parts.items()},
                rng=torch.get_rng_state(),
                cuda_rng=[torch.cuda.get_rng_state(self.device)] if on_cuda else [],
                progress=vars(self.progress),
                identity=self.identity,
                finished=finished,
            )
        self.distributed.barrier()

    def _plot(self, values: Mapping[str, float]) -> None:
        """Add a point to each of the named curves."""
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, self.progress.total_steps)

    def _log(self, bar: tqdm, losses: dict[str, Tensor]) -> None:
        values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
        self._require_finite(values["loss"])
        self._plot({f"train/{name}": value for name, value in values.items()})
        self._plot({"learning rate": self.optimizer.param_groups[0]["lr"]})
        shown = {name: f"{value:.3f}" for name, value in values.items()}
        bar.set_postfix({**shown, "backbone": "frozen"} if self.progress.frozen else shown)

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {self.progress.total_steps}; start again with a lower"
                f" LR, or with AMP=off (delete {self.resume_point} if it exists)"
            )

    def _report(self, predictions: Predictions, title: str) -> tuple[float, float]:
        loss, accuracy = loss_and_accuracy(predictions, self.distributed)
        self._plot({"validation/cross entropy": loss, "validation/accuracy": accuracy})
        frozen = ", backbone frozen" if self.progress.frozen else ""
        tqdm.write(f"{title}: validation loss {loss:.4f}, accuracy {accuracy:.2%}{frozen}")
        self._require_finite(loss)
        return loss, accuracy

    def _validate_quickly(self, title: str) -> None:
        result = self._report(self._predict(self.quick_loader), title)
        if self.config.FREEZE_PARAM == "auto" and self.progress.frozen:
            self.progress.history.append(result)
            if is_stable(self.progress.history):
                self._unfreeze("loss and accuracy are stable")

    def _unfreeze(self, reason: str) -> None:
        """Train the backbone from here on, if it was frozen."""
        if self.progress.frozen:
            tqdm.write(f"{reason}: the backbone is trained from here on")
            self.progress.frozen = False
            self.progress.unfrozen = self.progress.total_steps
            self._freeze_backbone(False)


def mark_best(model: Path) -> None:
    """Copy an epoch's model to model_best.pth.tar beside it."""
    with atomic_write(model.with_name(BEST)) as part:
        shutil.copyfile(model, part)
