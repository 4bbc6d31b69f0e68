"""soak.py finds no difference here, and it finds a fault that is planted."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, forks
from tools import soak


def test_no_difference_and_no_file_left(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The collection is only read."""
    monkeypatch.setenv("PYTHONPATH", "")
    forks()
    shutil.copytree(drawn, tmp_path / "data", copy_function=os.link)
    monkeypatch.setattr(soak, "stages", lambda batch, every=soak.stages: every(batch)[:2])
    assert not soak.main([f"--dataset-base={tmp_path / 'data'}", "--seed=3", "--faults=1"])
    assert "\n2 faults injected, " in capsys.readouterr().out
    names = {path.name for path in drawn.iterdir()}
    assert {path.name for path in (tmp_path / "data").iterdir()} == names
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


NOT_COPIED = shutil.ignore_patterns(".*", "data", "demo", "docs", "tests", "__pycache__")
NOT_ATOMIC = """\
            content = part.read_bytes()
            path.write_bytes(content[:len(content) // 2])
            __import__("time").sleep(0.5)
            path.write_bytes(content)
"""
PLANTED = [
    ("utils.py", "            os.replace(part, path)\n", NOT_ATOMIC),
    ("pictures/samplers.py", "default_rng([self.seed, self.epoch])", "default_rng()"),
]
CODE = """
import tools.soak as s
from utils import run_script
stages = s.stages
s.stages = lambda batch: stages(batch)[:1]
run_script(s.main)
"""


def test_it_finds_faults_that_are_planted(drawn: Path, tmp_path: Path) -> None:
    """A file that is not whole fails where `check` is missing, other batches where `compare` is."""
    project = tmp_path / "project"
    shutil.copytree(ROOT, project, ignore=NOT_COPIED)
    for name, right, wrong in PLANTED:
        source = (project / name).read_text("utf-8")
        assert right in source
        (project / name).write_text(source.replace(right, wrong), "utf-8")
    shutil.copytree(drawn, tmp_path / "data", copy_function=os.link)
    command = [sys.executable, "-c", CODE, "--faults=5", "--kinds=kill", "--seed=3"]
    done = subprocess.run(
        [*command, f"--dataset-base={tmp_path / 'data'}"],
        capture_output=True, text=True, timeout=900, env=os.environ | {"PYTHONPATH": str(project)},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no checkpoint that can be read" in done.stderr
    assert "model_best.pth.tar differs" in done.stderr
