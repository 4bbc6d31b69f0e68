"""The optimizer's learning rates, and how a step uses them."""

import math

import pytest
import torch

from net import Architecture, initial_net
from training.losses import build_metric_loss
from training.optimizer import MAX_NORM, Updater, build_optimizer, rate_factor


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
    optimizer = build_optimizer("adamw", net, metric, 0.001, 0.9)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(net.parameters())) + 1
    assert rates[id(net.fc2.weight)] == rates[id(metric.loss.proxies)] == pytest.approx(0.1)
    assert rates[id(net.fc.weight)] == rates[id(net.backbone[0].weight)] == 0.001
    plain = initial_net(Architecture("resnet18", 8, ["a", "b"], 40, 32), "none")
    groups = build_optimizer("adamw", plain, metric, 0.001, 0.9).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(plain.fc2.weight)] == 0.001  # a linear classifier's rows are no proxies
    sgd = build_optimizer("sgd", net, metric, 0.01, 0.9)
    assert {group["lr"] for group in sgd.param_groups} == {0.01}


def test_a_step_clips_gradients_and_scales_the_rate() -> None:
    """SGD without momentum shows the gradient: the weights move by rate * gradient."""
    net = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    loss = net(torch.tensor([[30.0, 40.0]])).sum()
    Updater(net, optimizer, scaler, scheduled=True).step(loss, factor=0.1)
    torch.testing.assert_close(net.weight, -0.05 * MAX_NORM * torch.tensor([[0.6, 0.8]]))
    torch.nn.init.zeros_(net.weight)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    Updater(net, optimizer, scaler, scheduled=False).step(net(torch.ones(1, 2)).sum(), factor=0.1)
    torch.testing.assert_close(net.weight, torch.full((1, 2), -0.5))
