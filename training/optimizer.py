"""How training changes the weights: the optimizer, its learning rate, clipped gradients."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from net import EmbeddingNet
from network.backbones import layer_depths

PROXY_FACTOR = 100.0  # learning rate of proxies over the backbone's (Kim et al., section 4.1)
WARM_UP = 0.5  # epochs
MAX_NORM = 10.0  # of clipped gradients


@dataclass(frozen=True)
class Updater:
    """Changes the weights after each forward pass.

    Attributes
    ----------
    net : what is trained
    optimizer : see `build_optimizer`
    scaler : multiplies the loss in fp16, so that small gradients do not become 0
    scheduled : the learning rate follows `rate_factor`, and gradients are clipped
    """

    net: EmbeddingNet
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    scheduled: bool

    def step(self, loss: Tensor, factor: float) -> None:
        """Change the weights by the gradient of a loss; `factor` is that of the learning rate."""
        if self.scheduled:
            for group in self.optimizer.param_groups:
                group["lr"] = factor * group.setdefault("initial_lr", group["lr"])
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if self.scheduled:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), MAX_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def build_optimizer(
    kind: str,
    net: EmbeddingNet,
    metric: nn.Module,
    lr: float,
    momentum: float,
    backbone_lr: float = 1.0,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """An optimizer of the network's parameters and the metric loss's proxies.

    Parameters
    ----------
    kind : adamw or sgd
    net, metric : on their device; on CUDA one kernel of AdamW updates all parameters
    lr : learning rate; with adamw, proxies (also the rows of a cosine classifier) have
        `PROXY_FACTOR` times that
    momentum : of SGD
    backbone_lr, layer_decay : with adamw, factors of the backbone's rate, and of that of each layer
        of a transformer below its last (Bao et al., BEiT, ICLR 2022)
    """
    if kind == "sgd":
        parameters = [*net.parameters(), *metric.parameters()]
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    proxies = [*(net.fc2.parameters() if net.normalised else ()), *metric.parameters()]
    known = {id(parameter) for parameter in proxies}
    depths = layer_depths(net.backbone)
    top = max(depths.values(), default=0)
    groups: dict[float, list[nn.Parameter]] = {lr: []}
    for name, parameter in net.named_parameters():
        if id(parameter) not in known:
            part, _, own = name.partition(".")
            below = top - depths.get(own, top)
            rate = lr * backbone_lr * layer_decay**below if part == "backbone" else lr
            groups.setdefault(rate, []).append(parameter)
    parts = [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]
    return torch.optim.AdamW(
        [*parts, {"params": proxies, "lr": PROXY_FACTOR * lr, "weight_decay": 0.0}],
        weight_decay=1e-4,
        fused=next(net.parameters()).device.type == "cuda" or None,
    )


def rate_factor(step: int, warm: int, steps: int, epochs: int) -> float:
    """The factor of the learning rate: linear warm-up, then half a cosine down to 0.

    Parameters
    ----------
    step : steps done since the beginning
    warm : steps done since the backbone has been trained
    steps : of an epoch
    epochs : of the run
    """
    warmed = min(1.0, (warm + 1) / max(1.0, WARM_UP * steps))
    return warmed * 0.5 * (1 + math.cos(math.pi * step / (steps * epochs)))
