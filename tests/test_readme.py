"""The README: its shell and Python blocks run as they stand, and its links lead somewhere."""

import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT

TEXT = (ROOT / "README.md").read_text()
SMALL = {
    "BACKBONE": "resnet18", "PRETRAINED": "none", "IMG_SIZE": "72", "CROP_SIZE": "64",
    "EPOCH": "1", "N_CLUSTERS": "3", "NUM_WORKERS": "0", "DEVICE": "cpu", "COLOR_TOP_N": "4",
}  # fmt: skip


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_the_blocks_run(
    few_photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one folder, one after the other, with a network that is quick to train."""
    for name, value in SMALL.items():
        monkeypatch.setenv(f"FASHION_{name}", value)
    for category in ("dress", "hat", "shoes"):
        shutil.copytree(few_photos / category, tmp_path / "my_photos" / category)
    query = min((few_photos / "shoes").iterdir())
    with Image.open(query) as picture:
        picture.save(tmp_path / "photo.jpg", quality=95)  # the same bytes would be left out
    for line in "".join(blocks("sh")).splitlines():
        python, script, *arguments = shlex.split(line, comments=True)
        assert python == "python"
        module = importlib.import_module(script.removesuffix(".py"))
        assert not module.main(arguments), line
    assert (tmp_path / "results.jpg").stat().st_size > 10_000
    capsys.readouterr()
    for block in blocks("python"):
        exec(block, {})  # noqa: S102
    first = capsys.readouterr().out.splitlines()[0].split()
    assert (first[0], first[-1]) == ("1", "shoes")
    assert first[1].endswith(f"shoes/{query.name}")


def test_the_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)", TEXT)
    local = [target for target in targets if not target.startswith("http")]
    assert local
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 250
    assert len(TEXT.encode()) <= 10_300
