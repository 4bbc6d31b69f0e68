"""What the tests share: the real photos, and a small data set in DeepFashion's layout."""

import os
from pathlib import Path

import pytest

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
