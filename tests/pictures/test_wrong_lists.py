"""Wrong annotations: whatever a list holds, a UserError with file and line, or a table."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pictures import table
from pictures.collection import read_collection
from pictures.deepfashion import find_box, read_attribute, read_inshop
from pictures.folder import read_folder
from pictures.lists import read_list
from pictures.table import number_categories
from tests.conftest import ROOT
from tests.pictures.test_consumer import BLOUSE, CONSUMER
from tests.pictures.test_deepfashion import ATTRIBUTE, INSHOP, write
from utils import UserError

COLORS = {"in_shop/list_color_inshop.txt": "0\nimage_name color\n"}
SOUND = {**ATTRIBUTE, **INSHOP, **COLORS, **CONSUMER}
COLUMNS, SHOP = ("image_name", "number"), f"consumer_to_shop/{BLOUSE}/shop_02.jpg"
ODD = st.sampled_from(
    ["\0", "\x1c", "\x85", "\u2028", "\u3000", "\ufeff", "\r", "\n", " ", "٣", "²", "9" * 5000]
)
PIECES = st.lists(ODD | st.text(max_size=5) | st.integers().map(str), max_size=12).map("".join)
CONTENT = st.binary(max_size=60) | PIECES.map(lambda text: text.encode("utf-8", "surrogatepass"))


def outcome(read) -> str:
    """The words of the UserError, or "" where there is none; anything else goes through."""
    said = ""
    try:
        read()
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    return said


def every_reader(base: Path) -> list[str]:
    """What the readers say of the lists below a folder."""
    return [
        outcome(lambda: read_attribute(base, 50)),
        outcome(lambda: read_inshop(base)),
        outcome(lambda: read_collection(base, 50, True, 0.1)),
        *(outcome(lambda p=path: find_box(base, p)) for path in ("img/c/2.jpg", "", " ", SHOP)),
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(SOUND)), start=st.floats(0, 1), content=CONTENT)
def test_a_list_that_is_spoilt_anywhere_is_a_user_error_or_a_table(
    tmp_path_factory: pytest.TempPathFactory, name: str, start: float, content: bytes
) -> None:
    """Guards read_list, _is_number and find_box: no UnicodeDecodeError, ValueError, IndexError."""
    base = write(tmp_path_factory.mktemp("spoilt"), SOUND)
    text = (base / name).read_bytes()
    place = int(start * len(text))
    (base / name).write_bytes(text[:place] + content + text[place + len(content) :])
    every_reader(base)


@settings(max_examples=100, deadline=None)
@given(content=CONTENT)
def test_whatever_a_file_holds_read_list_names_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """Guards read_list: each error begins with the file, and the line where there is one."""
    path = tmp_path_factory.mktemp("any") / "list.txt"
    path.write_bytes(content)
    said = outcome(lambda: read_list(path, COLUMNS).numbers(1))
    assert not said or said.startswith(f"{path}:")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("9" * 5000 + "\nname number\n", ":1: expected the number of rows"),
        ("٣\nname number\n", ":1: expected the number of rows"),
        (b"1\nname number\ncaf\xe9.jpg 1\n", ":3: not UTF-8 text"),
        ("1\nname number\na.jpg 1\n".encode("utf-16"), ":1: not UTF-8 text"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, content, said: str) -> None:
    """Guards read_list and _is_number."""
    path = tmp_path / "list.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert outcome(lambda: read_list(path, COLUMNS)).startswith(f"{path}{said}")


def test_the_box_list_is_no_file(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND) / "Anno/list_bbox.txt"
    path.unlink()
    path.mkdir()
    assert f"{path}: cannot be read" in outcome(lambda: find_box(tmp_path, "img/c/2.jpg"))


def test_more_categories_than_int16_can_number(tmp_path: Path, monkeypatch) -> None:
    """Guards category_column: int16 would wrap around below 0."""
    names, numbers = number_categories(tmp_path, [f"{i:05}" for i in range(32_768)])
    assert (len(names), numbers.max()) == (32_768, 32_767)
    with pytest.raises(UserError, match="32,769 categories; up to 32,768"):
        number_categories(tmp_path, [f"{i:05}" for i in range(32_769)])
    monkeypatch.setattr(table, "MAX_CATEGORIES", 2)
    for read in (lambda: read_attribute(tmp_path, 9), lambda: read_folder(tmp_path, 0.1)):
        for name in ("a", "b", "c"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "1.jpg").touch()
        write(tmp_path, ATTRIBUTE)
        assert "3 categories" in outcome(read)


def test_a_fuzzer_finds_nothing_else(tmp_path: Path) -> None:
    """Coverage-guided, from sound lists on: see fuzz_lists.py."""
    pytest.importorskip("atheris", reason="no atheris; pip install -r requirements-dev.txt")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    from tests.pictures.fuzz_lists import LISTS

    sound = b"\xff\xff".join(SOUND[name].encode() for name in LISTS)
    (corpus / "sound").write_bytes(sound)
    (corpus / "plain").write_bytes(sound.replace(b"\r", b""))
    command = [sys.executable, str(ROOT / "tests/pictures/fuzz_lists.py"), str(corpus), "-seed=1"]
    command += ["-max_total_time=10", "-max_len=2000", f"-artifact_prefix={tmp_path}/"]
    command += ["-rss_limit_mb=0"]  # the peak that it looks at outlives exec: it is pytest's
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "DONE" in done.stderr or "Done" in done.stderr
