"""What the interface's description promises, asked by schemathesis with thousands of requests."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.web_base import Server

pytest_plugins = ("tests.server.web_base",)


def test_schemathesis_finds_nothing(server: Server, tmp_path: Path) -> None:
    """Guards that every documented request is answered as documented, and no other is a fault."""
    command = Path(sys.executable).with_name("schemathesis")
    if not shutil.which(command):
        pytest.skip("schemathesis is not installed; see requirements-dev.txt")
    done = subprocess.run(
        [command, "run", f"{server.address}/openapi.json", "--max-examples", "25", "--seed", "1",
         "--no-color"],
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "No issues found" in done.stdout
