"""Training by torchrun: two processes do what one does, with the same batches."""

import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from net import read_checkpoint
from network.distributed import Distributed, init_distributed, per_process
from tests.conftest import ROOT, Run, free_port, run, run_ranks
from train import main
from training import loop
from training.resume import Progress
from utils import UserError

FLAGS = "--backbone timm/test_convnext --pretrained none --img-size 40 --crop-size 32".split()
FLAGS += "--train-batch-size 15 --triplet-batch-size 8 --test-interval 3 --dump-interval 2".split()
# In 16 bits, batches of another size are rounded otherwise.
FLAGS += "--amp off --epoch 2 --log-interval 1 --num-workers 1 --enable-inshop-dataset".split()


def train(base: Path, *flags: str, processes: int = 1) -> str:
    """Run train.py in one or two processes; returns their output."""
    arguments = ["train.py", "--dataset-base", base, *FLAGS, *flags]
    ranks = [run(*arguments)] if processes == 1 else run_ranks(*arguments)
    said = "".join(rank.stdout + rank.stderr for rank in ranks)
    assert not any(rank.returncode for rank in ranks), said
    return said


def run_until_resume_point(base: Path, processes: int) -> dict:
    """Kill a run once it has left a resume point; returns the progress it had then."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    where["WORLD_SIZE"] = str(processes)
    arguments = ["train.py", "--dataset-base", base, *FLAGS]
    names = map(str, range(processes))
    ranks = [Run(base.parent / rank, *arguments, **where, RANK=rank) for rank in names]
    point, deadline = base / "models/checkpoint.pth.tar", time.monotonic() + 300
    while not point.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for rank in ranks:
        rank.kill()
    return read_checkpoint(point)["progress"]


def curve(base: Path, name: str) -> np.ndarray:
    """A curve of the run: values by step."""
    (folder,) = (base / "models/tensorboard").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    return np.array([point.value for point in events.Scalars(name)])


@pytest.fixture(scope="module")
def alone(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, and what one process trains on it."""
    base = Path(shutil.copytree(drawn, tmp_path_factory.mktemp("alone") / "data",
                                copy_function=os.link))  # fmt: skip
    train(base)
    return base


def test_two_processes_train_what_one_trains(alone: Path, drawn: Path, tmp_path: Path) -> None:
    """`all_gather` and its gradients, the shards of a batch, validation.

    The backbone has no batch norms, which on a CPU see the pictures of one process alone.

    It is trained in the second epoch. Only the main process writes and prints.
    """
    base = Path(shutil.copytree(drawn, tmp_path / "data", copy_function=os.link))
    output = train(base, processes=2)
    for name in ("train/loss", "train/metric", "validation/cross entropy"):
        one, two = curve(alone, name), curve(base, name)
        assert len(one) == len(two) > 2
        np.testing.assert_allclose(two, one, rtol=1e-3)
    np.testing.assert_allclose(curve(base, "train/loss")[:4], curve(alone, "train/loss")[:4],
                               rtol=1e-5)  # fmt: skip
    assert "broadcast_buffers" not in output  # PyTorch's warning from 2.14 on
    assert output.count("2 processes") == 1
    assert output.count("before training") == 1
    files = {path.name for path in (base / "models").glob("*.tar")}
    assert files == {path.name for path in (alone / "models").glob("*.tar")}

    # The sampled triplets of the original recipe, of which each process reads a part.
    original = "--recipe", "original", "--epoch", "1"
    shutil.rmtree(base / "models/tensorboard")  # a new run over one that has ended
    train(base, *original, processes=2)
    two = curve(base, "train/metric")
    shutil.rmtree(base / "models")
    main(["--dataset-base", str(base), *FLAGS, *original])
    np.testing.assert_allclose(two, curve(base, "train/metric"), rtol=1e-3)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_processes(
    alone: Path, drawn: Path, tmp_path: Path, before: int, after: int
) -> None:
    """Guards that resume points hold the plain network, whatever wraps it."""
    base = Path(shutil.copytree(drawn, tmp_path / "data", copy_function=os.link))
    stopped = run_until_resume_point(base, before)
    output = train(base, "--resume", processes=after)
    assert f"resumed: epoch {stopped['epoch']}, step {stopped['step']}" in output
    mine = read_checkpoint(base / "models/model_2_final.pth.tar")["state_dict"]
    theirs = read_checkpoint(alone / "models/model_2_final.pth.tar")["state_dict"]
    assert mine.keys() == theirs.keys()
    for key in mine:
        torch.testing.assert_close(mine[key], theirs[key], rtol=5e-3, atol=5e-3)


def test_a_wrong_setting_ends_all_of_them(drawn: Path, tmp_path: Path) -> None:
    """Guards that no process waits for one that has ended."""
    base = Path(shutil.copytree(drawn, tmp_path / "data", copy_function=os.link))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [ROOT / "train.py", "--dataset-base", base, *FLAGS, "--pretrained", "none.pth"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode
    assert "none.pth: no such file" in done.stderr


def test_processes_that_resume_draw_new_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ones than at the start and than the main process, which continues with its own."""
    torch.manual_seed(7)
    state = {"rng": torch.get_rng_state(), "cuda_rng": [], "identity": {}, "state_dict": {}}
    drawn = {}
    for rank, steps in itertools.product((0, 1), (5, 6)):
        content = {**state, "progress": Progress(total_steps=steps)}
        monkeypatch.setattr(loop, "read_resume_point", lambda path, content=content: content)
        trainer = loop.Trainer.__new__(loop.Trainer)
        trainer.distributed, trainer.net = Distributed(rank, 2), torch.nn.Module()
        trainer.resume_point, trainer.identity, trainer.parts = Path(), {}, {}
        trainer._freeze_backbone = lambda frozen: None
        trainer.resume()
        drawn[rank, steps] = torch.rand(1).item()
    torch.manual_seed(7)
    assert drawn[0, 5] == drawn[0, 6] == torch.rand(1).item()
    torch.manual_seed(8)
    assert len({drawn[0, 5], drawn[1, 5], drawn[1, 6], torch.rand(1).item()}) == 4


def test_one_process_has_all_rows() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert Distributed().all_gather(rows, 3) is rows
    assert list(range(10))[Distributed(1, 3).shard(10)] == [1, 4, 7]


def test_processes_share_the_readers_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [per_process(count) for count in (0, 2, 8)] == [0, 1, 2]


def test_processes_that_cannot_connect_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    connecting = init_distributed("cpu")
    with pytest.raises(UserError, match=r"the 2 processes cannot connect: .*MASTER_ADDR"):
        connecting.__enter__()
