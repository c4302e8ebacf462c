"""A view whose backbone has learnt from labels of the user's own: which images' labels these were.

    runs/clip-ft/clip-ft.toml        [tuned] parent, mode, labels, seen (the sha256 of the list)
    runs/clip-ft/seen.txt            the list: the sha256 of each image's contents, one a line
    <view>-<key12>/seen.txt          the same beside the embeddings, put there by extract

Nothing that such a view says of these images is a judgement, so training refuses to judge by it
(train/data/seen.py). Without the list, or where it is another one, the view is not trained on.
"""

import hashlib
from pathlib import Path

from base import durable
from base.errors import UNKNOWN, IntegrityError
from cache_specs import store
from cache_specs.spec import ViewSpec
from cache_specs.view import View

FILE = "seen.txt"


def listed(contents: frozenset[str]) -> bytes:
    """What the list of these contents (sha256 in hex) holds."""
    return "".join(f"{sha256}\n" for sha256 in sorted(contents)).encode()


def digest(contents: frozenset[str]) -> str:
    return hashlib.sha256(listed(contents)).hexdigest()


def seen_of(view: View) -> frozenset[str]:
    """The contents of the images whose labels the view's backbone has learnt from; none of a frozen
    one. Raises IntegrityError where the list is gone or damaged."""
    tuned = view.attributes["spec"].get("tuned")
    if tuned is None:
        return frozenset()
    path = view.folder / FILE
    data = _intact(path, tuned["seen"])
    if data is None:
        raise IntegrityError(
            f"{path} is missing or damaged: it lists the images whose labels the view "
            f"{view.name!r} has learnt from, and without it nobody knows what it may judge. Type: "
            f"{store.command(view.folder, 'extract')}"
        )
    return frozenset(data.decode().split())


def keep_seen(view: View, spec: ViewSpec) -> None:
    """Put the list that lies beside the view's TOML file beside its embeddings, unless it is there.
    Raises as `own_list` does."""
    if spec.tuned is None or _intact(view.folder / FILE, spec.tuned.seen) is not None:
        return
    data = own_list(spec)
    with store.writer_lock(view.folder):
        durable.write(view.folder / FILE, data, "seen")


def own_list(spec: ViewSpec) -> bytes:
    """The list that lies beside the TOML file of a tuned view. Raises IntegrityError where it is
    another one, or gone."""
    assert spec.tuned is not None, spec.name
    path = spec.source.parent / FILE
    data = _intact(path, spec.tuned.seen)
    if data is None:
        raise IntegrityError(
            f"{path} is missing, or not the list that {spec.source} was written with: it tells "
            f"whose labels the view has learnt from. Put it back, or tune again: make finetune "
            f"VIEW={UNKNOWN} DATA={UNKNOWN}"
        )
    return data


def _intact(path: Path, sha256: str) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError as error:
        durable.reraise_unless_gone(path, error)
        return None
    return data if hashlib.sha256(data).hexdigest() == sha256 else None
