"""The feature database against features computed picture by picture, and runs that were killed."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn.functional import linear
from torchvision import models

import feature_extractor
from data import pad_narrow
from features import extraction
from tests.conftest import Killed
from utils import run_script

FILES = ("all_feat.npy", "all_color_feat.npy", "all_category.npy", "all_palette_feat.npy",
         "all_item.npy", "all_classifier.npz", "all_feat.list", "all_feat.json")  # fmt: skip
FLAGS = ("--amp", "off", "--device", "cpu", "--num-workers", "0", "--color-top-n", "3",
         "--extract-batch-size", "5")  # fmt: skip
NAMES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@pytest.fixture
def base(few_photos: Path, tmp_path: Path) -> Path:
    """A copy of them for one test."""
    return Path(shutil.copytree(few_photos, tmp_path / "data"))


def extract(base: Path, *flags: str) -> int:
    with pytest.raises(SystemExit) as left:
        run_script(lambda: feature_extractor.main(["--dataset-base", str(base), *FLAGS, *flags]))
    return left.value.code


def files_of(base: Path) -> dict[str, bytes]:
    return {name: (base / name).read_bytes() for name in FILES}


@torch.inference_mode()
def features_of(base: Path, paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Features by Pillow, torchvision's own ResNet18 and sums, one picture at a time."""
    state = torch.load(base / "models" / "model_best.pth.tar", weights_only=True)["state_dict"]
    resnet = models.resnet18(weights=None).eval()
    own = {}
    for key, value in state.items():
        top, rest = key.split(".", 1)
        if top == "backbone":
            number, rest = rest.split(".", 1)
            own[f"{NAMES[number]}.{rest}"] = value
    assert all(key.startswith("fc.") for key in resnet.load_state_dict(own, strict=False)[0])
    maps: list[torch.Tensor] = []
    resnet.layer4.register_forward_hook(lambda *hooked: maps.append(hooked[2][0]))
    deep, color = [], []
    for path in paths:
        picture = ImageOps.exif_transpose(Image.open(base / path)).convert("RGB")
        picture = pad_narrow(picture, 72)
        scale = 72 / min(picture.size)
        picture = picture.resize([int(side * scale) for side in picture.size], Image.BILINEAR)
        left, top = (round((side - 64) / 2) for side in picture.size)
        pixels = np.asarray(picture.crop((left, top, left + 64, top + 64))) / 255
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        resnet(torch.from_numpy(pixels).float().permute(2, 0, 1)[None])
        conv_map = maps.pop()  # 512 x 2 x 2
        deep.append(linear(conv_map.mean((1, 2)), state["fc.weight"], state["fc.bias"]).numpy())
        cells = conv_map.mean(0).flatten().argsort(descending=True)[:3].tolist()
        means = pixels.reshape(2, 32, 2, 32, 3).mean((1, 3)).reshape(4, 3)
        color.append([means[cell, channel] for channel in range(3) for cell in cells])
    return np.stack(deep), np.array(color)


