"""A cache whose classes have names, as if a text tower had encoded them."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
from conftest import Made
from training import config

from cache_specs import store
from cache_specs.text import ViewText, write_text
from cache_specs.view import View
from train.config import TrainConfig

CLASSES = [str(digit) for digit in range(10)]


class World:
    """A copy of the cache of digits, and what its classes are called there: the mean row of each,
    as if a text tower had guessed it."""

    def __init__(self, made: Made, folder: Path) -> None:
        self.made, self.folder = made, folder
        shutil.copytree(made.cache, folder / "cache")

    def view(self, name: str) -> View:
        dataset = self.folder / "cache" / self.made.dataset.name
        return store.open_view(store.view_folders(dataset, name)[0])

    def name(
        self,
        view: str,
        classes: list[str] | None = None,
        scale: float = 20,
        projected: bool = False,
    ) -> ViewText:
        """projected: the embeddings stand before a linear layer."""
        emb, label = self.made.emb[view].astype(np.float32), self.made.items.label
        tensors = {"scale": np.array(scale, np.float32), "bias": np.array(-1, np.float32)}
        if projected:
            chance = np.random.default_rng(3)
            tensors["projection"] = chance.normal(size=(emb.shape[1], 24)).astype(np.float32)
            tensors["offset"] = chance.normal(size=24).astype(np.float32)
            emb = emb @ tensors["projection"] + tensors["offset"]
        mean_CD = np.stack([emb[label == digit].mean(0) for digit in range(10)])
        tensors["classes"] = mean_CD / np.linalg.norm(mean_CD, axis=1, keepdims=True)
        named = classes or CLASSES
        tensors["classes"] = tensors["classes"][: len(named)]
        text = ViewText(tensors, "t", {name: [f"a {name}"] for name in named})
        write_text(self.view(view), text)
        return text

    def config(self, *views: str, **more: object) -> TrainConfig:
        given = config(self.made, self.folder / "runs", *views, **{"method": "zero-shot", **more})
        return dataclasses.replace(given, cache=str(self.folder / "cache"))
