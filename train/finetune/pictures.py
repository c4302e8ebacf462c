"""The labelled pictures of a live view: as extract shows them, or augmented; a pure function of
(seed, step, place in the batch)."""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from base.errors import DataQualityError
from base.phrase import shown
from cache_specs.items import Items
from cache_specs.spec import Preprocess
from extract.images import OK, contents, pictures_of
from extract.pixels import Pixels
from extract.scaling import levels, pipeline
from train.algorithm.streams import Purpose, stream
from train.finetune.config import PictureSettings

KEPT_BYTES = 2 << 30  # of decoded pictures; others are decoded at each step
DRAWING = threading.Lock()  # torchvision's transforms draw from the process's one generator
AUGMENT, MIX = 0, 1  # what is drawn for a step


class Pictures:
    """rows -> (n, 3, S, S) uint8. Raises DataQualityError for an image that is not what was listed
    any more."""

    def __init__(
        self,
        read: Callable[[int], bytes],
        items: Items,
        prep: Preprocess,
        settings: PictureSettings,
    ) -> None:
        self.read, self.items, self.prep = read, items, prep
        self.kept: dict[int, Tensor] = {}
        self.bytes = 0
        steps: list[v2.Transform] = []
        self.plain = settings.crop == 1 and not settings.flip and not settings.randaugment
        how = v2.InterpolationMode(prep.interpolation)
        whole = (prep.crop, prep.crop)
        if settings.crop < 1:
            part = (settings.crop, 1.0)
            steps.append(v2.RandomResizedCrop(whole, part, interpolation=how, antialias=True))
        else:
            steps.append(v2.Resize(whole, interpolation=how, antialias=True))
        if settings.flip:
            steps.append(v2.RandomHorizontalFlip())
        if settings.randaugment:
            steps.append(v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR))
        self.augment = v2.Compose(steps)

    def as_extracted(self, rows: Sequence[int]) -> Tensor:
        """What extract shows the model."""
        return torch.stack([pipeline(self.prep)(self._decoded(row)) for row in rows])

    def __call__(self, rows: np.ndarray, places: np.ndarray, seed: int, step: int) -> Tensor:
        """What one step learns from, or a part of it: rows, and their places in the whole batch."""
        if self.plain:
            return self.as_extracted(rows.tolist())
        found = []
        for place, row in zip(places.tolist(), rows.tolist(), strict=True):
            picture_3HW = self._picture(row)
            with DRAWING, torch.random.fork_rng(devices=[]):
                drawn = stream(seed, Purpose.TUNING, AUGMENT, (0, place, step))
                torch.manual_seed(int(drawn.integers(2**62)))
                found.append(self.augment(picture_3HW))
        return torch.stack(found)

    def _picture(self, row: int) -> Tensor:
        """(3, H, W) uint8, the shorter side at most twice what the model sees."""
        if row in self.kept:
            return self.kept[row]
        picture_1CHW = levels(self._decoded(row))
        height, width = picture_1CHW.shape[2:]
        factor = 2 * self.prep.resize / min(height, width)
        if factor < 1:
            size = round(height * factor), round(width * factor)
            picture_1CHW = interpolate(picture_1CHW, size, mode="bilinear", antialias=True)
        found = picture_1CHW[0].contiguous()
        if self.bytes + found.nbytes <= KEPT_BYTES:
            self.kept[row] = found
            self.bytes += found.nbytes
        return found

    def _decoded(self, row: int) -> Pixels:
        data, status = contents(self.read, row, self.items.sha256[row])
        if status == OK:
            picture, status = pictures_of(data, [self.prep])[0]
            if picture is not None:
                return picture.pixels
        raise DataQualityError(
            f"the image {shown(self.items.keys[row])!r} is gone, or has other contents than when "
            "it was embedded. Put it back, or extract the data as they are now and tune again"
        )
