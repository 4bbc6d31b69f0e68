"""The optimizer's learning rates, and how a step uses them."""

import math

import pytest
import torch

from config import Config
from net import Architecture, EmbeddingNet, initial_net
from network.backbones import checkpoint_gradients
from tests.network.test_parity import TOWERS
from training.losses import build_metric_loss
from training.optimizer import MAX_NORM, build_optimizer, rate_factor, update
from utils import UserError


def test_the_learning_rate_warms_up_and_falls_to_0() -> None:
    rates = [rate_factor(step, step, 20, 3) for step in range(60)]
    assert rates[0] == pytest.approx(0.1)  # a tenth of half an epoch's steps
    assert rates[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 9 / 60)))
    assert max(rates) == rates[9]
    assert rates[30] == pytest.approx(0.5)
    assert rates[-1] < 0.001
    assert rate_factor(30, 0, 20, 3) == pytest.approx(0.05)  # unfrozen in step 30: warmed up again


def test_adamw_moves_proxies_a_hundred_times_faster() -> None:
    network = Architecture("resnet18", 8, ["a", "b"], 40, 32, normalised=True)
    net = initial_net(network, "none")
    metric = build_metric_loss("proxy_anchor", 4, False, 5, 8)
    optimizer = build_optimizer(Config(LR=0.001), net, metric)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(net.parameters())) + 1
    assert rates[id(net.fc2.weight)] == rates[id(metric.loss.proxies)] == pytest.approx(0.1)
    assert rates[id(net.fc.weight)] == rates[id(net.backbone[0].weight)] == 0.001
    plain = initial_net(Architecture("resnet18", 8, ["a", "b"], 40, 32), "none")
    groups = build_optimizer(Config(LR=0.001), plain, metric).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(plain.fc2.weight)] == 0.001  # a linear classifier's rows are no proxies
    sgd = build_optimizer(Config(OPTIMIZER="sgd", LR=0.01), net, metric)
    assert {group["lr"] for group in sgd.param_groups} == {0.01}


def test_a_step_clips_gradients_and_scales_the_rate() -> None:
    """SGD without momentum shows the gradient: the weights move by rate * gradient."""
    net = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    loss = net(torch.tensor([[30.0, 40.0]])).sum()
    update(net, optimizer, scaler, loss, factor=0.1)
    torch.testing.assert_close(net.weight, -0.05 * MAX_NORM * torch.tensor([[0.6, 0.8]]))
    torch.nn.init.zeros_(net.weight)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    update(net, optimizer, scaler, net(torch.ones(1, 2)).sum(), factor=None)
    torch.testing.assert_close(net.weight, torch.full((1, 2), -0.5))


def transformer(kind: str) -> EmbeddingNet:
    """A transformer of timm with 8 blocks, or an image-text model with 2."""
    pytest.importorskip("open_clip")
    torch.manual_seed(0)
    names = {"backbone": "timm/test_vit2"} if kind == "timm" else {
        "backbone": "open_clip/local-dir:.", "open_clip": {"model_cfg": TOWERS["ViT"]}
    }  # fmt: skip
    return initial_net(Architecture(**names, **SIZES, pooling="model"), "none")


SIZES = {"inter_dim": 8, "categories": ["a", "b"], "img_size": 64, "crop_size": 64}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "timm",
            [
                "model.pos_embed",
                *(f"model.blocks.{i}.attn.qkv.bias" for i in range(8)),
                "model.fc_norm.weight",
            ],
        ),
        (
            "open_clip",
            [
                "model.visual.conv1.weight",
                "model.visual.transformer.resblocks.0.ln_1.weight",
                "model.visual.transformer.resblocks.1.ln_1.weight",
                "model.visual.proj",
            ],
        ),
    ],
)
def test_rates_fall_from_the_last_layer_of_a_transformer_to_the_first(kind, names) -> None:
    net = transformer(kind)
    metric = build_metric_loss("proxy_anchor", 4, False, 5, 8)
    config = Config(LR=0.1, BACKBONE_LR=0.5, LAYER_DECAY=0.25)
    groups = build_optimizer(config, net, metric).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(net.parameters())) + 1
    assert rates[id(net.fc.weight)] == rates[id(net.fc2.weight)] == 0.1
    found = [rates[id(net.backbone.get_parameter(name))] for name in names]
    expected = [0.05 * 0.25**below for below in range(len(names))][::-1]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["timm", "open_clip"])
def test_gradients_are_the_same_with_fewer_activations_stored(kind: str) -> None:
    x, found = torch.randn(2, 3, 64, 64), []
    for checkpointed in (False, True):
        net, sizes = transformer(kind), []
        if checkpointed:
            checkpoint_gradients(net.backbone, kind)
        stored = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor, lambda same: same
        )
        with stored:
            loss = net.train()(x)[0].square().sum()
        loss.backward()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        found.append((gradients, sum(sizes)))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert found[1][1] < 0.5 * found[0][1]


def test_torchvision_stores_all_activations() -> None:
    net = initial_net(Architecture(backbone="resnet18", **SIZES), "none")
    with pytest.raises(UserError, match="GRAD_CHECKPOINTING: resnet18 has none"):
        checkpoint_gradients(net.backbone, "resnet18")
