"""Features on a GPU are those of the CPU, of a database and of a query."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import feature_extractor
import train
from config import Config
from features.database import open_database, unit_rows
from search import Searcher
from utils import UserError

COUNT = 300  # more than two batches
COLOR = 1  # of the features that `extract` returns
FLAGS = ("--flip", "true", "--color-top-n", "4", "--num-workers", "2")


@pytest.fixture(scope="module")
def base(cuda: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of coloured squares, and an untrained network."""
    folder = tmp_path_factory.mktemp("gpu")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        squares = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(squares.repeat(20, 0).repeat(20, 1))
        path = folder / ("dress" if number % 2 else "shirt") / f"{number:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        picture.save(path, quality=95)
    sizes = ("--img-size", "112", "--crop-size", "96", "--inter-dim", "64")
    train.main(["--dataset-base", str(folder), "--epoch", "0", "--backbone", "resnet18",
                "--pretrained", "none", "--device", "cpu", *sizes])  # fmt: skip
    return folder


def extract(base: Path, device: str, *flags: str) -> list[np.ndarray]:
    """The deep, colour and palette features, by the script."""
    arguments = ["--dataset-base", str(base), "--device", device, *FLAGS, *flags]
    assert feature_extractor.main(arguments) == 0
    database = open_database(base)
    found = (*database.deep, database.color, database.palette)
    return [np.array(array) for array in found]


def assert_close(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """To 1e-2 in cosine; the colours of most pictures, as rounding may swap two strongest cells."""
    assert len(found) == len(expected) == 4
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        cosine = (unit_rows(one) * unit_rows(other)).sum(1)
        assert (np.median(cosine) if number == COLOR else cosine.min()) > 1 - 1e-2


@pytest.fixture(scope="module")
def on_cpu(base: Path) -> list[np.ndarray]:
    return extract(base, "cpu", "--amp", "off")


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16", "auto"])
def test_features_of_a_gpu_are_those_of_the_cpu(base: Path, on_cpu, amp: str) -> None:
    assert_close(extract(base, "cuda", "--amp", amp), on_cpu)


def test_float32_is_float32(base: Path, on_cpu: list[np.ndarray]) -> None:
    """TF32 would change a few of a thousand parts."""
    found, expected = extract(base, "cuda", "--amp", "off")[0], on_cpu[0]
    assert np.abs(found - expected).max() < 5e-4 * np.abs(expected).max()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_database_of_a_gpu_answers_on_both(base: Path, device: str) -> None:
    """In bf16 on the GPU: the query picture itself is the nearest, at a distance of rounding."""
    deep, *_ = extract(base, "cuda")
    database = open_database(base)
    with Searcher(base, Config(DATASET_BASE=base, DEVICE=device)) as searcher:
        for path in list(database.paths)[:3]:
            match, other = searcher.search(base / path, count=2)
            assert match.path == path
            assert match.distance < 0.1 * other.distance
            assert match.parts["deep"] < 0.1 * np.linalg.norm(deep, axis=1).mean()


def test_an_update_keeps_what_another_device_made(base: Path, capsys) -> None:
    before = extract(base, "cuda", "--amp", "auto")
    after = extract(base, "cpu", "--update")
    assert f"{COUNT} kept, 0 extracted" in capsys.readouterr().out
    for one, other in zip(after, before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_out_of_memory_is_one_line(base: Path) -> None:
    """Where the batch does not fit or, if other tests hold memory, where the network does not."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-3)
    try:
        with pytest.raises(UserError, match="memory is too small"):
            extract(base, "cuda", "--amp", "off", "--extract-batch-size", str(COUNT))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
