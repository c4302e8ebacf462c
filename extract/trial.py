"""What a model is asked before its rows are trusted: the canary's embeddings, and whether it can be
used and compiled at all."""

import hashlib

import torch

from base.errors import UsageError
from cache_specs.items import Items
from cache_specs.spec import Preprocess, ViewSpec
from cache_specs.view import STATUS
from extract.canary import ROWS, STORED, Canary, distance
from extract.data.readers import Reader
from extract.images import OK, Batches
from extract.models.backbones import Backbone


@torch.inference_mode()
def take(
    items: Items, read: Reader, prep: Preprocess, backbone: Backbone, device: str, rows: list[int]
) -> Canary:
    """Up to 32 rows as this machine makes them now."""
    pixels_BCHW, status_B, _ = Batches(read, items.sha256, prep, [rows], ROWS)[0]
    emb_BD = backbone(pixels_BCHW.to(device), exact=True).cpu().numpy()
    pixels = []
    for image, code in zip(pixels_BCHW[: len(rows)], status_B.tolist(), strict=False):
        digest = hashlib.sha256(image.numpy().tobytes()).hexdigest()
        pixels.append(digest if code == OK else STATUS[code])
    return Canary(rows, pixels, emb_BD[: len(rows)])


def _noise(batch: int, side: int, device: str) -> torch.Tensor:
    """(B, 3, side, side) uint8, the same each time."""
    chance = torch.Generator().manual_seed(0)
    size = (batch, 3, side, side)
    return torch.randint(256, size, dtype=torch.uint8, generator=chance).to(device)


def refuse_unusable(spec: ViewSpec, backbone: torch.nn.Module, device: str) -> None:
    """Raise UsageError for a model that cannot take the spec's pixels, or says something else of
    the same ones the second time."""
    side = spec.preprocess.crop
    pixels = _noise(1, side, device)
    try:
        with torch.inference_mode():
            one, two = backbone(pixels), backbone(pixels)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UsageError(
            f"{spec.source}: {spec.architecture} fails on {side} x {side} pixels with the output "
            f"{spec.output!r}: {error}. Look at preprocess.crop, output, and arguments (such as "
            "img_size)"
        ) from error
    if (one - two).norm() > 0.01 * one.norm():
        raise UsageError(
            f"{spec.source}: {spec.architecture} gives other embeddings for the same pixels each "
            "time (it masks or samples), so it is no view; take the model class without the masking"
        )


def compile_model(backbone: Backbone, batch: int, spec: ViewSpec, device: str) -> None:
    """torch.compile the model for this batch. Raises UsageError where torch cannot, or where the
    compiled model says something else."""
    pixels, allowed = _noise(batch, spec.preprocess.crop, device), STORED[spec.compute_dtype]
    with torch.inference_mode():
        plain = backbone(pixels).cpu().numpy()
        try:
            backbone.compile_features()
            far = distance(plain, backbone(pixels).cpu().numpy()).max()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of the compiler, its absence, a model that it cannot capture
            raise UsageError(
                f"--compile: torch.compile fails here for {spec.architecture}: "
                f"{type(error).__name__}: {str(error).strip().splitlines()[0]}. "
                "Type the same command without --compile"
            ) from error
    if not far <= allowed:
        raise UsageError(
            f"--compile: the compiled {spec.architecture} gives other embeddings, relative "
            f"distance {far:.2g}, allowed {allowed:g}. Type the same command without --compile"
        )
