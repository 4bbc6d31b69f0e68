"""DeepFashion's annotation files -> tables of pictures.

Both benchmarks are read, attribute prediction and in-shop retrieval, in the layout of this
project (`Anno/`, `Eval/`, `img/`) or as the official archives unpack (`Anno_coarse/`, `Img/img/`).
Every list has the same form: line 1 the count of rows, line 2 the names of the columns, then one
row a line in columns padded with blanks. A path or name may contain blanks itself, so rows are
split from the right.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from utils import UserError, atomic_write

ANNO_FOLDERS = ("Anno", "Anno_coarse", "Anno_fine")
PARTITIONS = ("train", "val", "test")
COLOR_LIST = "list_color_inshop.txt"
UNKNOWN = "-"  # a colour in it, where a cell cannot be empty
BOX_COLUMNS = ("image_name", "x_1", "y_1", "x_2", "y_2")
INSHOP_PARTITIONS = ("train", "query", "gallery")
CLOTHES_TYPES = 3  # upper, lower, full body
LONGEST = 255  # characters of a name, as of a file's; an array takes as much for each of its names
MOST_CATEGORIES = 1 << 15  # their numbers are int16


@dataclass(frozen=True)
class Pictures:
    """A table of N pictures, one array or list a column.

    Attributes
    ----------
    paths : N paths relative to DATASET_BASE, with "/" on every system
    categories : N, int16; index into `category_names`, -1 where unknown
    category_names : names of the categories, by number
    partitions : N, str; train, val, test, or train, query, gallery for in-shop pictures
    boxes : N x 4, int32; x1 y1 x2 y2 of the garment in px, all 0 where there is none
    items : N, str; the garment's id, "" where unknown
    colors : N, str; the colour variant of the item, "" where unknown
    types : N, int8; clothes type: 1 upper, 2 lower, 3 full body, 0 where unknown
    """

    paths: list[str]
    categories: np.ndarray
    category_names: list[str]
    partitions: np.ndarray
    boxes: np.ndarray
    items: np.ndarray
    colors: np.ndarray
    types: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: np.ndarray) -> "Pictures":
        """The rows of a mask or an index array, in its order."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, column in columns.items():
            if isinstance(column, np.ndarray):
                columns[name] = column[rows]
        columns["paths"] = [self.paths[row] for row in rows.tolist()]
        return Pictures(**columns)

    def in_partition(self, *names: str) -> "Pictures":
        """The pictures of the named partitions."""
        return self.select(np.isin(self.partitions, names))


