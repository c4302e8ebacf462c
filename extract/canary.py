"""Thirty-two fixed images whose pixels and embeddings are kept at the first extraction and made again at every start.

A new version of a library may decode, resize or compute otherwise than the one that began the view. Then the run stops (StaleError) and
says which of the two changed, instead of mixing two kinds of rows in one view. Embeddings are compared in float32, whatever the spec
computes in, so that another GPU or batch size passes and another formula does not.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from base import durable
from base.errors import IntegrityError, StaleError, UsageError
from cache_specs import store
from cache_specs.items import Items
from cache_specs.spec import Preprocess, ViewSpec
from cache_specs.view import STATUS, View
from extract.data.readers import Reader
from extract.images import OK, Batches
from extract.models.backbones import Backbone

ROWS = 32
TOLERANCE = 1e-3  # largest relative L2 distance of two float32 rows, whatever the device
STORED = {
    "float32": 2e-3,
    "bfloat16": 3e-2,
}  # ... of a stored float16 row and one computed again, by compute dtype


@dataclass(frozen=True)
class Canary:
    """K rows: their pixels' sha256 (or status) and their embeddings, (K, D) float32."""

    rows: list[int]
    pixels: list[str]
    emb_KD: np.ndarray


def rows_of(n: int) -> list[int]:
    return np.unique(np.linspace(0, n - 1, ROWS).astype(np.int64)).tolist()


@torch.inference_mode()
def take(
    items: Items, read: Reader, prep: Preprocess, backbone: Backbone, device: str, rows: list[int]
) -> Canary:
    """Up to 32 rows as this machine makes them now."""
    pixels_BCHW, status_B = Batches(read, items.sha256, prep, [rows], ROWS)[0]
    pixels = [
        hashlib.sha256(image.numpy().tobytes()).hexdigest() if code == OK else STATUS[code]
        for image, code in zip(pixels_BCHW, status_B.tolist(), strict=True)
    ][: len(rows)]
    return Canary(
        rows, pixels, backbone(pixels_BCHW.to(device), exact=True).cpu().numpy()[: len(rows)]
    )


