"""What the tests share: the real photos, and a small data set in DeepFashion's layout."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from synthetic import make_collection

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos and weights; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("FASHION_TEST_DATA", ROOT.parent / "shared")).resolve()
    if not (folder / "photos").is_dir():
        pytest.skip(f"no real photos at {folder}; set FASHION_TEST_DATA")
    return folder


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the developer's own shell or .env reaches a test."""
    for name in list(os.environ):
        if name.startswith("FASHION_") and name != "FASHION_TEST_DATA":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rng() -> np.random.Generator:
    """A source of randomness, the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn collection, to be read only: 60 items in 2 views and 20 in-shop items."""
    base = tmp_path_factory.mktemp("drawn")
    make_collection(base, items=60, views=2, inshop_items=20, seed=0)
    return base


def run(script: str, *arguments: object, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run a script as a user does; its exit status must be `check`, None for any."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert check is None or done.returncode == check, done.stdout + done.stderr
    return done
