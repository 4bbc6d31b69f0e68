"""Models of three libraries, each fed in its own way, fused in one feature database."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import feature_extractor
from config import Config
from net import initial_net, save_checkpoint
from network.architecture import new_architecture
from search import Searcher

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 1, "width": 64, "patch_size": 12, "head_width": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}
MODELS = ("model_best.pth.tar", "timm.pth.tar", "words.pth.tar")


@pytest.fixture
def base(few_photos: Path, tmp_path: Path) -> Path:
    """Pictures with a ResNet18 of 64 px, a vision transformer of 160 px and a CLIP of 48 px."""
    for package in ("timm", "open_clip"):
        pytest.importorskip(package)
    base = Path(shutil.copytree(few_photos, tmp_path / "data"))
    folder = tmp_path / "clip"
    folder.mkdir()
    config = {"model_cfg": TINY, "preprocess_cfg": {"resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    backbones = "timm/test_vit2", f"open_clip/local-dir:{folder}"
    for name, backbone in zip(MODELS[1:], backbones, strict=True):
        settings = Config(BACKBONE=backbone, INTER_DIM=0)
        network = new_architecture(settings, ["coat", "hat"])
        net = initial_net(network, "none")
        save_checkpoint(base / "models" / name, net, held_out=None)
    return base


def features(base: Path, models: str) -> list[np.ndarray]:
    flags = ["--dataset-base", str(base), "--models", models, "--num-workers", "0"]
    flags += ["--device", "cpu", "--amp", "off", "--color-top-n", "3"]
    assert feature_extractor.main(flags) == 0
    names = ("all_feat.npy", "all_feat_2.npy", "all_feat_3.npy")
    return [np.load(base / name) for name in names if (base / name).exists()]


def test_each_makes_what_it_makes_alone_and_a_picture_is_found_by_all(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [features(base, model)[0] for model in MODELS]
    decoded, read = [], data.read_picture
    monkeypatch.setattr(data, "read_picture", lambda *given: decoded.append(given) or read(*given))
    together = features(base, ",".join(MODELS))
    assert len(together) == 3
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(decoded) == len(together[0]) == len(alone[0])

    config = Config(DATASET_BASE=base, MODELS=",".join(MODELS), DEVICE="cpu")
    with Searcher(base, config) as searcher:
        path = searcher.database.paths[5]
        first, second, *_ = searcher.search(base / path, with_own=True)
    assert first.path == path
    deep = [name for name in first.parts if name.startswith("deep")]
    assert len(deep) == 3
    assert all(first.parts[name] < 1e-3 < second.parts[name] for name in deep)
