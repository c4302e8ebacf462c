"""What the names of the classes look like to a view: beside its embeddings, and made once.

    <view>-<key12>/text.safetensors    classes (C, E) unit rows, scale, bias; projection (D, E) and
                                       offset (E) where the embeddings stand before them

    logits = scale * unit(embedding @ projection + offset) @ classes.T + bias

The metadata hold the view, the text tower's fingerprint, the prompts, and the sha256 of it all. It
is no part of the view: without it nothing is missing but zero-shot.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from base import durable
from base.errors import UNKNOWN, IntegrityError, StaleError
from cache_specs import store
from cache_specs.spec import Text
from cache_specs.view import View

FILE = "text.safetensors"
SHOWN = 5  # classes of a message
SHORTEST = 1e-12  # of a row that is made a unit one


@dataclass(frozen=True, eq=False)
class ViewText:
    """tensors: as in the file, float32. tower: the text tower's fingerprint, with its weights;
    declared: that of what the view's file says of it alone. prompts: of each class, in the order of
    the rows. sha256: of tensors and all that is said of them."""

    tensors: dict[str, np.ndarray]
    tower: str
    prompts: dict[str, list[str]]
    declared: str = ""
    sha256: str = ""

    def logits(self, emb_nD: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """(n, D) embeddings -> (n, C) float32 logits of these classes, in their order."""
        x_nE = emb_nD.astype(np.float32)
        if "projection" in self.tensors:
            x_nE = x_nE @ self.tensors["projection"]
        if "offset" in self.tensors:
            x_nE = x_nE + self.tensors["offset"]
        x_nE /= np.maximum(np.linalg.norm(x_nE, axis=1, keepdims=True), SHORTEST)
        text_CE = self.ordered(classes)["classes"]
        return self.tensors["scale"] * (x_nE @ text_CE.T) + self.tensors["bias"]

    def ordered(self, classes: Sequence[str]) -> dict[str, np.ndarray]:
        """The tensors, with the rows of these classes, in their order."""
        row_of = {name: row for row, name in enumerate(self.prompts)}
        text_CE = self.tensors["classes"][[row_of[name] for name in classes]]
        return {**self.tensors, "classes": text_CE}

    def refuse_other_classes(self, view: View, classes: Sequence[str]) -> None:
        """Raise StaleError where the names were those of other classes."""
        lacking = [name for name in classes if name not in self.prompts]
        if lacking:
            listed = ", ".join(map(repr, lacking[:SHOWN]))
            more = f" and {len(lacking) - SHOWN:,} others" if len(lacking) > SHOWN else ""
            raise StaleError(
                f"the class names that were encoded for {view.name!r} are those of other classes: "
                f"{listed}{more} of the data set {'is' if len(lacking) == 1 else 'are'} not among "
                f"them. Type: {command(view)}"
            )

    def refuse_another_tower(self, view: View, declared: Text | None) -> None:
        """Raise StaleError where the view's file says something else of the tower by now."""
        if declared is not None and declared.fingerprint("") != self.declared:
            raise StaleError(
                f"the text tower of {view.name!r} is another by now than the one that encoded the "
                f"class names: [text] of its file has changed. Type: {command(view)}"
            )


def command(view: View) -> str:
    """What encodes the class names of a view; which, the user knows."""
    return f"{store.command(view.folder, 'extract')} CLASSES={UNKNOWN}"


def write_text(view: View, text: ViewText) -> None:
    """Durably, under the view's lock. Raises StorageError."""
    about = _about(view, text)
    # one key, since safetensors keeps no order of several: the same names give the same bytes
    sealed = durable.canonical_json({**about, "sha256": _digest(text, about)})
    metadata = {"about": sealed.decode()}
    tensors = {key: np.asarray(value, np.float32, order="C") for key, value in text.tensors.items()}
    with store.writer_lock(view.folder):
        durable.write(view.folder / FILE, save(tensors, metadata), "text")


def read_text(view: View) -> ViewText | None:
    """None where no names were encoded. Raises IntegrityError (damaged) or StaleError (of another
    view)."""
    path = view.folder / FILE
    if not path.exists():
        return None
    try:
        text, about = _read(path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        durable.reraise_unless_gone(path, error)
        raise IntegrityError(
            f"{path} is damaged ({error}). Delete it, and type: {command(view)}"
        ) from error
    if about["view"] != view.identity:
        raise StaleError(f"{path} was made for another view. Delete it, and type: {command(view)}")
    return text


def _read(path: Path) -> tuple[ViewText, Mapping[str, Any]]:
    data = path.read_bytes()
    tensors = load(data)
    size = int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["about"])
    named = about["tower"], dict(about["prompts"]), about["declared"]
    text = ViewText(tensors, *named, about.pop("sha256"))
    if _digest(text, about) != text.sha256:
        raise ValueError("it has changed since it was written")
    return text, about


def _about(view: View, text: ViewText) -> dict[str, Any]:
    """prompts as pairs, since JSON keeps no order of keys here."""
    named = {"tower": text.tower, "declared": text.declared}
    return {"view": view.identity, **named, "prompts": [*text.prompts.items()]}


def _digest(text: ViewText, about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(durable.canonical_json(about))
    for key, value in sorted(text.tensors.items()):
        digest.update(f"\n{key} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