def refuse_unusable(spec: ViewSpec, backbone: torch.nn.Module, device: str) -> None:
    """Raise UsageError for a model that cannot take the spec's pixels, or says something else of the same ones the second time."""
    side = spec.preprocess.crop
    pixels = torch.randint(
        256, (1, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).to(device)
    try:
        with torch.inference_mode():
            one, two = backbone(pixels), backbone(pixels)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UsageError(
            f"{spec.source}: {spec.architecture} fails on {side} x {side} pixels with the output {spec.output!r}: {error}. Look at "
            "preprocess.crop, output, and arguments (such as img_size)"
        ) from error
    if (one - two).norm() > 0.01 * one.norm():
        raise UsageError(
            f"{spec.source}: {spec.architecture} gives other embeddings for the same pixels each time (it masks or samples), so it is no view; "
            "take the model class without the masking"
        )


def compile_model(backbone: Backbone, batch: int, spec: ViewSpec, device: str) -> None:
    """torch.compile the model for this batch. Raises UsageError where torch cannot, or where the compiled model says something else."""
    side = spec.preprocess.crop
    pixels = torch.randint(
        256, (batch, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).to(device)
    with torch.inference_mode():
        plain = backbone(pixels).cpu().numpy()
        try:
            backbone.compile_features()
            far = distance(plain, backbone(pixels).cpu().numpy()).max()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of the compiler, its absence, a model that it cannot capture
            raise UsageError(
                f"--compile: torch.compile fails here for {spec.architecture}: {type(error).__name__}: {str(error).strip().splitlines()[0]}. "
                "Type the same command without --compile"
            ) from error
    if not far <= STORED[spec.compute_dtype]:
        raise UsageError(
            f"--compile: the compiled {spec.architecture} gives other embeddings, relative distance {far:.2g}, allowed "
            f"{STORED[spec.compute_dtype]:g}. Type the same command without --compile"
        )


def keep_or_compare(
    view: View,
    make: Callable[[list[int]], Canary],
    items: Items,
    provenance: dict[str, Any],
    trusted: Sequence[int] | None = None,
    write: bool = True,
) -> None:
    """Write the view's canary if it has none, else compare. `make` computes rows. The caller holds the writer's lock unless the file is there.

    Raises StaleError naming pixels or outputs, the rows and the packages that changed; IntegrityError when the file is damaged.
    A lost canary is written again (if `write`) only if rows of the `trusted` shards (default: all committed) are what is computed now.
    """
    path = view.folder / "canary.json"
    if not path.exists():
        compare_stored(
            view,
            make,
            [shard for shard in range(view.shards) if view.commit_file(shard).is_file()]
            if trusted is None
            else trusted,
        )
        if write:
            _write(view, make(rows_of(view.n)), provenance["versions"])
        return
    old, versions = _read(path, view)
    canary = make(old.rows)
    changed = [
        f"  {name}: {was} -> {provenance['versions'].get(name)}"
        for name, was in versions.items()
        if was != provenance["versions"].get(name)
    ]
    packages = "\n".join(changed or ["  (no package that is recorded changed its version)"])
    pixels = [row for row, a, b in zip(old.rows, old.pixels, canary.pixels, strict=False) if a != b]
    if pixels:
        raise StaleError(
            f"the pixels of {len(pixels)} of {len(old.rows)} fixed images are not those that {view.folder} was begun with, first row "
            f"{pixels[0]} ({items.keys[pixels[0]]}): images are decoded or resized otherwise now.\n{packages}\n{_what_to_do(view)}"
        )
    far = distance(old.emb_KD, canary.emb_KD)
    far[[pixel in STATUS for pixel in old.pixels]] = 0
    if not far.max() <= TOLERANCE:
        raise StaleError(
            f"the pixels of {len(old.rows)} fixed images are those that {view.folder} was begun with, but the model's outputs changed: "
            f"relative distance {far.max():.2g} in row {old.rows[int(far.argmax())]}, allowed {TOLERANCE:g}.\n{packages}\n{_what_to_do(view)}"
        )


def differs(donor: View, place: dict[int, int], make: Callable[[list[int]], Canary]) -> str:
    """Why rows of a finished view must not stand beside such as are computed now, '' where they may. `place`: its row -> the row of that image here."""
    try:
        old = _read(donor.folder / "canary.json", donor)[0]
        shared = [k for k, row in enumerate(old.rows) if row in place]
    except IntegrityError:
        shared = []
    rows = (
        [old.rows[k] for k in shared] if shared else [sorted(place)[i] for i in rows_of(len(place))]
    )
    now = make([place[row] for row in rows])
    if shared and [old.pixels[k] for k in shared] != now.pixels:
        return "its images are decoded or resized otherwise now"
    if shared and not (far := distance(old.emb_KD[shared], now.emb_KD).max()) <= TOLERANCE:
        return f"the model's outputs are others now, relative distance {far:.2g}, allowed {TOLERANCE:g}"
    far, most = (
        distance(store.read_rows(donor, rows)[0].astype(np.float32), now.emb_KD).max(),
        STORED[donor.attributes["spec"]["compute_dtype"]],
    )
    return (
        ""
        if far <= most
        else f"the model's outputs are others now, relative distance {far:.2g} of its stored rows, allowed {most:g}"
    )


def adoptable(n: int, donor: View, place: dict[int, int]) -> tuple[Canary, dict[str, str]] | None:
    """The donor's canary and its versions as those of a view of `n` rows that are all copied, as far as it has these images; None where they are too few."""
    try:
        old, versions = _read(donor.folder / "canary.json", donor)
    except IntegrityError:
        return None
    shared = sorted((place[row], k) for k, row in enumerate(old.rows) if row in place)
    if 2 * len(shared) < len(rows_of(n)):
        return None
    return Canary(
        [row for row, _ in shared],
        [old.pixels[k] for _, k in shared],
        old.emb_KD[[k for _, k in shared]],
    ), versions


def adopt(view: View, donor: View, place: dict[int, int]) -> bool:
    """Write the donor's canary as that of the view, if it is `adoptable`."""
    found = adoptable(view.n, donor, place)
    if found:
        _write(view, *found)
    return found is not None


def _write(view: View, canary: Canary, versions: dict[str, str]) -> None:
    value = {
        "view": view.identity,
        "rows": canary.rows,
        "pixels": canary.pixels,
        "versions": versions,
        "embeddings": base64.b64encode(canary.emb_KD.astype("<f4").tobytes()).decode(),
    }
    durable.write(view.folder / "canary.json", durable.sealed(value), "canary")


def compare_stored(view: View, make: Callable[[list[int]], Canary], shards: Sequence[int]) -> None:
    """Raise StaleError when rows that these shards hold, a few of each, are not those that are computed now."""
    rows = sorted(
        {
            int(row)
            for shard in shards
            for row in np.linspace(
                view.bounds(shard)[0], view.bounds(shard)[1] - 1, max(1, ROWS // len(shards))
            )
        }
    )
    for first in range(0, len(rows), ROWS):
        canary = make(rows[first : first + ROWS])
        stored, status = store.read_rows(view, canary.rows)
        far = np.where(
            (status == OK) & [pixel not in STATUS for pixel in canary.pixels],
            distance(stored.astype(np.float32), canary.emb_KD),
            0,
        )
        if not far.max() <= STORED[view.attributes["spec"]["compute_dtype"]]:
            raise StaleError(
                f"{view.folder} has no canary.json, and its row {canary.rows[int(far.argmax())]} is not what is computed now "
                f"(relative distance {far.max():.2g}): the pixels or the model changed.\n{_what_to_do(view)}"
            )


def distance(a_KD: np.ndarray, b_KD: np.ndarray) -> np.ndarray:
    """(K,) relative L2 distance of rows; not-a-number counts as infinitely far, unless it stands in both."""
    both = np.isnan(a_KD) & np.isnan(b_KD)
    a, b = np.where(both, 0, a_KD).astype(np.float64), np.where(both, 0, b_KD).astype(np.float64)
    far = np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(a, axis=1), 1e-12)
    return np.where(np.isfinite(far), far, np.inf)


def _read(path: Path, view: View) -> tuple[Canary, dict[str, str]]:
    try:
        value = durable.read_sealed(path)
        if value["view"] != view.identity:
            raise ValueError("it is that of another view")
        emb_KD = np.frombuffer(base64.b64decode(value["embeddings"]), "<f4").reshape(
            len(value["rows"]), view.width
        )
        return Canary(value["rows"], value["pixels"], emb_KD), value["versions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{path} is damaged ({error}). Type: {store.command(view.folder)}"
        ) from error


def _what_to_do(view: View) -> str:
    return (
        f"The finished rows are good, and train may use a finished view; but rows computed now would not match them. Go back to the versions "
        f"of then, or embed everything anew under another name: copy the spec, and VIEW=path/to/{view.name}-2.toml"
    )
