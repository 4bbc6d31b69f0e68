"""How training changes the weights: the optimizer, its learning rate, clipped gradients."""

import math

import torch
from torch import Tensor, nn

from config import Config
from net import EmbeddingNet
from network.backbones import layer_depths

PROXY_FACTOR = 100.0  # learning rate of proxies over the backbone's (Kim et al., section 4.1)
WARM_UP = 0.5  # epochs
MAX_NORM = 10.0  # of clipped gradients


def build_optimizer(config: Config, net: EmbeddingNet, metric: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the settings, of the network's parameters and the metric loss's proxies.

    With adamw, proxies (also the rows of a cosine classifier) have `PROXY_FACTOR` times the rate
    LR, the backbone BACKBONE_LR times, and there each layer of a transformer LAYER_DECAY times that
    of the layer above it (Bao et al., BEiT, ICLR 2022). On CUDA one kernel updates all parameters.
    """
    lr = config.LR
    if config.OPTIMIZER == "sgd":
        parameters = [*net.parameters(), *metric.parameters()]
        return torch.optim.SGD(parameters, lr=lr, momentum=config.MOMENTUM)
    proxies = [*(net.fc2.parameters() if net.normalised else ()), *metric.parameters()]
    known = {id(parameter) for parameter in proxies}
    depths = layer_depths(net.backbone)
    top = max(depths.values(), default=0)
    groups: dict[float, list[nn.Parameter]] = {lr: []}
    for name, parameter in net.named_parameters():
        if id(parameter) not in known:
            below = top - depths.get(parameter, top)
            of_backbone = name.startswith("backbone.")
            rate = lr * config.BACKBONE_LR * config.LAYER_DECAY**below if of_backbone else lr
            groups.setdefault(rate, []).append(parameter)
    parts = [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]
    return torch.optim.AdamW(
        [*parts, {"params": proxies, "lr": PROXY_FACTOR * lr, "weight_decay": 0.0}],
        weight_decay=1e-4,
        fused=next(net.parameters()).device.type == "cuda" or None,
    )


def update(
    net: EmbeddingNet,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loss: Tensor,
    factor: float | None,
) -> None:
    """Change the weights by the gradient of a loss.

    Parameters
    ----------
    net, optimizer : what is trained, see `build_optimizer`
    scaler : multiplies the loss in fp16, so that small gradients do not become 0
    loss : scalar
    factor : of the learning rate, and gradients are clipped; None: neither
    """
    if factor is not None:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    if factor is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(net.parameters(), MAX_NORM)
    scaler.step(optimizer)
    scaler.update()


def rate_factor(step: int, warm: int, steps: int, epochs: int) -> float:
    """The factor of the learning rate: linear warm-up, then half a cosine down to 0.

    Of `step` steps done since the beginning, and `warm` since the backbone has been trained; an
    epoch has `steps`.
    """
    warmed = min(1.0, (warm + 1) / max(1.0, WARM_UP * steps))
    return warmed * 0.5 * (1 + math.cos(math.pi * step / (steps * epochs)))
