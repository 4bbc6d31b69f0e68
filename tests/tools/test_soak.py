"""soak.py finds no difference here, and it finds a fault that is planted."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def soak(
    project: Path, drawn: Path, folder: Path, *flags: str, stages: int = 5
) -> subprocess.CompletedProcess[str]:
    """Run the first stages of it on a copy of the drawn collection."""
    shutil.copytree(drawn, folder / "data", copy_function=os.link)
    code = (
        "import tools.soak as s; from utils import run_script; every = s.stages;"
        f" s.stages = lambda batch: every(batch)[:{stages}]; run_script(s.main)"
    )
    command = [sys.executable, "-c", code, f"--dataset-base={folder / 'data'}", "--seed=3", *flags]
    environment = os.environ | {"PYTHONPATH": str(project)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=900, cwd=folder, env=environment
    )


def test_no_difference_and_no_file_left(drawn: Path, tmp_path: Path) -> None:
    """The collection is only read."""
    done = soak(ROOT, drawn, tmp_path, "--faults=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("5 faults injected, ")
    assert done.stdout.endswith("differences found: 0\n")
    names = {path.name for path in drawn.iterdir()}
    assert {path.name for path in (tmp_path / "data").iterdir()} == names
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


NOT_COPIED = shutil.ignore_patterns(".*", "data", "demo", "docs", "tests", "__pycache__")
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
        "pictures/samplers.py",
        "rng = np.random.default_rng([self.seed, self.epoch])",
        "rng = np.random.default_rng()",
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_it_finds_a_fault_that_is_planted(drawn: Path, tmp_path: Path, fault: str) -> None:
    """It fails where `check` or `compare` are missing."""
    project = tmp_path / "project"
    shutil.copytree(ROOT, project, ignore=NOT_COPIED)
    name, right, wrong = PLANTED[fault]
    source = (project / name).read_text("utf-8")
    assert right in source
    (project / name).write_text(source.replace(right, wrong), "utf-8")
    flags = ("--faults=3", "--kinds=kill")
    done = soak(project, drawn, tmp_path / "soaked", *flags, stages=1)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "differences found: 0" not in done.stdout
