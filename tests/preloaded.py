"""Imported by the process that the tests fork scripts from, see `conftest.Run`."""

import importlib

MODULES = (
    "data", "train", "feature_extractor", "kmeans", "retrieval", "evaluate",
    "torch.utils.tensorboard", "torch.fx.experimental.optimization",
    "pytorch_metric_learning.samplers",
)  # fmt: skip

for name in MODULES:
    importlib.import_module(name)
