"""Train a tiny image-text model of open_clip on drawn garments; nothing is downloaded.

    python -m tools.synthetic.tiny_clip data/tiny_clip

Its captions name the colour, the pattern and the category that a garment was drawn with. The folder
is laid out as on the hub: `BACKBONE=open_clip/local-dir:data/tiny_clip` takes it. A minute on one
core.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.layers import Normalize
from tools.synthetic.garments import CATEGORY_NAMES
from tools.synthetic.items import COLOURS, PATTERNS, Item, make_item
from tools.synthetic.pictures import draw_view
from utils import needs_package, parse_args, progress_bar, run_script

SIDE = 64  # px of the input
CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
PREPROCESS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "resize_mode": "squash"}
NUMBERS = 2_000_000  # items are numbered from here: no drawn collection has them
DRAWN = (96, 120)  # width, height in px
WORDS = tuple(
    [name.lower() for name in names] for names in (COLOURS, PATTERNS.values(), CATEGORY_NAMES)
)
SIZES = [len(words) for words in WORDS]
ALONE = ("{}", "{}", "a {}")  # captions of a colour, a pattern or a category
FULL = (("a {0} {1} {2}", [0, 1, 2]), ("a {0} {2}", [0, 2]), ("a {1} {2} in {0}", [0, 1, 2]))
ITEMS, STEPS, BATCH, LR = 2400, 600, 32, 3e-3
WEIGHTS = (1.0, 1.0, 2.0)  # shapes are harder to learn than colours


def labels_of(item: Item, variant: int = 0) -> tuple[int, int, int]:
    """The numbers of an item's colour, pattern and category in `WORDS`."""
    colour = list(COLOURS).index(item.colours[variant][0])
    return colour, list(PATTERNS).index(item.pattern), item.category - 1


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw garments cut to their boxes: count x SIDE x SIDE x 3, uint8; labels count x 3."""
    pictures, labels = [], []
    for number in range(count):
        item = make_item(number % len(CATEGORY_NAMES) + 1, seed, NUMBERS + number)
        picture, (x1, y1, x2, y2) = draw_view(item, 0, 0, None, DRAWN)
        cut = picture[y1:y2, x1:x2]
        pictures.append(cv2.resize(cut, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
        labels.append(labels_of(item))
    return torch.from_numpy(np.array(pictures)), torch.tensor(labels)


def train(pictures: Tensor, labels: Tensor, steps: int, seed: int) -> nn.Module:
    """Train a CLIP of open_clip from scratch on what `draw` gives.

    A picture is compared with all captions of one word (a colour, a pattern, a category), and with
    the full captions of its batch. Linear classifiers of the same labels, dropped in the end, let
    the image tower learn shapes before the text tower is of help.
    """
    import open_clip

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model: Any = open_clip.CLIP(**CONFIG)
    model.visual.to(memory_format=torch.channels_last)
    model.token_embedding.requires_grad_(False)  # 49,408 tokens, of which 60 are used
    heads = nn.Linear(CONFIG["embed_dim"], sum(SIZES))
    trained = [p for p in (*model.parameters(), *heads.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, LR, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps, pct_start=0.15)
    normalize = Normalize()
    tokenizer = open_clip.SimpleTokenizer(context_length=CONFIG["text_cfg"]["context_length"])
    alone = [form.format(word) for form, words in zip(ALONE, WORDS, strict=True) for word in words]
    with progress_bar(steps, "training", "step") as bar:
        for step in range(steps):
            rows = torch.from_numpy(rng.permutation(len(pictures))[:BATCH])
            form, used = FULL[step % len(FULL)]
            wanted = labels[rows]
            names = ([WORDS[i][n] for i, n in enumerate(row)] for row in wanted.tolist())
            captions = tokenizer([*alone, *(form.format(*name) for name in names)])
            images = F.normalize(model.encode_image(normalize(pictures[rows])), dim=1)
            texts = F.normalize(model.encode_text(captions), dim=1)
            scale = model.logit_scale.exp()
            *parts, full = (scale * images @ texts.T).split([*SIZES, BATCH], 1)
            parts += heads(scale.detach() * images).split(SIZES, 1)
            same = (wanted[:, None, used] == wanted[None][:, :, used]).all(2).float()
            same /= same.sum(1, keepdim=True)
            loss = (F.cross_entropy(full, same) + F.cross_entropy(full.T, same)) / 2
            for i, logits in enumerate(parts):
                weight = WEIGHTS[i % 3] * (1 if i < 3 else 2)
                loss = loss + weight * F.cross_entropy(logits, wanted[:, i % 3])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    return model.eval()


def save(model: nn.Module, folder: Path) -> None:
    """Write a model as the hub's folders are laid out."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    config = {"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the model goes")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of training (default: {STEPS})")


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse_args(argv, __doc__ or "", ("SEED",), _arguments)
    try:
        save(train(*draw(ITEMS, config.SEED), args.steps, config.SEED), args.folder)
    except ImportError as error:
        install = "pip install -r requirements-models.txt"
        raise needs_package(error, "training an image-text model", install) from None
    print(f"{args.folder}: for BACKBONE=open_clip/local-dir:{args.folder}")


if __name__ == "__main__":
    run_script(main)
