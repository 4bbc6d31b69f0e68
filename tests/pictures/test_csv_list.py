"""A list of pictures in CSV, and what an import makes of it."""

import csv
import io
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from pictures.collection import read_collection
from pictures.csv_list import read_picture_list
from pictures.deepfashion import read_attribute, read_inshop
from pictures.splits import read_splits
from tests.pictures.test_collection import touch
from utils import UserError


def test_columns_come_in_any_order_and_may_be_absent(tmp_path: Path) -> None:
    """A byte-order mark, CRLF, quotes, blank lines; absolute paths become relative."""
    file = touch(tmp_path, "list.csv", "shoes/1.jpg", "b/2, 3.jpg", "x/4.png") / "list.csv"
    file.write_bytes(
        "\ufeffcategory,path,Partition\r\n"
        'Shoes,shoes/1.jpg,train\r\n\r\n"Tank, top","b/2, 3.jpg",validation\r\n'
        f",{tmp_path}/x/4.png,\r\n".encode()
    )
    found = read_picture_list(file)
    assert [(photo.path, photo.category, photo.partition) for photo in found] == [
        ("shoes/1.jpg", "Shoes", "train"),
        ("b/2, 3.jpg", "Tank, top", "val"),
        ("x/4.png", "", ""),
    ]
    assert {photo.item + photo.color for photo in found} == {""}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", r":1: no column 'path'; it has none: name path and any of category, item, color, "),
        ("category,size\nShoes,1\n", r":1: no column .*; it has category, size: .*--columns path="),
        ("path,item,item\na.jpg,1,2\n", r":1: has two columns item; rename one"),
        ("path,item\na.jpg,1,2\n", r": no pictures in it, line 2 has 3 columns, not 2; "),
        (
            "path,item\n\nb.jpg,1\n",
            r": no pictures in it, line 3: no picture 'b\.jpg', or .*--columns",
        ),
        ("path\n../a.jpg\n", r": no pictures in it, line 2: no picture '\.\./a\.jpg', or"),
        ("path\n/etc/a.jpg\n", r": no pictures in it, line 2: no picture '/etc/a\.jpg', or"),
        ("path,item\n,1\n", r": no pictures in it, line 2: no picture '', or"),
        ('path\n"a\nb.jpg"\n', r": no pictures in it, line 3: no picture .*a\\nb\.jpg"),
        ("path\na\0b.jpg\n", r":.*2: .*"),
        ("path,partition\na.jpg,dev\n", r":2: partition 'dev'; it may be train, val"),
        ("path\n", r": no pictures in it"),
        ('path\n"a.jpg\n', r":2: unexpected end of data"),
        (b"path\ncaf\x81.jpg\n", r": no pictures in it, line 2: no picture 'caf\ufffd\.jpg'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    content: str | bytes, said: str, tmp_path: Path
) -> None:
    file = touch(tmp_path, "a.jpg", "list.csv") / "list.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"list\.csv{said}") as error:
        read_picture_list(file)
    assert "\n" not in str(error.value)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_whatever_a_list_holds_is_an_error_or_a_table(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """After a sound beginning, too."""
    said = ""
    for begin in (b"", b"path,item\na.jpg,1\n"):
        file = touch(tmp_path_factory.mktemp("any"), "a.jpg") / "list.csv"
        file.write_bytes(begin + content)
        try:
            read_picture_list(file)
        except UserError as error:
            said = str(error)
        assert "\n" not in said


ROWS = [("img/1000.jpg", "Tops"), ("img/1001.jpg", "Röcke, kurz"), ("img/größe é.jpg", "Röcke")]


def written(delimiter: str, *, quoting: int = csv.QUOTE_MINIMAL, end: str = "\n") -> str:
    """ROWS as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([("path", "category"), *ROWS])
    return text.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        written(";").encode(),
        written("|").encode(),
        written("\t", end="\r\n").encode("utf-16"),  # with a byte-order mark
        written(";", quoting=csv.QUOTE_ALL, end="\r\n").encode("cp1252"),
        written(",", end="\r").encode(),
        b"sep=;\r\n" + written(";", end="\r\n").encode("utf-8-sig").removeprefix(b"\xef\xbb\xbf"),
        written(",", end=",,\r\n").encode() + b",,,\r\n" * 3,  # as Excel ends a list
        written(",").replace("img/", "img\\").encode(),
        written(",").replace("img/", " ./IMG/").replace("jpg", "JPG").encode(),
        unicodedata.normalize("NFD", written(",")).encode(),
        written(",").replace(".jpg", "").encode(),
        written(",").replace("img/", "").encode(),
        written(",").replace("img/", "").replace(".jpg", "").encode(),
    ],
)
def test_lists_as_spreadsheets_write_them(tmp_path: Path, content: bytes) -> None:
    file = touch(tmp_path, *(path for path, _ in ROWS), "img/other.jpg") / "list.csv"
    file.write_bytes(content)
    found = read_picture_list(file)
    assert [(photo.path, photo.category) for photo in found] == ROWS


def test_other_columns_are_named_or_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The form of a well-known list of Kaggle's, in which names hold commas without quotes."""
    file = touch(tmp_path, *(f"images/{i}.jpg" for i in range(5))) / "styles.csv"
    file.write_text(
        "id,gender,articleType,baseColour,productDisplayName\n"
        '0,Women,Skirts,Navy Blue,"Skirt, blue"\n1,Men,Tshirts,NA,Shirt\n'
        "2,Men,Tshirts,Red,Shirt, red\n3,Men,nan,Red,Shirt\n9,Men,Tshirts,Red,gone\n"
    )
    with pytest.raises(UserError, match="it has id, gender, articleType, baseColour, prod"):
        read_picture_list(file)
    found = read_picture_list(file, "path=id, category=ARTICLETYPE,color=baseColour")
    assert [(photo.path, photo.category, photo.color) for photo in found] == [
        ("images/0.jpg", "Skirts", "navy_blue"),
        ("images/1.jpg", "Tshirts", ""),
        ("images/3.jpg", "", "red"),
    ]
    said = capsys.readouterr().out
    assert "columns that are not used: gender, productDisplayName\n" in said
    assert (
        "2 rows are left out: line 4 has 6 columns, not 5; line 6: no picture '9', or several\n"
        in said
    )
    for columns, fault in [("path=ID,category=kind", "no column 'kind'; it has id, gender"),
                           ("id=path", "write NAME=COLUMN"), ("path", "write NAME=")]:  # fmt: skip
        with pytest.raises(UserError, match=fault):
            read_picture_list(file, columns)


def test_a_name_of_several_pictures_is_none_of_them_and_a_second_row_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "b/2.jpg", "3.jpg", "b/3.jpg", "c/4.jpg", "c/4.JPG")
    file = tmp_path / "list.csv"
    file.write_text("path\n1.jpg\n2.jpg\n3.JPG\na/2.jpg\nc/4.JPG\nC/4.jpg\n./3.jpg\n")
    found = read_picture_list(file)
    assert [photo.path for photo in found] == ["b/2.jpg", "3.jpg", "c/4.JPG"]
    said = capsys.readouterr().out
    assert "4 rows are left out: line 2: no picture '1.jpg', or several; line 5: " in said
    assert "; line 8: 3.jpg once more\n" in said


