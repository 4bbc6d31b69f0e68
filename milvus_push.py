"""Load the feature database into Milvus; a push that was stopped continues where it was.

python milvus_push.py --dataset-base data/mine
"""

from collections.abc import Sequence

from command_line import parse_args
from search.milvus_push import push
from utils import run_script


def main(argv: Sequence[str] | None = None) -> None:
    config, _ = parse_args(argv, __doc__ or "", ("data set", "ranking", "milvus"))
    push(config)


if __name__ == "__main__":
    run_script(main)
