"""Untrained embeddings against the library's own call: weights in a file, its own transform."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models, transforms

from config import Config
from data import eval_transform
from net import EmbeddingNet, initial_net, load_net, save_checkpoint
from network.architecture import new_architecture
from network.image_text import read_config
from utils import UserError

TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
TOWERS: dict[str, dict[str, Any]] = {
    "ViT": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "mean of tokens": {"embed_dim": 24, "vision_cfg": {**VIT, "pool_type": "avg"},
                       "text_cfg": TEXT, "quick_gelu": True},
    "ModifiedResNet": {"embed_dim": 32, "text_cfg": TEXT,
                       "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}},
    "timm": {"embed_dim": 64, "custom_text": True, "text_cfg": TEXT,
             "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit3",
                            "timm_pool": "map", "timm_proj": "none"}},
    "timm CNN": {"embed_dim": 20, "custom_text": True, "text_cfg": TEXT,
                 "vision_cfg": {"image_size": 64, "timm_model_name": "test_efficientnet",
                                "timm_pool": "avg", "timm_proj": "linear"}},
}  # fmt: skip
SIGLIP = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}


@pytest.fixture
def photo(shared: Path) -> Image.Image:
    """A real photo, of 3:4."""
    return Image.open(next((shared / "photos" / "validation").rglob("*.jpg"))).convert("RGB")


def moved(model: nn.Module) -> nn.Module:
    """A model whose zeros and ones are random, too, so that each of its parts shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for values in [*model.parameters(), *model.buffers()]:
            if values.is_floating_point() and values.max() - values.min() < 1e-3:
                values += 0.1 + 0.2 * torch.rand_like(values)
    return model.eval()


def build(backbone: str, weights: str, **settings: Any) -> tuple[EmbeddingNet, Any]:
    config = Config(BACKBONE=backbone, PRETRAINED=weights, INTER_DIM=0, NORMALIZE=False, **settings)
    network = new_architecture(config, ["Tee", "Skirt"])
    return initial_net(network, weights).eval(), network


@torch.inference_mode()
def assert_parity(
    net: EmbeddingNet, network: Any, photo: Image.Image, own: Callable[[Tensor], Tensor], x: Tensor
) -> None:
    """The embedding is the library's own call `own` on its own input `x`; there is a conv map."""
    images = eval_transform(**network.transform)(photo)[None]
    _, embedding, conv_map = net(net.normalize(images))
    expected = own(x[None])
    scale = expected.abs().max()
    torch.testing.assert_close(embedding / scale, expected / scale, rtol=0, atol=1e-5)
    assert conv_map.dim() == 4
    assert conv_map.shape[2] == conv_map.shape[3] > 1


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v3_small", "classifier.3"),
        ("convnext_tiny", "classifier.2"),
        ("densenet121", "classifier"),
        ("vit_b_32", "heads.head"),
    ],
)
def test_torchvision(name: str, last: str, photo: Image.Image, tmp_path: Path) -> None:
    model = moved(models.get_model(name, weights=None))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    net, network = build(name, str(tmp_path / "weights.pth"), POOLING="model", IMG_SIZE=232)
    where, _, leaf = last.rpartition(".")
    setattr(model.get_submodule(where), leaf, nn.Identity())
    norm = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    steps = [transforms.Resize(232), transforms.CenterCrop(224), transforms.ToTensor(), norm]
    assert_parity(net, network, photo, model, transforms.Compose(steps)(photo))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_resnet", None),
        ("test_efficientnet", 128),
        ("test_convnext", None),  # a norm behind the pooling
        ("mobilenetv3_small_050", None),  # a layer behind the pooling
        ("test_vit", None),  # class token
        ("test_vit", 96),  # position embeddings of another size
        ("test_vit2", None),  # mean of tokens
        ("test_vit3", None),  # attention pool, as SigLIP
        ("eva02_tiny_patch14_224", 112),
        ("swin_tiny_patch4_window7_224", None),
    ],
)
def test_timm(name: str, size: int | None, photo: Image.Image, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = moved(timm.create_model(name, num_classes=7))
    file = tmp_path / "model.safetensors"
    pytest.importorskip("safetensors.torch").save_file(model.state_dict(), file)
    sizes = {"CROP_SIZE": size} if size else {}
    net, network = build(f"timm/{name}", str(file), **sizes)
    if size and name.startswith(("test_vit", "eva")):
        again = timm.create_model(name, num_classes=7, dynamic_img_size=True)
        again.load_state_dict(model.state_dict())
        model = again.eval()
    facts = timm.data.resolve_model_data_config(model)
    facts |= {"input_size": (3, size, size)} if size else {}
    x = timm.data.create_transform(**facts)(photo)
    pooled = lambda x: model.forward_head(model.forward_features(x), pre_logits=True)  # noqa: E731
    assert_parity(net, network, photo, pooled, x)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Lays an open_clip model out as the hub does."""
    open_clip = pytest.importorskip("open_clip")

    def lay(tower: str, preprocess: dict[str, Any], file: str) -> Path:
        place = tmp_path / f"{tower} model"
        place.mkdir()
        config = {"model_cfg": TOWERS[tower], "preprocess_cfg": preprocess}
        (place / "open_clip_config.json").write_text(json.dumps(config))
        model = moved(open_clip.create_model(f"local-dir:{place}", load_weights=False))
        if file.endswith(".safetensors"):
            pytest.importorskip("safetensors.torch").save_file(model.state_dict(), place / file)
        else:
            torch.save(model.state_dict(), place / file)
        return place

    return lay


@pytest.mark.parametrize(
    ("tower", "preprocess", "size", "file"),
    [
        ("ViT", {}, None, "open_clip_pytorch_model.bin"),
        ("ViT", SIGLIP, 96, "open_clip_model.safetensors"),
        ("mean of tokens", {"resize_mode": "longest", "fill_color": 9}, None, "model.pth"),
        ("ModifiedResNet", {"interpolation": "bilinear"}, None, "model.safetensors"),
        ("timm", SIGLIP, None, "open_clip_model.safetensors"),
        ("timm", {}, 80, "open_clip_pytorch_model.bin"),
        ("timm CNN", {}, None, "pytorch_model.bin"),
    ],
)
def test_open_clip(folder, tower, preprocess, size, file, photo, tmp_path) -> None:
    """Also from a checkpoint, after the model's folder has gone."""
    import open_clip

    place = folder(tower, preprocess, file)
    sizes = {"CROP_SIZE": size} if size else {}
    net, network = build(f"open_clip/local-dir:{place}", "imagenet", **sizes)
    model, transform = open_clip.create_model_from_pretrained(
        f"local-dir:{place}", force_image_size=size
    )
    assert_parity(net, network, photo, model.eval().encode_image, transform(photo))
    save_checkpoint(tmp_path / "a.pth.tar", net)
    for made in place.iterdir():
        made.unlink()
    again = load_net(tmp_path / "a.pth.tar")
    assert again.architecture == network
    assert_parity(again, network, photo, model.encode_image, transform(photo))
    words = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 63]])
    with torch.inference_mode():
        assert torch.equal(again.backbone.model.encode_text(words), model.encode_text(words))