def read_list(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """Read one annotation list.

    Parameters
    ----------
    path : the list; a byte-order mark, CRLF and a missing last newline are accepted
    columns : what each column is, for error messages; all but the first are free of blanks

    Returns
    -------
    The columns, each a list of N strings. Row i of them is line i + 3 of the file.

    Raises
    ------
    UserError : the file cannot be read, the count is no number or not that of the rows, or a row
        has too few columns or a name that no file can have; it names file, line and what was
        expected
    """
    lines = _read_text(path).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    count = lines[0].strip() if lines else ""
    if not _is_number(count):
        raise UserError(f"{path}:1: expected the number of rows, found {count[:60]!r}")
    width = len(columns)
    cells: list[list[str]] = [[] for _ in columns]
    # By blocks: a list for every row of a large file at once would keep the garbage collector busy
    # for most of the time, and take most of the memory.
    for start in range(2, len(lines), 512):
        rows = [line.rsplit(None, width - 1) for line in lines[start : start + 512]]
        if set(map(len, rows)) != {width}:
            wrong = next(i for i, row in enumerate(rows, start) if len(row) != width)
            _malformed(path, wrong - 2, columns, lines[wrong])
        if max(map(len, lines[start : start + 512])) > LONGEST:
            for number, row in enumerate(rows, start + 1):
                if any(map(_is_too_long, row)):
                    raise UserError(f"{path}:{number}: a name of more than {LONGEST} characters")
        for column, block in zip(cells, zip(*rows, strict=True), strict=True):
            column.extend(block)
    if int(count) != len(cells[0]):
        raise UserError(f"{path}:1: announces {int(count)} rows, but {len(cells[0])} rows follow")
    return cells


def write_list(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write one annotation list, as `read_list` reads it, columns padded to equal width."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max((len(row[i]) for row in cells), default=0) for i in range(len(columns) - 1)]
    with atomic_write(path) as part, open(part, "w", encoding="utf-8", newline="\n") as file:
        file.write(f"{len(cells)}\n{'  '.join(columns)}\n")
        for row in cells:
            padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            file.write("  ".join([*padded, row[-1]]) + "\n")


def _read_text(path: Path) -> str:
    """The text of a list, lines ended by "\\n" alone; a `UserError` where it is no text."""
    try:
        if path.exists() and not path.is_file():  # to open a pipe would wait for its writer
            raise UserError(f"{path}: cannot be read: no regular file")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text: {error.reason}") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:  # NumPy cuts it off, so that two names could become one
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}:{line}: holds a NUL character, which no name has")
    return text


def _malformed(path: Path, row: int, columns: Sequence[str], found: object) -> None:
    raise UserError(f"{path}:{row + 3}: expected {' '.join(columns)}; found {str(found)[:200]!r}")


def _is_number(cell: str) -> bool:
    """ASCII digits alone, unlike what `int` takes, and few enough for int32."""
    return cell.isascii() and cell.isdecimal() and len(cell) < 10


def _is_too_long(cell: str) -> bool:
    return len(cell) > LONGEST and max(map(len, cell.split("/"))) > LONGEST


def _numbers(path: Path, cells: list[list[str]], index: int, columns: Sequence[str]) -> list[int]:
    """One column as integers."""
    if not all(map(_is_number, cells[index])):
        row = next(i for i, cell in enumerate(cells[index]) if not _is_number(cell))
        _malformed(path, row, columns, " ".join(column[row] for column in cells))
    return list(map(int, cells[index]))


def _up_to(
    path: Path, cells: list[list[str]], index: int, columns: Sequence[str], most: int
) -> np.ndarray:
    """One column, N, int64, of numbers from 1 to `most`."""
    values = np.array(_numbers(path, cells, index, columns), np.int64)
    wrong = np.flatnonzero((values < 1) | (values > most))
    if len(wrong):
        _malformed(path, int(wrong[0]), columns, " ".join(column[wrong[0]] for column in cells))
    return values


def _names(
    path: Path,
    cells: list[list[str]],
    index: int,
    columns: Sequence[str],
    allowed: Sequence[str],
) -> np.ndarray:
    """One column, N, str, where each cell is one of the `allowed` names."""
    if not set(cells[index]) <= set(allowed):
        row = next(i for i, cell in enumerate(cells[index]) if cell not in allowed)
        _malformed(path, row, columns, " ".join(column[row] for column in cells))
    return np.array(cells[index], "<U7")


def _paths(path: Path, cells: list[list[str]]) -> list[str]:
    """The first column, where no picture may stand twice."""
    paths = cells[0]
    if len(set(paths)) != len(paths):
        first: dict[str, int] = {}
        for row, picture in enumerate(paths):
            if picture in first:
                line = first[picture] + 3
                raise UserError(f"{path}:{row + 3}: {picture!r} stands in line {line} already")
            first[picture] = row
    return paths


def _boxes(path: Path, cells: list[list[str]], columns: Sequence[str]) -> np.ndarray:
    """The last four columns as N x 4 int32."""
    corners = [_numbers(path, cells, i, columns) for i in range(len(columns) - 4, len(columns))]
    return np.array(corners, np.int32).T.reshape(-1, 4)


def align(paths: list[str], other: list[str]) -> np.ndarray:
    """For each path its row in another list, int64, -1 where it is missing."""
    if paths == other:
        return np.arange(len(paths))
    place = {path: row for row, path in enumerate(other)}
    return np.array([place.get(path, -1) for path in paths], np.int64)


def _first_existing(candidates: Iterable[Path]) -> Path | None:
    return next((path for path in candidates if path.exists()), None)


def blank(count: int) -> np.ndarray:
    """A column of empty strings: items or colours that are unknown."""
    return np.full(count, "", "<U1")


def attribute_list(base: Path) -> Path | None:
    """The attribute benchmark's picture list below `base`, None where there is none."""
    return _first_existing(base / folder / "list_category_img.txt" for folder in ANNO_FOLDERS)


def inshop_list(base: Path) -> Path | None:
    """The in-shop benchmark's partition list below `base`, None where there is none."""
    names = ("list_eval_partition.txt", "Eval/list_eval_partition.txt")
    return _first_existing(base / "in_shop" / name for name in names)


def category_column(where: Path, numbers: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """Numbers of `count` categories as a column, N, int16; a `UserError` for too many of them."""
    if count > MOST_CATEGORIES:
        raise UserError(f"{where}: {count:,} categories; up to {MOST_CATEGORIES:,} are possible")
    return np.array(numbers, np.int16)


def by_name(where: Path, categories: list[str]) -> tuple[list[str], np.ndarray]:
    """The category of each of N pictures -> the names of all, sorted, and a `category_column`."""
    names = sorted(set(categories))
    number = {name: i for i, name in enumerate(names)}
    return names, category_column(where, [number[name] for name in categories], len(names))


def _read_labels(folder: Path) -> tuple[list[str], list[str], np.ndarray]:
    """The category lists of a folder: names of all categories, N paths, N labels from 0."""
    cloth_path = folder / "list_category_cloth.txt"
    cloth = read_list(cloth_path, ("category_name", "category_type"))[0]
    path = folder / "list_category_img.txt"
    columns = ("image_name", f"category_label (1 to {len(cloth)})")
    cells = read_list(path, columns)
    labels = _up_to(path, cells, 1, columns, len(cloth)) - 1
    labels = category_column(cloth_path, labels, len(cloth))
    return [name.strip() for name in cloth], _paths(path, cells), labels


def has_color_names(base: Path) -> bool:
    """Whether colours have names that mean the same for every item, not numbers of their own."""
    return (base / "in_shop" / COLOR_LIST).is_file()


def read_attribute(base: Path, categories: int) -> Pictures:
    """Read the attribute-prediction benchmark.

    Parameters
    ----------
    base : DATASET_BASE
    categories : keep the pictures of categories 1 to this number

    Raises
    ------
    UserError : a list is missing or malformed
    """
    list_path = attribute_list(base)
    if list_path is None:
        raise UserError(f"{base}: no Anno/list_category_img.txt")
    anno = list_path.parent
    names, paths, label = _read_labels(anno)

    partition_path = base / "Eval" / "list_eval_partition.txt"
    columns = ("image_name", f"evaluation_status ({', '.join(PARTITIONS)})")
    cells = read_list(partition_path, columns)
    row_of = align(paths, _paths(partition_path, cells))
    if (row_of < 0).any():
        missing = paths[int(np.argmin(row_of))]
        raise UserError(f"{partition_path}: no row for {missing!r} of {list_path}")
    partitions = _names(partition_path, cells, 1, columns, PARTITIONS)[row_of]

    boxes = np.zeros((len(paths), 4), np.int32)
    box_path = anno / "list_bbox.txt"
    if box_path.exists():
        cells = read_list(box_path, BOX_COLUMNS)
        box_of = align(paths, _paths(box_path, cells))
        boxes[box_of >= 0] = _boxes(box_path, cells, BOX_COLUMNS)[box_of[box_of >= 0]]

    unpacked = (base / "Img" / "img").exists() and not (base / "img").exists()
    every = Pictures(
        paths=["Img/" + path for path in paths] if unpacked else paths,
        categories=label,
        category_names=names[:categories],
        partitions=partitions,
        boxes=boxes,
        items=blank(len(paths)),
        colors=blank(len(paths)),
        types=np.zeros(len(paths), np.int8),
    )
    return every.select(label < categories)


def read_inshop(base: Path) -> Pictures:
    """Read the in-shop retrieval benchmark below `base`/in_shop.

    An item's category is the folder above the item's (`img/WOMEN/Dresses/id_00000001/...` is a
    Dresses), or "all" where the path has no two folders; its colour variant is the file name up to
    the first "_". Lists that only `data.py import` writes into in_shop/ go before the paths:
    `list_color_inshop.txt`, and `list_category_img.txt` with `list_category_cloth.txt`, which have
    the form of those in Anno/. Pictures lie below in_shop/, or below `base` itself where an import
    has made both parts' lists.

    Raises
    ------
    UserError : a list is missing or malformed
    """
    list_path = inshop_list(base)
    if list_path is None:
        raise UserError(f"{base}: no in_shop/list_eval_partition.txt")
    columns = ("image_name", "item_id", f"evaluation_status ({', '.join(INSHOP_PARTITIONS)})")
    cells = read_list(list_path, columns)
    paths, items = _paths(list_path, cells), cells[1]
    partitions = _names(list_path, cells, 2, columns, INSHOP_PARTITIONS)
    inshop = base / "in_shop"
    names, category = by_name(list_path, _inshop_categories(inshop, paths))

    boxes = np.zeros((len(paths), 4), np.int32)
    types = np.zeros(len(paths), np.int8)
    box_path = _first_existing(
        (inshop / "list_bbox_inshop.txt", inshop / "Anno" / "list_bbox_inshop.txt")
    )
    if box_path is not None:
        kind = f"clothes_type (1 to {CLOTHES_TYPES})"
        columns = ("image_name", kind, "pose_type", "x_1", "y_1", "x_2", "y_2")
        cells = read_list(box_path, columns)
        box_of = align(paths, _paths(box_path, cells))
        boxes[box_of >= 0] = _boxes(box_path, cells, columns)[box_of[box_of >= 0]]
        listed = _up_to(box_path, cells, 1, columns, CLOTHES_TYPES)
        types[box_of >= 0] = listed[box_of[box_of >= 0]]

    files = [path.rsplit("/", 1)[-1] for path in paths]
    colors = [file.split("_")[0] if "_" in file else "" for file in files]
    color_path = inshop / COLOR_LIST
    if has_color_names(base):
        cells = read_list(color_path, ("image_name", "color"))
        named = dict(zip(_paths(color_path, cells), cells[1], strict=True))
        colors = [named.get(path, color) for path, color in zip(paths, colors, strict=True)]
        colors = ["" if color == UNKNOWN else color for color in colors]

    places = ("in_shop/", "in_shop/Img/", "Img/")
    prefix = next((place for place in places if (base / place / "img").exists()), "")
    return Pictures(
        paths=[prefix + path for path in paths],
        categories=category,
        category_names=names,
        partitions=partitions,
        boxes=boxes,
        items=np.array(items, str),
        colors=np.array(colors, str),
        types=types,
    )


def _inshop_categories(inshop: Path, paths: list[str]) -> list[str]:
    """The category name of each in-shop picture, see `read_inshop`."""
    folders = [path.removeprefix("img/").split("/")[:-1] for path in paths]
    category = [folder[-2] if len(folder) > 1 else "all" for folder in folders]
    if not (inshop / "list_category_img.txt").exists():
        return category
    names, listed, labels = _read_labels(inshop)
    named = dict(zip(listed, labels.tolist(), strict=True))
    pairs = zip(paths, category, strict=True)
    return [names[named[path]] if path in named else name for path, name in pairs]


def find_box(base: Path, path: str) -> tuple[int, int, int, int] | None:
    """The box of one picture of the attribute benchmark, without reading the whole lists.

    Parameters
    ----------
    base : DATASET_BASE
    path : relative to it, as in the list of the feature database

    Raises
    ------
    UserError : the list is no text, or that picture's row is malformed
    """
    box_path = _first_existing(base / folder / "list_bbox.txt" for folder in ANNO_FOLDERS)
    if box_path is None:
        return None
    name = path.removeprefix("Img/")
    text = _read_text(box_path)
    end = text.find("\n", text.find("\n") + 1)  # of the names of the columns
    while (start := text.find(f"\n{name}", end) + 1) > 0:
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        found, *cells = text[start:end].rsplit(None, 4) or [""]
        if found != name:
            continue
        if len(cells) < 4 or not all(map(_is_number, cells)):
            row = text.count("\n", 0, start) - 2
            _malformed(box_path, row, BOX_COLUMNS, text[start:end].strip())
        x1, y1, x2, y2 = map(int, cells)
        return x1, y1, x2, y2
    return None
