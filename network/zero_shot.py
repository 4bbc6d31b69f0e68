"""The categories of pictures by an image-text model, without training."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from network.architecture import Architecture
from network.device import to_device
from network.image_text import PREFIX, TextTower, build_image_text, find_weights
from network.layers import Normalize
from utils import UserError


class ZeroShot:
    """Finds the nearest of some names of categories, as CLIP (Radford et al., ICML 2021) does.

    Parameters
    ----------
    network : of an image-text model
    pretrained, prompt : the settings PRETRAINED and TEXT_PROMPT
    names : of the K categories
    device : where it runs
    """

    def __init__(
        self,
        network: Architecture,
        pretrained: str,
        prompt: str,
        names: Sequence[str],
        device: torch.device,
    ) -> None:
        name, config = network.backbone, network.open_clip
        if config is None:
            raise UserError(
                f"BACKBONE {name}: knows no words; name an image-text model: --backbone"
                f" {PREFIX}NAME, {PREFIX}hf-hub:ORG/NAME or {PREFIX}local-dir:FOLDER"
            )
        weights = find_weights(name, pretrained)
        model: Any = build_image_text(name, config, network.crop_size, weights)
        self.model, self.device = to_device(model.eval(), device), device
        self.normalize = to_device(Normalize(network.mean, network.std), device)
        self.texts = TextTower(self.model, name, config, prompt, device)(names)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """N x H x W x 3, uint8 -> the number of the nearest name, and its probability, N each."""
        pictures = self.model.encode_image(self.normalize(images.to(self.device))).float()
        cosine = F.normalize(pictures, dim=1) @ self.texts.T
        best = (self.model.logit_scale.exp() * cosine).softmax(1).max(1)
        return best.indices.cpu(), best.values.cpu()