def test_a_picture_without_a_category_is_searched_but_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ["Tops", "Skirts"] * 6 + ["", "nan", "N/A", "null"]
    names = [f"img/{i:02}.jpg" for i in range(16)]
    rows = [f"{name},{cell}\n" for name, cell in zip(names, cells, strict=True)]
    file = touch(tmp_path / "photos", *names) / "list.csv"
    file.write_text("path,category\n" + "".join(rows))
    base = tmp_path / "data"
    data.main(["import", str(file), "--dataset-base", str(base)])
    assert "4 pictures without a category" in capsys.readouterr().out
    found = read_collection(base, 20, False, 0.1)
    assert found.category_names == ["Skirts", "Tops"]
    assert found.categories.tolist() == [1, 0] * 6 + [-1] * 4
    splits = read_splits(base, 20, False, 0.1)
    trained = found.in_partition("train")
    used = sorted([*splits.train.paths, *splits.validation.paths])
    assert used == trained.select(trained.categories >= 0).paths
    # A column without any value is none: the folders are the categories.
    file.write_text("path,category\n" + "".join(f"{name},\n" for name in names))
    data.main(["import", str(file), "--dataset-base", str(base)])
    assert read_collection(base, 20, False, 0.1).category_names == ["img"]


def test_an_import_takes_what_the_list_tells(few_photos: Path, tmp_path: Path) -> None:
    """Category, item, colour and partition."""
    photos = Path(shutil.copytree(few_photos, tmp_path / "photos"))
    paths = sorted(path.relative_to(photos).as_posix() for path in photos.glob("*/*.jpg"))
    lines = ["path,category,item,color,partition"]
    for i, path in enumerate(paths[:12]):
        category, partition = "Gown" if i < 4 else "Hat", "Test" if i >= 8 else "train"
        color = "dark red" if i % 2 else "dark blue"
        lines.append(f"{path},{category},item {i // 2},{color},{partition}")
    (photos / "list.csv").write_text("\n".join(lines))
    base = tmp_path / "data"
    data.main(["import", str(photos / "list.csv"), "--dataset-base", str(base)])
    table = read_attribute(base, 50)
    assert table.paths == [f"img/{path}" for path in paths[:12]]
    names = [table.category_names[number] for number in table.categories]
    assert names == ["Gown"] * 4 + ["Hat"] * 8
    assert table.partitions.tolist() == ["train"] * 8 + ["test"] * 4
    items = read_inshop(base)
    assert len(set(items.items.tolist())) == 6
    assert items.colors.tolist() == ["dark_blue", "dark_red"] * 6
    assert items.partitions.tolist() == ["train"] * 8 + ["gallery"] * 4


def test_what_is_told_of_a_picture_holds_for_its_item(few_photos: Path, tmp_path: Path) -> None:
    """No item is divided; folders of a split are no categories, nor do they outweigh the list."""
    photos = tmp_path / "photos"
    lines = ["path,item,partition"]
    for i, path in enumerate(sorted(few_photos.glob("*/*.jpg"))):
        place = photos / ("train", "test")[i % 2] / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        partition = "" if i % 2 else ("train", "val")[i // 2 % 2]
        lines.append(f"{place.relative_to(photos)},{i // 2},{partition}")
    (photos / "list.csv").write_text("\n".join(lines))
    base = tmp_path / "data"
    data.main(["import", str(photos / "list.csv"), "--dataset-base", str(base)])
    table = read_attribute(base, 50)
    assert table.category_names == ["dress", "hat", "shoes"]
    assert table.partitions.tolist() == [("train", "val")[i // 2 % 2] for i in range(24)]
