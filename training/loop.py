"""One training run: steps, validations, curves, checkpoints, and how to go on after a stop."""

import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from evaluation.metrics import pooled_score
from net import Architecture, EmbeddingNet, FeatureNet, read_checkpoint, save_checkpoint
from network.color import Palette
from network.device import autocast, to_device
from network.distributed import Distributed
from pictures.samplers import TrainBatches
from training.losses import LabelledLoss, SampledTriplets, rate
from training.validation import is_stable, retrieval_score, validate
from utils import UserError, atomic_write, progress_bar

CLIP = 10.0  # norm of the gradient, at most
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
    unfrozen : total steps when it was let go
    best : epoch and validation of the best epoch so far
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


class NoWriter:
    """Takes curves and keeps none."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@dataclass
class Trainer:
    """One training run.

    Attributes
    ----------
    models : folder of the checkpoints
    net, network : what is trained
    optimizer : over all parameters of `net`; those of a frozen backbone get no gradient
    loader, batches : the training pictures and the sampler behind them
    part_loader, val_loader : of some and of all held-out pictures with categories
    palette_weight : of the palette's distance beside the embedding's; the epoch that ranks best by
        both is the best
    score_loaders : of the held-out pictures that choose the best epoch, by "category", by "item"
    device, amp : where and in which 16-bit type the forward pass runs
    smoothing : of the labels of cross entropy
    metric, metric_weight, of_items : the loss beside cross entropy, on items or on categories
    scheduled : warm-up, decay and clipped gradients, see `recipe.rate`
    epochs : of the whole run
    freeze : the setting FREEZE_PARAM
    identity : settings and data that a resumed run must share
    held_out : what `splits.read_splits` was asked and gave, for the models' files
    distributed : the processes that train together; each reads its part
    progress : where the run stands
    """

    models: Path
    net: EmbeddingNet
    network: Architecture
    optimizer: torch.optim.Optimizer
    loader: DataLoader
    batches: TrainBatches
    part_loader: DataLoader
    val_loader: DataLoader
    palette_weight: float
    score_loaders: dict[str, DataLoader]
    device: torch.device
    amp: torch.dtype | None
    smoothing: float
    metric: SampledTriplets | LabelledLoss
    metric_weight: float
    of_items: bool
    scheduled: bool
    epochs: int
    freeze: str
    identity: dict[str, Any]
    held_out: dict[str, Any]
    distributed: Distributed
    progress: Progress

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)
        self._freeze_backbone(self.progress.frozen)

    def _freeze_backbone(self, frozen: bool) -> None:
        """Freeze or unfreeze it; several processes average the gradients of what is trained."""
        self.net.freeze_backbone(frozen)
        self.joined: nn.Module = self.net
        if dist.is_initialized():
            self.joined = DistributedDataParallel(
                self.net,
                # Synchronised batch norms have the same statistics in all processes already.
                broadcast_buffers=self.device.type == "cpu",
                # Some timm models have parameters that their features do not use.
                static_graph=True,
            )

    @property
    def resume_point(self) -> Path:
        """The file that `save` writes and `resume` reads."""
        return self.models / RESUME_POINT

    def save(self, finished: bool = False) -> None:
        """Write the resume point."""
        if self.distributed.is_main:
            self._save(finished)
        self.distributed.barrier()

    def _save(self, finished: bool) -> None:
        save_checkpoint(
            self.resume_point,
            self.net,
            self.network,
            metric=self.metric.state_dict(),
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
                f"{self.resume_point}: a run that stopped in epoch {content['progress'].epoch};"
                " go on with --resume, or delete the file to start anew"
            )

    def _read_resume_point(self) -> dict[str, Any]:
        content = read_checkpoint(self.resume_point)
        wanted = {"identity", "metric", "optimizer", "scaler", "rng", "cuda_rng", "progress"}
        wanted |= {"finished", "state_dict"}
        try:
            if not wanted <= set(content):
                raise ValueError(f"it has no {min(wanted - set(content))}")
            content["progress"] = TypeAdapter(Progress).validate_python(content["progress"])
            content["identity"] = dict(content["identity"])
        except (ValueError, TypeError) as error:
            raise self._no_resume_point(error) from None
        return content

    def _no_resume_point(self, error: Exception) -> UserError:
        reason = str(error).split("\n")[0]
        return UserError(
            f"{self.resume_point}: no resume point ({reason}); delete it to start anew"
        )

    def resume(self) -> None:
        """Take up the run where the resume point left it.

        Raises
        ------
        UserError : it is damaged, or of a run with other settings
        """
        content = self._read_resume_point()
        for name, value in self.identity.items():
            was = content["identity"].get(name)
            if was != value:
                raise UserError(
                    f"--resume: the run in {self.resume_point} has {name}={was}, this one {value};"
                    " set it as it was, or delete the file to start anew"
                )
        try:
            self.net.load_state_dict(content["state_dict"])
            self.metric.load_state_dict(content["metric"])
            self.optimizer.load_state_dict(content["optimizer"])
            for parameter, state in self.optimizer.state.items():  # torch would see it in a step
                memory = [x for x in state.values() if isinstance(x, Tensor) and x.ndim]
                if any(x.shape != parameter.shape for x in memory):
                    raise ValueError("the optimizer's state is of another network")
            self.scaler.load_state_dict(content["scaler"])
            torch.set_rng_state(content["rng"])
            if content["cuda_rng"]:
                torch.cuda.set_rng_state_all(content["cuda_rng"])
        except Exception as error:  # of many types, where something else is loaded
            raise self._no_resume_point(error) from None
        if not self.distributed.is_main:  # only the first one's state is kept
            torch.manual_seed(torch.initial_seed() + self.distributed.rank)
        self.progress = content["progress"]
        self._freeze_backbone(self.progress.frozen)
        best = self.models / f"model_{self.progress.best.get('epoch')}_final.pth.tar"
        if best.exists() and self.distributed.is_main:  # something else may have been marked since
            mark_best(best)

    def run(self, log_every: int, test_every: int, dump_every: int) -> None:
        """Train to the end of the last epoch; the intervals are in steps."""
        if self.progress.epoch > self.epochs:
            return
        self.progress.log = self.progress.log or time.strftime("%Y-%m-%d_%H-%M-%S")
        folder = self.models / "tensorboard" / self.progress.log
        writer = self._writer(folder)
        print(f"curves: tensorboard --logdir {folder.parent}")
        if not self.progress.total_steps:
            self._validate(self.val_loader, writer, "before training")
        while self.progress.epoch <= self.epochs:
            self._epoch(writer, log_every, test_every, dump_every)
        writer.close()

    def _writer(self, folder: Path) -> Any:
        """What takes the curves; nothing in all processes but the main one."""
        if not self.distributed.is_main:
            return NoWriter()
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        return SummaryWriter(str(folder), purge_step=self.progress.total_steps + 1)

    def _epoch(self, writer: Any, log_every: int, test_every: int, dump_every: int) -> None:
        at = self.progress
        self.batches.enter(at.epoch, at.step)
        self.net.train()
        title = f"epoch {at.epoch}/{self.epochs}"
        steps, shown = self.batches.steps(), self.distributed.is_main
        with progress_bar(steps, title, "step", at.step, shown) as bar:
            for batch in self.loader:
                losses = self._step(*batch, self.batches.size(at.step))
                at.step += 1
                at.total_steps += 1
                bar.update()
                if at.step == 1:
                    self._show_pictures(writer, batch[0])
                if at.total_steps % log_every == 0:
                    self._log(writer, bar, losses)
                if at.total_steps % test_every == 0:
                    result = self._validate(self.part_loader, writer, f"{title}, step {at.step}")
                    self._unfreeze_when_stable(result)
                # A run too short for the heads to settle is to train the backbone, too.
                half = max(self.epochs * self.batches.steps() // 2, 1)
                if self.freeze == "auto" and at.total_steps >= half:
                    self._unfreeze("half of the steps are done")
                if at.total_steps % dump_every == 0:
                    self._require_finite(losses["loss"].item())
                    self.save()
        loss, accuracy = self._validate(self.val_loader, writer, title)
        self._keep(writer, loss, accuracy)
        if self.freeze == "first":
            self._unfreeze("the first epoch is over")
        at.epoch += 1
        at.step = 0
        self.save(finished=at.epoch > self.epochs)

    def _step(
        self, images: Tensor, categories: Tensor, items: Tensor, total: int
    ) -> dict[str, Tensor]:
        """One step of the optimizer; returns the losses and the accuracy as scalars.

        The pictures are this rank's of the batch, which has `total`; the losses are the batch's.
        """
        count = total - self.batches.metric_pictures
        images = self.net.normalize(images.to(self.device, non_blocking=True))
        categories = categories.to(self.device, non_blocking=True)
        items = items.to(self.device, non_blocking=True)
        if self.scheduled:
            self._set_rate()
        with autocast(self.device, self.amp):
            logits, embedding, _ = self.joined(images)
        gather = self.distributed.all_gather
        logits, embedding = gather(logits, total), gather(embedding, total)
        categories, items = gather(categories, total), gather(items, total)
        logits, targets = logits[:count], categories[:count]
        classification = F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        loss, metric = classification, torch.zeros(())
        if self.metric_weight:
            labels = items if self.of_items else categories
            only = slice(count, None) if isinstance(self.metric, SampledTriplets) else slice(None)
            metric = self.metric(embedding[only], labels[only])
            loss = loss + self.metric_weight * metric
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if self.scheduled:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        right = (logits.argmax(1) == targets).float().mean()
        return {
            "loss": loss.detach(),
            "cross entropy": classification.detach(),
            "metric": metric.detach(),
            "accuracy": right,
        }

    def _say(self, text: str) -> None:
        if self.distributed.is_main:
            tqdm.write(text)

    def _set_rate(self) -> None:
        at = self.progress
        factor = rate(
            at.total_steps, at.total_steps - at.unfrozen, self.batches.steps(), self.epochs
        )
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])

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
        loss, accuracy = validate(self.net, loader, self.device, self.amp, self.distributed)
        writer.add_scalar("validation/cross entropy", loss, self.progress.total_steps)
        writer.add_scalar("validation/accuracy", accuracy, self.progress.total_steps)
        frozen = ", backbone frozen" if self.progress.frozen else ""
        self._say(f"{title}: validation loss {loss:.4f}, accuracy {accuracy:.2%}{frozen}")
        self._require_finite(loss)
        return loss, accuracy

    def _unfreeze_when_stable(self, result: tuple[float, float]) -> None:
        if self.freeze == "auto" and self.progress.frozen:
            self.progress.history.append(result)
            if is_stable(self.progress.history):
                self._unfreeze("loss and accuracy are stable")

    def _unfreeze(self, reason: str) -> None:
        """Train the backbone from here on, where it was frozen."""
        if self.progress.frozen:
            self._say(f"{reason}: the backbone is trained from here on")
            self.progress.frozen = False
            self.progress.unfrozen = self.progress.total_steps
            self._freeze_backbone(False)

    def _keep(self, writer: Any, loss: float, accuracy: float) -> None:
        """Write the epoch's model, and mark it where it is the best so far.

        The best is what retrieves best: the mean, over all held-out pictures that ask, of mAP@R by
        category and, where there are held-out items, of MRR by item.
        """
        at = self.progress
        features = to_device(FeatureNet(self.net, [Palette()], flip=False), self.device)
        machine = (self.device, self.amp, self.distributed)
        scores = {
            name: retrieval_score(features, self.palette_weight, loader, name == "item", *machine)
            for name, loader in self.score_loaders.items()
        }
        measures = {"category": "mAP@R by category", "item": "MRR by item"}
        for name, (score, _) in scores.items():
            writer.add_scalar(f"validation/{measures[name]}", score, at.total_steps)
        shown = ", ".join(f"{measures[name]} {score:.2%}" for name, (score, _) in scores.items())
        self._say(f"epoch {at.epoch}/{self.epochs}: held out, {shown}")
        # By pictures, not by tasks: the few of a handful of items would decide by chance.
        score = pooled_score(list(scores.values()))
        result = {"epoch": at.epoch, "score": score, "accuracy": accuracy, "loss": loss}
        result |= {name: value for name, (value, _) in scores.items()}
        path = self.models / f"model_{at.epoch}_final.pth.tar"
        better = not at.best or (score, -loss) > (at.best["score"], -at.best["loss"])
        if better:
            at.best = result
        if self.distributed.is_main:
            facts = {"validation": result, "held_out": self.held_out}
            save_checkpoint(path, self.net, self.network, **facts)
            if better:
                mark_best(path)

    def _show_pictures(self, writer: Any, images: Tensor, most: int = 12) -> None:
        """A few pictures of the metric loss for TensorBoard: triplets, or items, a row each."""
        from torchvision.utils import make_grid

        metric = images[len(images) - self.batches.metric_pictures :]
        if not len(metric):
            return
        across = self.batches.per_class or 3
        if not self.batches.per_class:  # anchors, positives, negatives -> a triplet a row
            metric = metric.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1)
        pixels = metric[: most // across * across].permute(0, 3, 1, 2)
        writer.add_image("metric loss", make_grid(pixels, nrow=across), self.progress.total_steps)


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
