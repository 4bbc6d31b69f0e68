"""One picture of an extraction: its errors are reasons; and in which arithmetic it is made."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import PictureDataset, eval_transform
from features import extraction
from features.extraction import Readable, choose_arithmetic
from network import device as arithmetic
from pictures.folder import read_folder


@pytest.fixture
def readable(tmp_path: Path) -> Readable:
    """A picture, one that is damaged, and one that is removed later."""
    (tmp_path / "hat").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for name in ("a.png", "c.png"):
        Image.fromarray(noise).save(tmp_path / "hat" / name)
    (tmp_path / "hat" / "b.png").write_bytes(b"no picture")
    pictures = read_folder(tmp_path, 0.1)
    transform = eval_transform(32, 32)
    dataset = PictureDataset(tmp_path, pictures, lambda picture: [transform(picture)], False)
    return Readable(dataset, 32)


def test_a_picture_comes_with_the_hash_of_its_content(readable: Readable) -> None:
    (image,), reason, digest = readable[0]
    assert reason == ""
    assert torch.equal(image, readable.dataset[0][0][0])
    content = (readable.dataset.base / "hat" / "a.png").read_bytes()
    assert digest == hashlib.sha256(content).digest()


def test_what_cannot_be_read_becomes_zeros_and_a_reason(readable: Readable) -> None:
    (image,), reason, digest = readable[1]
    assert not image.any()
    assert image.shape == (32, 32, 3)
    assert "hat/b.png: cannot be read as a picture: no format that Pillow knows" in reason
    assert digest == hashlib.sha256(b"no picture").digest()
    gone = readable.dataset.base / "hat" / "c.png"
    gone.unlink()
    (image,), reason, digest = readable[2]
    assert not image.any()
    assert digest == bytes(32)
    assert reason == f"{gone}: no such file"
    os.mkfifo(gone)  # opened, it would wait for a writer
    assert "no regular file" in readable[2][1]


def test_an_update_stays_in_the_arithmetic_of_the_database(monkeypatch) -> None:
    """On a processor without bf16 the new pictures are computed in float32, but recorded alike."""
    cpu = torch.device("cpu")
    for hardware, kind in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(arithmetic, "cpu_has_bf16", lambda hardware=hardware: hardware)
        assert choose_arithmetic("auto", "bfloat16", [], None, cpu) == (kind, "bfloat16")
    assert choose_arithmetic("auto", "float32", [], None, cpu) == (None, "float32")
    assert choose_arithmetic("off", "", [], None, cpu) == (None, "float32")


@pytest.mark.parametrize("same", [True, False])
def test_16_bits_only_where_they_keep_the_embeddings(monkeypatch, capsys, same: bool) -> None:
    monkeypatch.setattr(arithmetic, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(extraction, "_keeps_embeddings", lambda *_: same)
    found = choose_arithmetic("auto", "", [None], None, torch.device("cpu"))
    assert found == ((torch.bfloat16, "bfloat16") if same else (None, "float32"))
    assert ("float32, as 16 bits" in capsys.readouterr().out) != same
