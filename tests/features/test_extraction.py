"""Extraction by torchrun: two processes make the bytes that one makes; one that dies is named."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_feature_extractor import FLAGS, extract, files_of

KILL = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import feature_extractor
from features import extraction
extraction.SAVE_SECONDS = 0.0
save = extraction.save_chunk
def save_and_die(folder, rows, *features):
    save(folder, rows, *features)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
extraction.save_chunk = save_and_die
if __name__ == "__main__":
    feature_extractor.main(sys.argv[1:])
"""


def torchrun(base: Path, *flags: str, script: Path = ROOT / "feature_extractor.py") -> tuple:
    """Extract with two processes: exit status, what they said, and what torchrun did."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", script, "--dataset-base", base, *FLAGS, *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def alone(few_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process extracts."""
    base = Path(shutil.copytree(few_photos, tmp_path_factory.mktemp("alone") / "data"))
    broken = sorted((base / "shoes").iterdir())[3]
    broken.write_bytes(b"no picture")
    assert extract(base) == 1
    return base


@pytest.fixture
def base(few_photos: Path, alone: Path, tmp_path: Path) -> Path:
    """The same pictures, without features."""
    left_out = shutil.ignore_patterns("all_*", ".*")
    return Path(shutil.copytree(alone, tmp_path / "data", ignore=left_out))


def test_two_processes_make_the_bytes_of_one(base: Path, alone: Path) -> None:
    """Guards `split_rows`, the order of the chunks, and errors by their numbers."""
    status, out, err = torchrun(base)
    assert status == 1, err  # for the broken picture, and of torchrun
    assert files_of(base) == files_of(alone)
    assert out.count("24 pictures, ") == 1
    assert err.count("1 pictures were skipped") == 1
    assert not list(base.glob(".extract_*"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_rank_that_dies_is_named_and_its_work_is_not_lost(
    processes: int, base: Path, alone: Path, tmp_path: Path, capsys
) -> None:
    """Guards `read_chunks` and `missing_rows`: any number of processes goes on with the rest."""
    script = tmp_path / "script.py"
    script.write_text(KILL)
    status, _, err = torchrun(base, script=script)
    assert status != 0
    assert re.search(r"rank +: 1 \(local_rank: 1\)", err), err
    assert "Signal 9" in err
    assert len(list(base.glob(".extract_*/000000000015.npz"))) == 1  # 3 batches, then 2
    assert not (base / "all_feat.json").exists()
    if processes == 1:
        assert extract(base) == 1
        said = capsys.readouterr().out
    else:
        said = torchrun(base)[1]
    done = int(re.search(r"going on from (\d+)", said).group(1))
    assert 5 <= done < 24
    assert files_of(base) == files_of(alone)


def test_an_update_by_two_processes_is_one_by_one(base: Path, alone: Path) -> None:
    """Guards `broadcast`: the second process knows from the first which pictures are new."""
    for each in (base, alone):
        if each == base:
            assert extract(each) == 1
        for picture in sorted((each / "hat").iterdir())[:6]:
            picture.write_bytes(picture.read_bytes() + b"another")
    assert extract(alone, "--update") == 1
    status, out, err = torchrun(base, "--update")
    assert status == 1, err
    assert "17 kept, 7 extracted, 6 dropped" in out
    assert files_of(base) == files_of(alone)


@pytest.mark.parametrize("other", ["fewer", "renamed"])
def test_ranks_that_find_other_pictures_are_named(
    base: Path, few_photos: Path, tmp_path: Path, other: str
) -> None:
    """Machines whose folders differ: none waits for the others, nothing is written."""
    second = Path(shutil.copytree(few_photos, tmp_path / "second"))
    picture = min((second / "shoes").iterdir())
    picture.unlink() if other == "fewer" else picture.rename(second / "shoes" / "0.jpg")
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "import feature_extractor\nfrom utils import run_script\n"
        f"base = [{str(base)!r}, {str(second)!r}][int(os.environ['RANK'])]\n"
        "run_script(lambda: feature_extractor.main([*sys.argv[1:], '--dataset-base', base]))\n"
    )
    status, _, err = torchrun(base, script=script)
    assert status != 0
    assert f"{second}: rank 1 finds other pictures or models there" in err
    assert not (base / "all_feat.json").exists()
