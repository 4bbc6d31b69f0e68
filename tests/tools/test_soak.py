"""soak.py: it injects faults and finds none here, and it does find a fault that is planted."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def soak(project: Path, drawn: Path, folder: Path, minutes: float) -> subprocess.CompletedProcess:
    """Run it on a copy of the drawn collection."""
    shutil.copytree(drawn, folder / "data", copy_function=os.link)
    command = [sys.executable, "-m", "tools.soak", "--dataset-base", folder / "data"]
    command += ["--minutes", minutes, "--seed", 3]
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=900, cwd=folder
    )


def test_it_finds_nothing_here_and_leaves_nothing(drawn: Path, tmp_path: Path) -> None:
    """Guards its summary, its exit status, and that the collection is only read."""
    done = soak(ROOT, drawn, tmp_path, 0.05)
    assert done.returncode == 0, done.stderr
    assert "differences found: 0" in done.stdout.splitlines()[-1]
    names = {path.name for path in drawn.iterdir()}
    assert {path.name for path in (tmp_path / "data").iterdir()} == names
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


PLANTED = {
    "not atomic": (
        "utils.py",
        "            os.replace(part, path)\n",
        (
            "            content = part.read_bytes()\n"
            "            path.write_bytes(content[:len(content) // 2])\n"
            "            time.sleep(0.5)\n"
            "            path.write_bytes(content)\n"
        ),
    ),
    "another picture's seed": (
        "data.py",
        "rng = np.random.default_rng([self.seed, self.epoch])",
        "rng = np.random.default_rng()",
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_it_finds_a_fault_that_is_planted(drawn: Path, tmp_path: Path, fault: str) -> None:
    """Guards `check` and `compare`: without them nothing would be found, whatever is lost."""
    project = tmp_path / "project"
    project.mkdir()
    for script in ROOT.glob("*.py"):
        shutil.copyfile(script, project / script.name)
    name, right, wrong = PLANTED[fault]
    source = (project / name).read_text("utf-8")
    assert right in source
    (project / name).write_text(source.replace(right, wrong), "utf-8")
    done = soak(project, drawn, tmp_path / "soaked", 0.3)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "differences found: 0" not in done.stdout
