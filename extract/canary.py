"""Thirty-two fixed images whose pixels and embeddings are kept at the first extraction and made
again at every start.

A new version of a library may decode, resize or compute otherwise than the one that began the view.
Then the run stops (StaleError) and says which of the two changed, instead of mixing two kinds of
rows in one view. Embeddings are compared in float32, whatever the spec computes in, so that another
GPU or batch size passes and another formula does not.
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from base import durable
from base.errors import IntegrityError, StaleError
from cache_specs import store
from cache_specs.items import Items
from cache_specs.view import STATUS, View

OK = STATUS.index("ok")
ROWS = 32
TOLERANCE = 1e-3  # largest relative L2 distance of two float32 rows, whatever the device
# ... of a stored float16 row and one computed again, by compute dtype
STORED = {"float32": 2e-3, "bfloat16": 3e-2}
PACKAGES = (
    *("torch", "torchvision", "timm", "open_clip_torch", "transformers"),
    *("pillow", "simplejpeg", "numpy", "zarr"),
)


@dataclass(frozen=True)
class Canary:
    """K rows: their pixels' sha256 (or status) and their embeddings, (K, D) float32."""

    rows: list[int]
    pixels: list[str]
    emb_KD: np.ndarray


NONE = Canary([], [], np.empty((0, 0), np.float32))
Make = Callable[[list[int]], Canary]  # these rows as they are computed now


def versions_now() -> dict[str, str]:
    """Of the packages that decode, resize and compute."""
    return {name: metadata.version(name) for name in PACKAGES}


def rows_of(n: int) -> list[int]:
    return np.unique(np.linspace(0, n - 1, ROWS).astype(np.int64)).tolist()


def keep_or_compare(
    view: View,
    make: Make,
    items: Items,
    trusted: Sequence[int] | None = None,
    write: bool = True,
) -> None:
    """Write the view's canary if it has none, else compare. The caller holds the writer's lock
    unless the file is there.

    Raises StaleError naming pixels or outputs, the rows and the packages that changed;
    IntegrityError when the file is damaged. A lost canary is written again (if `write`) only if
    rows of the `trusted` shards (default: all committed) are what is computed now.
    """
    path = view.folder / "canary.json"
    if path.exists():
        old, versions = _read(path, view)
        _refuse_other(view, old, make(old.rows), items, versions)
        return
    if trusted is None:
        trusted = [shard for shard in range(view.shards) if view.commit_file(shard).is_file()]
    compare_stored(view, make, trusted)
    if write:
        _write(view, make(rows_of(view.n)), versions_now())


def _refuse_other(
    view: View, old: Canary, now: Canary, items: Items, versions: dict[str, str]
) -> None:
    """Raise StaleError unless both canaries are the same. versions: those of then."""
    other = []
    for row, was, pixels in zip(old.rows, old.pixels, now.pixels, strict=False):
        if was != pixels:
            other.append(row)
    if other:
        raise StaleError(
            f"the pixels of {len(other)} of {len(old.rows)} fixed images are not those that "
            f"{view.folder} was begun with, first row {other[0]} ({items.keys[other[0]]}): images "
            f"are decoded or resized otherwise now.\n{_changed(versions)}\n{_what_to_do(view)}"
        )
    far = distance(old.emb_KD, now.emb_KD)
    far[[pixel in STATUS for pixel in old.pixels]] = 0
    if not far.max() <= TOLERANCE:
        raise StaleError(
            f"the pixels of {len(old.rows)} fixed images are those that {view.folder} was begun "
            f"with, but the model's outputs changed: relative distance {far.max():.2g} in row "
            f"{old.rows[int(far.argmax())]}, allowed {TOLERANCE:g}.\n"
            f"{_changed(versions)}\n{_what_to_do(view)}"
        )


def _changed(versions: dict[str, str]) -> str:
    """The packages that have another version now, a line each."""
    now, lines = versions_now(), []
    for name, was in versions.items():
        if was != now.get(name):
            lines.append(f"  {name}: {was} -> {now.get(name)}")
    return "\n".join(lines) or "  (no package that is recorded changed its version)"


