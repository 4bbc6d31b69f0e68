"""Extraction by torchrun: two processes make the bytes that one makes; one that dies is named."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_ranks
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


def torchrun(base: Path, script: Path) -> tuple[int, str]:
    """Extract with two processes: what torchrun ends with, and what is said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", script, "--dataset-base", base, *FLAGS]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


def extract_by_two(base: Path, *flags: str) -> tuple[str, str]:
    """Extract with two processes, of which the main one finds a broken picture: what they say."""
    ranks = run_ranks("feature_extractor.py", "--dataset-base", base, *FLAGS, *flags)
    err = "".join(rank.stderr for rank in ranks)
    assert [rank.returncode for rank in ranks] == [1, 0], err
    return "".join(rank.stdout for rank in ranks), err


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
    out, err = extract_by_two(base)
    assert files_of(base) == files_of(alone)
    assert out.count("24 pictures, ") == 1
    assert err.count("1 pictures were skipped") == 1
    assert not list(base.glob(".extract_*"))


def test_a_rank_that_dies_is_named_and_its_work_is_not_lost(
    base: Path, alone: Path, tmp_path: Path, capsys
) -> None:
    """Guards `read_chunks` and `missing_rows`: any number of processes goes on with the rest."""
    script = tmp_path / "script.py"
    script.write_text(KILL)
    status, err = torchrun(base, script)
    assert status != 0
    assert re.search(r"rank +: 1 \(local_rank: 1\)", err), err
    assert "Signal 9" in err
    assert len(list(base.glob(".extract_*/000000000015.npz"))) == 1  # 3 batches, then 2
    assert not (base / "all_feat.json").exists()
    assert extract(base) == 1
    done = int(re.search(r"going on from (\d+)", capsys.readouterr().out).group(1))
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
    out, _ = extract_by_two(base, "--update")
    assert "17 kept, 7 extracted, 6 dropped" in out
    assert files_of(base) == files_of(alone)


def test_ranks_that_find_other_pictures_are_named(
    base: Path, few_photos: Path, tmp_path: Path
) -> None:
    """Machines whose folders differ: none waits for the others, nothing is written."""
    second = Path(shutil.copytree(few_photos, tmp_path / "second"))
    min((second / "shoes").iterdir()).rename(second / "shoes" / "0.jpg")
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "import feature_extractor\nfrom utils import run_script\n"
        f"base = [{str(base)!r}, {str(second)!r}][int(os.environ['RANK'])]\n"
        "run_script(lambda: feature_extractor.main([*sys.argv[1:], '--dataset-base', base]))\n"
    )
    status, err = torchrun(base, script)
    assert status != 0
    assert f"{second}: rank 1 finds other pictures or models there" in err
    assert not (base / "all_feat.json").exists()
