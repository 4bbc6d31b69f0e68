"""Coverage-guided fuzzing of the readers of lists.

    python tests/pictures/fuzz_lists.py -max_total_time=60

Only a `UserError` may come out, on one line. Needs atheris; the tests run it for a few seconds.
"""

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
with atheris.instrument_imports(include=["pictures"]):
    from pictures import collection, deepfashion
    from utils import UserError

LISTS = (
    "Anno/list_category_cloth.txt", "Anno/list_category_img.txt", "Anno/list_bbox.txt",
    "Eval/list_eval_partition.txt", "in_shop/list_eval_partition.txt",
    "in_shop/list_bbox_inshop.txt", "in_shop/list_color_inshop.txt",
    "consumer_to_shop/list_eval_partition.txt", "consumer_to_shop/list_bbox_consumer2shop.txt",
)  # fmt: skip
BASE = Path(tempfile.mkdtemp())


def read_all(base: Path) -> None:
    """Every reader of what lies below a folder."""
    for read in (
        lambda: collection.read_collection(base, 50, True, 0.1),
        lambda: deepfashion.read_attribute(base, 3),
        lambda: deepfashion.read_inshop(base),
        lambda: deepfashion.find_box(base, "img/c/2.jpg"),
        lambda: deepfashion.find_box(base, ""),
    ):
        try:
            read()
        except UserError as error:
            if "\n" in str(error):
                raise ValueError("an error of two lines") from error


def try_one(data: bytes) -> None:
    """Lay the parts of an input, divided by 0xFF bytes, as the lists, and read them."""
    for name, content in zip(LISTS, data.split(b"\xff\xff"), strict=False):
        (BASE / name).parent.mkdir(parents=True, exist_ok=True)
        (BASE / name).write_bytes(content)
    read_all(BASE)


if __name__ == "__main__":
    atheris.Setup(sys.argv, try_one)
    atheris.Fuzz()