def test_a_failed_download_names_the_files_and_the_folder(monkeypatch) -> None:
    pytest.importorskip("open_clip")
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(UserError) as caught:
        build("open_clip/hf-hub:Marqo/marqo-fashionSigLIP", "imagenet")
    line = str(caught.value)
    assert line.count("\n") == 0
    assert "open_clip_config.json" in line
    assert "open_clip_model.safetensors" in line
    assert "open_clip/local-dir:models/marqo-fashionSigLIP" in line


def test_what_open_clip_does_not_have_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(UserError, match="no model of open_clip"):
        build("open_clip/ViT-Z-1", "none")
    with pytest.raises(UserError, match="PRETRAINED to one of openai, "):
        build("open_clip/RN50", "imagenet")
    with pytest.raises(UserError, match=r"has no open_clip_config\.json; put there"):
        build(f"open_clip/local-dir:{tmp_path}", "imagenet")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TOWERS["ViT"]}))
    with pytest.raises(UserError, match="has no weights; put there"):
        build(f"open_clip/local-dir:{tmp_path}", "imagenet")
    (tmp_path / "weights.bin").write_text("404: not found")
    with pytest.raises(UserError, match="BACKBONE open_clip/local-dir:"):
        build(f"open_clip/local-dir:{tmp_path}", "imagenet")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_cfg": None}, "open_clip_config.json is damaged"),
        ({"model_cfg": {**TOWERS["ViT"], "vision_cfg": "x"}}, "open_clip_config.json is damaged"),
        (
            {"model_cfg": {**TOWERS["ViT"], "vision_cfg": {**VIT, "image_size": "big"}}},
            "size 'big'",
        ),
        ({"preprocess_cfg": {"mean": 0.5}}, r"can build \(mean: "),
        ({"model_cfg": {**TOWERS["ViT"], "embed_dim": 25}}, "size mismatch for "),
    ],
)
def test_a_wrong_configuration_is_one_line(folder, changed, said) -> None:
    place = folder("ViT", {}, "open_clip_model.safetensors")
    config = {"model_cfg": TOWERS["ViT"], "preprocess_cfg": {}, **changed}
    (place / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=said) as caught:
        build(f"open_clip/local-dir:{place}", "imagenet")
    assert "\n" not in str(caught.value)


def test_a_hub_model_is_found_where_the_hubs_client_has_put_it(
    folder, photo: Image.Image, tmp_path: Path, monkeypatch
) -> None:
    """Also from a configuration with Windows' line ends and mark; other weights only by a file."""
    place = folder("ViT", {}, "open_clip_pytorch_model.bin")
    cached = tmp_path / "hub" / "models--some--clip"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    place.rename(cached / "snapshots" / ("0" * 40))
    config = cached / "snapshots" / ("0" * 40) / "open_clip_config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes().replace(b", ", b",\r\n"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    net, network = build("open_clip/hf-hub:some/clip", "imagenet")
    file = config.with_name("open_clip_pytorch_model.bin")
    again, _ = build("open_clip/hf-hub:some/clip", str(file))
    x = net.normalize(eval_transform(**network.transform)(photo)[None])
    with torch.inference_mode():
        assert torch.equal(net(x)[1], again(x)[1])
    with pytest.raises(UserError, match=r"PRETRAINED tuned\.pt: no such file"):
        build("open_clip/hf-hub:some/clip", "tuned.pt")


def test_a_tag_that_timm_does_not_have_is_one_line() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"BACKBONE timm/resnet18\.nope: .*tag"):
        build("timm/resnet18.nope", "none")


@pytest.mark.parametrize(
    ("name", "tag", "quick"),
    [
        ("ViT-B-32", "openai", True),  # of the tag
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", True),  # of the model
        ("ViT-B-32", "weights.pt", False),
    ],
)
def test_the_activation_is_that_of_the_weights(name: str, tag: str, quick: bool) -> None:
    pytest.importorskip("open_clip")
    assert read_config(f"open_clip/{name}", tag)["model_cfg"].get("quick_gelu", False) is quick