def test_every_row_is_the_features_of_the_picture_in_its_line(base: Path, capsys) -> None:
    assert extract(base) == 0
    paths = (base / "all_feat.list").read_text().splitlines()
    assert sorted(paths) == sorted(p.relative_to(base).as_posix() for p in base.glob("*/*.jpg"))
    deep, color = np.load(base / "all_feat.npy"), np.load(base / "all_color_feat.npy")
    assert (deep.dtype, color.dtype) == (np.float32, np.float32)
    for found, expected in zip((deep, color), features_of(base, paths), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert deep.std(0).min() > 1e-3  # pictures differ by far more than the tolerance

    info = json.loads((base / "all_feat.json").read_text())
    assert info["pictures"] == 24
    assert info["skipped"] == []
    (model,) = info["models"]
    assert model["file"] == "model_best.pth.tar"
    for place, written in [
        ("models/model_best.pth.tar", model["sha256"]),
        ("all_feat.npy", info["sha256"]["all_feat.npy"]),
        ("all_color_feat.npy", info["sha256"]["all_color_feat.npy"]),
    ]:
        assert hashlib.sha256((base / place).read_bytes()).hexdigest() == written
    assert model["network"]["crop_size"] == 64
    assert info["settings"]["COLOR_TOP_N"] == 3
    assert info["settings"]["AMP"] == "float32"
    names = [info["category_names"][i] for i in np.load(base / "all_category.npy")]
    assert names == [path.split("/")[0] for path in paths]
    assert not list(base.glob(".extract_*"))
    assert "24 pictures" in capsys.readouterr().out


def test_an_unreadable_picture_is_skipped_and_named_and_the_rest_keeps_its_rows(
    base: Path, capsys
) -> None:
    assert extract(base) == 0
    paths = (base / "all_feat.list").read_text().splitlines()
    whole = [np.load(base / name) for name in FILES[:5]]
    (base / paths[3]).write_text("no picture")
    (base / paths[11]).write_bytes((base / paths[11]).read_bytes()[:900])
    capsys.readouterr()
    assert extract(base, "--num-workers", "2") == 1
    err = capsys.readouterr().err
    kept = [row for row in range(24) if row not in (3, 11)]
    assert (base / "all_feat.list").read_text().splitlines() == [paths[row] for row in kept]
    for name, before in zip(FILES[:5], whole, strict=True):
        found = np.load(base / name)
        if name == "all_item.npy":
            assert found.tolist() == [""] * 22
        else:
            np.testing.assert_allclose(found, before[kept], atol=1e-5)
    info = json.loads((base / "all_feat.json").read_text())
    assert (info["pictures"], info["skipped"]) == (22, [paths[3], paths[11]])
    assert all(path in err for path in info["skipped"])
    assert "2 pictures were skipped" in err


def test_no_readable_picture_at_all_leaves_the_old_database(base: Path, capsys) -> None:
    assert extract(base) == 0
    before = files_of(base)
    for path in base.glob("*/*.jpg"):
        path.write_bytes(b"")
    assert extract(base) == 2
    assert "no picture can be read" in capsys.readouterr().err
    assert files_of(base) == before


@pytest.fixture
def killed(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An extraction ended with 15 of 24 pictures done and 10 of them saved."""
    save = extraction.save_chunk

    def save_or_die(folder: Path, rows: np.ndarray, *features: object) -> None:
        if rows[0] >= 10:
            raise Killed
        save(folder, rows, *features)

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "SAVE_SECONDS", 0.0)
        patch.setattr(extraction, "save_chunk", save_or_die)
        with pytest.raises(Killed):
            feature_extractor.main(["--dataset-base", str(base), *FLAGS])
    assert len(list(base.glob(".extract_*/*.npz"))) == 2
    assert not (base / "all_feat.json").exists()
    return base


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(killed: Path, capsys) -> None:
    (killed / ".extract_other").mkdir()  # of another run
    assert extract(killed) == 0
    assert "going on from 10" in capsys.readouterr().out
    gone_on = files_of(killed)
    assert not list(killed.glob(".extract_*"))
    assert extract(killed) == 0
    assert files_of(killed) == gone_on


def _other_model(base: Path) -> None:
    path = base / "models" / "model_best.pth.tar"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["fc.bias"] += 1
    torch.save(content, path)


CHANGES = {
    "other colours": (lambda base: None, ("--color-top-n", "2")),
    "a picture changed": (lambda base: next(base.glob("hat/*.jpg")).touch(), ()),
    "other arithmetic": (lambda base: None, ("--amp", "bf16")),
    "a picture less": (lambda base: next(base.glob("hat/*.jpg")).unlink(), ()),
    "other model": (_other_model, ()),
    "damaged": (lambda base: [p.write_bytes(b"") for p in base.glob(".extract_*/*")], ()),
}


@pytest.mark.parametrize(("change", "flags"), CHANGES.values(), ids=CHANGES)
def test_partial_work_of_another_run_or_damaged_is_dropped(
    killed: Path, capsys, change, flags
) -> None:
    change(killed)
    assert extract(killed, *flags) == 0
    assert "going on" not in capsys.readouterr().out
    found = files_of(killed)
    assert extract(killed, *flags) == 0
    assert files_of(killed) == found


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--dumped-model", "gone.pth"), "DUMPED_MODEL gone.pth"),
        (("--color-top-n", "5"), "COLOR_TOP_N is 5"),
        (("--dataset-base", "nowhere"), "nowhere"),
        (("--device", "cuda:77"), "cuda:77"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(base: Path, capsys, flags, said: str) -> None:
    assert extract(base, *flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "extracting" not in line]
    assert len([line for line in lines if line.strip()]) == 1
    assert said in lines[-1]
    assert not (base / "all_feat.json").exists()


def test_flip_is_the_mean_with_the_mirror_image(base: Path) -> None:
    assert extract(base) == 0
    plain, color = np.load(base / "all_feat.npy"), np.load(base / "all_color_feat.npy")
    for path in base.glob("*/*.jpg"):  # mirrored files: their features are those of the mirror
        ImageOps.mirror(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).save(
            path.with_suffix(".png")
        )
        path.rename(path.with_name(f".{path.name}"))  # hidden
    assert extract(base) == 0
    mirrored = np.load(base / "all_feat.npy")
    for path in base.glob("*/.*.jpg"):
        path.rename(path.with_name(path.name[1:]))
        path.with_name(path.name[1:]).with_suffix(".png").unlink()
    assert extract(base, "--flip") == 0
    # A mirrored picture of odd width is cropped a pixel aside, so this is close, not equal.
    both = np.load(base / "all_feat.npy")
    error = np.abs(both - (plain + mirrored) / 2).mean()
    assert error < 0.2 * np.abs(both - plain).mean()
    np.testing.assert_allclose(np.load(base / "all_color_feat.npy"), color, atol=1e-5)


def test_several_models_are_several_matrices(base: Path) -> None:
    """The second is the first with another bias; the colours come from the first alone."""
    assert extract(base) == 0
    alone, color = np.load(base / "all_feat.npy"), np.load(base / "all_color_feat.npy")
    content = torch.load(base / "models/model_best.pth.tar", weights_only=True)
    content["state_dict"]["fc.bias"] += 1
    held_out = {"inshop": True, "val_share": 0.2, "digest": "0123"}
    torch.save({**content, "held_out": held_out}, base / "models/other.pth.tar")
    assert extract(base, "--models", "model_best.pth.tar,other.pth.tar") == 0
    np.testing.assert_allclose(np.load(base / "all_feat.npy"), alone, atol=1e-5)
    np.testing.assert_allclose(np.load(base / "all_feat_2.npy"), alone + 1, atol=1e-4)
    np.testing.assert_allclose(np.load(base / "all_color_feat.npy"), color, atol=1e-5)
    info = json.loads((base / "all_feat.json").read_text())
    assert [model["file"] for model in info["models"]] == ["model_best.pth.tar", "other.pth.tar"]
    assert [model["held_out"] for model in info["models"]] == [None, held_out]
    classifier = np.load(base / "all_classifier.npz")
    state = content["state_dict"]
    np.testing.assert_allclose(classifier["weight"], state["fc2.weight"])
    assert extract(base) == 0
    assert not (base / "all_feat_2.npy").exists()
