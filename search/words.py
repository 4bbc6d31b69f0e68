"""Words as a query, by the text tower of an image-text model, alone or together with pictures."""

from collections.abc import Sequence

import numpy as np
import torch

from features.database import FeatureDatabase, deep_name, unit_rows
from net import FeatureNet
from network.image_text import TextTower
from search.engines import NamedEngine
from search.exact import exact_engine
from search.signals import Signal, describe_distance
from utils import UserError, command


def image_text_model(database: FeatureDatabase) -> int:
    """The number of the first model whose embeddings lie in one space with words, or -1."""
    networks = [record.network for record in database.metadata.models]
    return next((i for i, one in enumerate(networks) if one.has_words), -1)


class Words:
    """The text tower that belongs to a collection, and the exact search by its model alone.

    Parameters
    ----------
    database : the features
    nets : the network of each of its models
    prompt, weight : the settings TEXT_PROMPT and TEXT_WEIGHT
    device : of the networks

    Attributes
    ----------
    engine : ranks by the cosine of that model; of a query it takes that model's embedding only
    signals : that one signal

    Raises
    ------
    UserError : no model of the collection knows words, or its tokenizer cannot be had
    """

    def __init__(
        self,
        database: FeatureDatabase,
        nets: Sequence[FeatureNet],
        prompt: str,
        weight: float,
        device: torch.device,
    ) -> None:
        self.number = image_text_model(database)
        if self.number < 0:
            train = command("train.py", database.base, "--backbone", "open_clip/NAME")
            raise UserError(
                "words need an image-text model with embeddings of its own: run"
                f" {train} --inter-dim 0 --epoch 0, and extract by it or add it to MODELS"
            )
        network = database.metadata.models[self.number].network
        model = nets[self.number].net.backbone.model
        config = network.open_clip or {}
        self.tower = TextTower(model, network.backbone, config, prompt, device)
        self.weight = weight
        self.signals = [Signal(deep_name(self.number), database.deep[self.number], "cosine", 1.0)]
        searched = f"all {len(database.categories):,} pictures, {describe_distance(self.signals)}"
        engine = exact_engine(database, self.signals, device)
        self.engine = NamedEngine("exact", engine, searched, 1.0)

    def query(self, text: str, features: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        """The query of some words, with pictures the mean of both, weighted by TEXT_WEIGHT.

        Parameters
        ----------
        text : in any language that the model knows
        features : of the pictures, for each signal of the collection Q x D

        Returns
        -------
        For the one signal of `engine` Q x D, float32; without pictures 1 x D.
        """
        words = self.tower([text]).cpu().numpy()
        if features is None:
            return [words]
        pictures = unit_rows(features[self.number])
        return [((1 - self.weight) * pictures + self.weight * words).astype(np.float32)]
