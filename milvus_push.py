"""Load the feature database into Milvus; a push that was stopped continues where it was.

python milvus_push.py --dataset-base data/mine
"""

from collections.abc import Sequence

from config import DISTANCE, MILVUS
from search.milvus import push
from utils import parse_args, run_script

USES = ("DATASET_BASE", *DISTANCE, "TARGET_RECALL", *MILVUS)


def main(argv: Sequence[str] | None = None) -> None:
    config, _ = parse_args(argv, __doc__ or "", USES)
    push(config.DATASET_BASE, config.distance, config.milvus, config.TARGET_RECALL)


if __name__ == "__main__":
    run_script(main)
