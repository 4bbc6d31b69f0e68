"""A real Milvus server, of a version that PyPI has: pushed to, searched, killed, restarted."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = "milvus==2.3.5"  # the last one; with one field of vectors a collection
SERVER = "MILVUS_SERVER_PACKAGE"  # environment variable: the folder that has it


@pytest.mark.slow
def test_a_real_server(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Runs milvus_server_cases.py in namespaces of its own: the server listens on all interfaces.

    The package is installed once, below pytest's cache.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("there is a server for Linux on x86_64 only")
    unshare = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    unshare += ["--map-root-user"] if os.geteuid() else []
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace may be made here")
    folder = request.config.cache.mkdir(PACKAGE)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
    if not (folder / "milvus").is_dir():
        done = subprocess.run([*pip, "--target", folder, PACKAGE], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{PACKAGE} cannot be installed: {done.stderr.strip()[-200:]}")
    cases = ROOT / "tests" / "search" / "milvus_server_cases.py"
    pytest_ = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--durations=0"]
    done = subprocess.run(
        [*unshare, *pytest_, "--basetemp", tmp_path / "cases", cases],
        cwd=ROOT, env={**os.environ, SERVER: str(folder)}, capture_output=True, text=True,
    )  # fmt: skip
    print(done.stdout[-10_000:], done.stderr[-2_000:])
    assert done.returncode == 0
    assert " skipped" not in done.stdout
