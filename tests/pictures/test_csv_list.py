"""A list of pictures in CSV, and what an import makes of it."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from pictures.csv_list import read_picture_list
from pictures.deepfashion import read_attribute, read_inshop
from utils import UserError


def test_columns_come_in_any_order_and_may_be_absent(tmp_path: Path) -> None:
    """A byte-order mark, CRLF, quotes, blank lines; absolute paths become relative."""
    file = tmp_path / "list.csv"
    file.write_bytes(
        "\ufeffcategory,path,Partition\r\n"
        'Shoes,shoes/1.jpg,train\r\n\r\n"Tank, top","b/2, 3.jpg",validation\r\n'
        f",{tmp_path}/x/4.png,\r\n".encode()
    )
    found = read_picture_list(file)
    assert {name: column.tolist() for name, column in found.items()} == {
        "path": ["shoes/1.jpg", "b/2, 3.jpg", "x/4.png"],
        "category": ["Shoes", "Tank, top", ""],
        "item": ["", "", ""],
        "color": ["", "", ""],
        "partition": ["train", "val", ""],
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", r":1: must name columns, path and any of category, item, color, partition"),
        ("path,size\na.jpg,1\n", r":1: must name columns, .*; it has 'size'"),
        ("category\nShoes\n", r":1: must name columns, .*; it has category"),
        ("path,item\na.jpg,1\n\nb.jpg\n", r":4: 1 columns, line 1 has 2"),
        ("path\na.jpg\n./a.jpg\n", r":3: a\.jpg is there twice"),
        ("path\n../a.jpg\n", r":2: '../a\.jpg' is no path below"),
        ("path\n/etc/a.jpg\n", r":2: '.*etc/a\.jpg' is no path below"),
        ("path,item\n,1\n", r":2: '' is no path below"),
        ('path\n"a\nb.jpg"\n', r":3: .* is no path below"),
        ("path\na\0b.jpg\n", r":2: .*"),
        ("path,partition\na.jpg,dev\n", r":2: partition 'dev'; it may be train, val"),
        ("path\n", r": no pictures in it"),
        ('path\n"a.jpg\n', r":2: unexpected end of data"),
        (b"path\ncaf\xe9.jpg\n", r": is not UTF-8 text"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    content: str | bytes, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "list.csv"
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
        file = tmp_path_factory.mktemp("any") / "list.csv"
        file.write_bytes(begin + content)
        try:
            read_picture_list(file)
        except UserError as error:
            said = str(error)
        assert "\n" not in said


def test_an_import_takes_what_the_list_tells(few_photos: Path, tmp_path: Path) -> None:
    """Category, item, colour and partition; the folders tell the rest."""
    photos = Path(shutil.copytree(few_photos, tmp_path / "photos"))
    paths = sorted(path.relative_to(photos).as_posix() for path in photos.glob("*/*.jpg"))
    lines = ["path,category,item,color,partition"]
    for i, path in enumerate(paths[:12]):
        category, partition = "Gown" if i < 4 else "", "test" if i >= 8 else "train"
        color = "dark red" if i % 2 else "dark blue"
        lines.append(f"{path},{category},item {i // 2},{color},{partition}")
    (photos / "list.csv").write_text("\n".join(lines))
    base = tmp_path / "data"
    data.main(["import", str(photos / "list.csv"), "--dataset-base", str(base)])
    table = read_attribute(base, 50)
    assert table.paths == [f"img/{path}" for path in paths[:12]]
    names = [table.category_names[number] for number in table.categories]
    assert names == ["Gown"] * 4 + [path.split("/")[0] for path in paths[4:12]]
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
