"""Text in pictures: no letter is a box, whatever fonts the system has."""

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from search.fonts import write
from tests.conftest import ROOT

WORDS = ("连衣裙", "連衣裙", "スニーカー", "Tシャツ", "드레스", "été", "Платье", "ชุด", "👗", "hat")
CODE = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from PIL import Image, ImageDraw
from search import fonts
fonts.FOLDERS = ()
for word in sys.argv[1:]:
    picture = Image.new("L", (300, 30))
    fonts.write(ImageDraw.Draw(picture), (0, 0), word, "white", 16, 300)
    print(picture.tobytes().hex())
"""


def drawn(text: str, width: int = 300) -> np.ndarray:
    picture = Image.new("L", (400, 40))
    write(ImageDraw.Draw(picture), (5, 5), text, "white", 16, width)
    return np.asarray(picture)


@pytest.mark.parametrize("word", WORDS)
def test_letters_differ_as_boxes_would_not(word: str) -> None:
    letters = sorted(set(word))
    assert all(drawn(letter).any() for letter in letters)
    for one, other in combinations(letters, 2):
        assert not np.array_equal(drawn(one), drawn(other))


def test_accents_apart_from_their_letters_are_drawn_alike() -> None:
    assert np.array_equal(drawn("Robe été"), drawn("Robe e\u0301te\u0301"))


@pytest.mark.parametrize("text", ["a long title " * 9, "连衣裙" * 30, "été 👗 드레스 " * 9])
def test_a_line_is_cut_to_its_width(text: str) -> None:
    columns = np.flatnonzero(drawn(text, 150).any(0))
    assert 100 < columns.max() <= 5 + 150


def test_without_fonts_letters_are_escaped_with_one_message(tmp_path: Path) -> None:
    plain = ["\\u8fde\\u8863", "\\xe9t\\xe9", "hat"]
    done = subprocess.run(
        [sys.executable, "-c", CODE, "连衣", "été", "hat", *plain], capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert lines[:3] == lines[3:]
    assert done.stderr.count("\n") == 1
    assert "fonts-noto-cjk" in done.stderr
