"""Image-text models of open_clip: pictures and words in one space."""

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import UserError, needs_package

PREFIX, HUB, FOLDER = "open_clip/", "hf-hub:", "local-dir:"
CONFIG = "open_clip_config.json"
INSTALL = "pip install -r requirements-models.txt"
WEIGHTS = {".safetensors", ".bin", ".pth", ".pt"}


def read_config(name: str, pretrained: str) -> dict[str, Any]:
    """The configuration of a model: `model_cfg` and `preprocess_cfg`, as in open_clip_config.json.

    Parameters
    ----------
    name : open_clip/NAME, open_clip/hf-hub:ORG/NAME or open_clip/local-dir:FOLDER
    pretrained : of open_clip/NAME the tag of its weights; others have the configuration of the
        first tag
    """
    own = name.removeprefix(PREFIX)
    with _explained(name) as open_clip:
        if own.startswith((HUB, FOLDER)):
            file = _file(open_clip, own, CONFIG)
            try:
                config = json.loads(file.read_bytes())
                parts = {key: config.get(key) or {} for key in ("model_cfg", "preprocess_cfg")}
                parts["model_cfg"]["vision_cfg"].get("image_size")
            except (ValueError, LookupError, AttributeError):
                raise ValueError(f"{file} is damaged; get it again") from None
            return parts
        model_config = open_clip.get_model_config(own)
        if model_config is None:
            raise ValueError("no model of open_clip (open_clip.list_models())")
        tags = open_clip.list_pretrained_tags_by_model(own)
        tag = pretrained if pretrained in tags else next(iter(tags), "")
        facts = open_clip.get_pretrained_cfg(own, tag)
        if tag == pretrained and facts.get("quick_gelu"):  # else NAME's own: tags may not say so
            model_config["quick_gelu"] = True
        return {"model_cfg": model_config, "preprocess_cfg": facts}


def find_weights(name: str, pretrained: str) -> Path:
    """The file of a model's weights, downloaded where it is not in its folder.

    `name` is as for `read_config`; `pretrained` is a file; else of open_clip/NAME the tag of its
    weights, of others "imagenet".
    """
    own = name.removeprefix(PREFIX)
    if Path(pretrained).is_file():
        return Path(pretrained)
    with _explained(name) as open_clip:
        if own.startswith((HUB, FOLDER)):
            if pretrained != "imagenet":
                raise ValueError(
                    f"PRETRAINED {pretrained}: no such file; imagenet takes the weights beside its"
                    f" {CONFIG}"
                )
            return _file(open_clip, own, "")
        tags = open_clip.list_pretrained_tags_by_model(own)
        if pretrained not in tags:
            raise ValueError(f"set PRETRAINED to one of {', '.join(tags) or 'none'}, or to a file")
        facts = open_clip.get_pretrained_cfg(own, pretrained)
        try:
            return Path(open_clip.download_pretrained(facts))
        except Exception as error:  # of many types
            raise ValueError(
                f"the weights {facts.get('hf_hub') or facts.get('url')} cannot be downloaded"
                f" ({error}); get them elsewhere, and set PRETRAINED to the file"
            ) from None


def build_image_text(
    name: str, config: dict[str, Any], size: int, weights: Path | None = None
) -> nn.Module:
    """Build a whole model of open_clip: `visual` is its image tower, the rest its text tower.

    Parameters
    ----------
    name, config : see `read_config`
    size : of the input in px; position embeddings of another size are resized
    weights : their file; None: random ones
    """
    with _explained(name) as open_clip, tempfile.TemporaryDirectory() as folder:
        Path(folder, CONFIG).write_text(json.dumps(config))
        if weights:
            suffix = ".safetensors" if weights.suffix == ".safetensors" else ".bin"
            Path(folder, f"weights{suffix}").symlink_to(weights.resolve())
        return open_clip.create_model(
            f"{FOLDER}{folder}",
            load_weights=weights is not None,
            require_pretrained=weights is not None,
            pretrained_text=False,  # of a text tower of its own it would be a download
            force_image_size=size,
        )


class TextTower:
    """Words -> their places in the space of a model's pictures.

    Parameters
    ----------
    model : as `build_image_text` gives it
    name, config : of it; only a tokenizer of another library needs the model's own folder, or the
        hub
    prompt : what a text becomes, in place of {}
    device : of the model
    """

    def __init__(
        self, model: Any, name: str, config: dict[str, Any], prompt: str, device: torch.device
    ) -> None:
        self.model, self.prompt, self.device = model, prompt, device
        own = name.removeprefix(PREFIX)
        with _explained(name) as open_clip, tempfile.TemporaryDirectory() as folder:
            other = config["model_cfg"].get("text_cfg", {}).get("hf_tokenizer_name")
            if own.startswith((HUB, FOLDER)) and not other:
                Path(folder, CONFIG).write_text(json.dumps(config))
                own = f"{FOLDER}{folder}"
            self.tokenizer = open_clip.get_tokenizer(own)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """N texts -> N x D, float32, of length 1, on the device."""
        # What a terminal gives need not be UTF-8.
        readable = [text.encode("utf-8", "replace").decode() for text in texts]
        tokens = self.tokenizer([self.prompt.replace("{}", text) for text in readable])
        return F.normalize(self.model.encode_text(tokens.to(self.device)).float(), dim=1)


def _file(open_clip: Any, own: str, file: str) -> Path:
    """A file of a folder or of the hub; "" for the weights."""
    needed = f"{CONFIG} and open_clip_model.safetensors (or open_clip_pytorch_model.bin)"
    if own.startswith(FOLDER):
        folder = Path(own.removeprefix(FOLDER))
        found = [path for path in folder.glob(file or "*") if file or path.suffix in WEIGHTS]
        if not found:
            raise ValueError(f"{folder} has no {file or 'weights'}; put there {needed}")
        # The hub's folders may also have weights in another library's names.
        return min(found, key=lambda p: (not p.name.startswith("open_clip"), p.suffix, p.name))
    model = own.removeprefix(HUB)
    try:
        return Path(open_clip.pretrained.download_pretrained_from_hf(model, file or None))
    except Exception as error:  # of many types
        folder = Path("models", model.rpartition("/")[2])
        raise ValueError(
            f"{file or 'its weights'} cannot be downloaded ({shorten(str(error), 200)}); put"
            f" {needed} of {model} into {folder}, and set BACKBONE to {PREFIX}{FOLDER}{folder}"
        ) from None


@contextmanager
def _explained(name: str) -> Iterator[Any]:
    """open_clip, imported; what it raises becomes a `UserError`, what it logs is not shown."""
    try:
        import open_clip
    except ImportError as error:
        raise needs_package(error, f"BACKBONE {name}", INSTALL) from None
    logging.disable(logging.ERROR)
    try:
        yield open_clip
    except ImportError as error:  # a text tower of another library
        raise needs_package(error, f"BACKBONE {name}", f"pip install {error.name}") from None
    except Exception as error:  # of many types; what does not fit into a network has many lines
        raise UserError(f"BACKBONE {name}: {shorten(str(error) or repr(error), 800)}") from None
    finally:
        logging.disable(logging.NOTSET)