def differs(donor: View, place: dict[int, int], make: Make) -> str:
    """Why rows of a finished view must not stand beside such as are computed now, '' where they
    may. `place`: its row -> the row of that image here. Compared are its canary, as far as its
    images are here, and its stored rows of these; where there is none of them, of others."""
    try:
        old = _shared(_read(donor.folder / "canary.json", donor)[0], place)
    except IntegrityError:
        old = NONE
    rows = old.rows
    if not rows:
        theirs = sorted(place)
        rows = [theirs[i] for i in rows_of(len(theirs))]
    now = make([place[row] for row in rows])
    if old.rows and old.pixels != now.pixels:
        return "its images are decoded or resized otherwise now"
    others = "the model's outputs are others now, relative distance"
    if old.rows:
        far = distance(old.emb_KD, now.emb_KD).max()
        if not far <= TOLERANCE:
            return f"{others} {far:.2g}, allowed {TOLERANCE:g}"
    most = STORED[donor.attributes["spec"]["compute_dtype"]]
    far = distance(store.read_rows(donor, rows)[0].astype(np.float32), now.emb_KD).max()
    if not far <= most:
        return f"{others} {far:.2g} of its stored rows, allowed {most:g}"
    return ""


def adoptable(n: int, donor: View, place: dict[int, int]) -> tuple[Canary, dict[str, str]] | None:
    """The donor's canary and its versions as those of a view of `n` rows that are all copied, as
    far as it has these images; None where they are too few."""
    try:
        whole, versions = _read(donor.folder / "canary.json", donor)
    except IntegrityError:
        return None
    old = _shared(whole, place)
    if 2 * len(old.rows) < len(rows_of(n)):
        return None
    return Canary([place[row] for row in old.rows], old.pixels, old.emb_KD), versions


def _shared(old: Canary, place: dict[int, int]) -> Canary:
    """Of a donor's canary the rows that have a place here, in the order of that."""
    kept = [k for k, row in enumerate(old.rows) if row in place]
    kept.sort(key=lambda k: place[old.rows[k]])
    rows, pixels = [old.rows[k] for k in kept], [old.pixels[k] for k in kept]
    return Canary(rows, pixels, old.emb_KD[kept])


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


def compare_stored(view: View, make: Make, shards: Sequence[int]) -> None:
    """Raise StaleError when rows that these shards hold, a few of each, are not those that are
    computed now."""
    chosen: set[int] = set()
    for shard in shards:
        first, last = view.bounds(shard)
        places = np.linspace(first, last - 1, max(1, ROWS // len(shards)))
        chosen |= set(places.astype(np.int64).tolist())
    rows = sorted(chosen)
    for first in range(0, len(rows), ROWS):
        canary = make(rows[first : first + ROWS])
        stored_KD, status_K = store.read_rows(view, canary.rows)
        far = distance(stored_KD.astype(np.float32), canary.emb_KD)
        far[(status_K != OK) | np.isin(canary.pixels, STATUS)] = 0
        if not far.max() <= STORED[view.attributes["spec"]["compute_dtype"]]:
            raise StaleError(
                f"{view.folder} has no canary.json, and its row {canary.rows[int(far.argmax())]} "
                f"is not what is computed now (relative distance {far.max():.2g}): the pixels or "
                f"the model changed.\n{_what_to_do(view)}"
            )


def distance(a_KD: np.ndarray, b_KD: np.ndarray) -> np.ndarray:
    """(K,) relative L2 distance of rows; not-a-number counts as infinitely far, unless it stands in
    both."""
    both = np.isnan(a_KD) & np.isnan(b_KD)
    a = np.where(both, 0, a_KD).astype(np.float64)
    b = np.where(both, 0, b_KD).astype(np.float64)
    far = np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(a, axis=1), 1e-12)
    return np.where(np.isfinite(far), far, np.inf)


def _read(path: Path, view: View) -> tuple[Canary, dict[str, str]]:
    try:
        value = durable.read_sealed(path)
        if value["view"] != view.identity:
            raise ValueError("it is that of another view")
        rows, flat = value["rows"], np.frombuffer(base64.b64decode(value["embeddings"]), "<f4")
        canary = Canary(rows, value["pixels"], flat.reshape(len(rows), view.width))
        return canary, value["versions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{path} is damaged ({error}). Type: {store.command(view.folder)}"
        ) from error


def _what_to_do(view: View) -> str:
    return (
        "The finished rows are good, and train may use a finished view; but rows computed now "
        "would not match them. Go back to the versions of then, or embed everything anew under "
        f"another name: copy the spec, and VIEW=path/to/{view.name}-2.toml"
    )
