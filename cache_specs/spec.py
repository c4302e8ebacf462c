"""A view's specification: everything that can change an embedding's numbers, in one TOML file, hashed.

    cache_specs/views/clip.toml  ->   load_spec("clip")   ->   .fingerprint(weights_sha256)   ->   cache/<dataset>/clip-<12 hex>/

A new view is one more TOML file, here or anywhere (VIEW=path/to/mine.toml). Unknown keys are errors. What only changes
the speed (batch size, workers, device, paths) is a flag of the command line and never stands here.
"""

import dataclasses
import hashlib
import math
import re
import tomllib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from base.console import short
from base.durable import canonical_json
from base.errors import UsageError, did_you_mean, nearest

SPECS = Path(__file__).parent / "views"


@dataclass(frozen=True)
class About:
    """What a reader wants to know of a view; not hashed. parameters and gmacs (an image) of the tower that is used.

    probing: the feature that the model's own paper gives to linear probes. alike: views that are too alike to teach this one, and why.
    """

    model: str
    parameters: float
    gmacs: float
    licence: str
    probing: str
    alike: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """Where the model's tensors come from. `files` are all that is read and hashed, relative to the source.

    hub       Hugging Face repository id, with `revision` a tag, branch or commit
    path      a local folder instead, relative to the TOML file
    url       the authors' own checkpoint instead, which `make weights` turns into the one of `files`: the tensors under its entry `key`;
              sha256 of the download, where it is known (not hashed)
    """

    files: tuple[str, ...]
    hub: str | None = None
    revision: str | None = None
    path: str | None = None
    url: str | None = None
    sha256: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Tensors:
    """From the checkpoint's names to the model's: `strip` takes a prefix off, then `drop` names the beginnings of all that is no part of the model, then
    `rename` replaces, regular expression by replacement. What is left over after that is an error."""

    strip: str = ""
    drop: tuple[str, ...] = ()
    rename: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Preprocess:
    """Image -> pixels, as the model was published. Sizes in pixels; mean and std of RGB in [0, 1].

    resize_rule `shortest` scales the shorter side to `resize` and cuts the middle `crop` square;
    `squash` scales both sides to `resize` whatever the shape, and cuts the middle too; `pad` adds grey below or on the right until the image is
    square, and scales it to `resize` (then crop = resize).
    """

    resize: int
    resize_rule: Literal["shortest", "squash", "pad"]
    crop: int
    interpolation: Literal["bilinear", "bicubic"]
    antialias: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class ViewSpec:
    """One view. `output`: cls (normed class token), pooled (the model's own pooling), mean (of the patch tokens, then the norm where the model has one
    for it), projected, last4 (of the last four blocks, side by side: the normed class token, or where there is none the mean of the patches).

    arguments: of the model's constructor (timm) or of its forward call (transformers).
    """

    name: str
    source: Path
    backend: Literal["timm", "open_clip", "transformers"]
    architecture: str
    output: Literal["cls", "pooled", "mean", "projected", "last4"]
    width: int
    storage_dtype: Literal["float16"]
    compute_dtype: Literal["float32", "bfloat16"]
    weights: Weights
    preprocess: Preprocess
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    tensors: Tensors = dataclasses.field(default_factory=Tensors)
    about: About | None = None

    def declared(self) -> dict[str, Any]:
        """The hashed values as plain JSON types: all but the view's name, the place of the TOML file, what it says about the model, and the
        check of a download (the weights' own hash is beside it). What a spec need not have is hashed where it has it."""
        values, weights = dataclasses.asdict(self), dataclasses.asdict(self.weights)
        for key in (
            "name",
            "source",
            "about",
            *(["arguments"] if not self.arguments else []),
            *(["tensors"] if self.tensors == Tensors() else []),
        ):
            del values[key]
        if "tensors" in values:  # in their order, which canonical JSON would lose
            values["tensors"]["rename"] = list(self.tensors.rename.items())
        values["weights"] = {
            key: value
            for key, value in weights.items()
            if key != "sha256" and (key not in ("url", "key") or value is not None)
        }
        return _lists(values)

    def fingerprint(self, weights_sha256: str) -> str:
        """sha256 (hex) of the declared values and of the weights; its first 12 digits name the cache folder."""
        return fingerprint(self.declared(), weights_sha256)


def fingerprint(declared: dict[str, Any], weights_sha256: str) -> str:
    return hashlib.sha256(
        canonical_json({"spec": declared, "weights_sha256": weights_sha256})
    ).hexdigest()


def view_names() -> list[str]:
    """The views that come with the project."""
    return sorted(path.stem for path in SPECS.glob("*.toml"))


def load_spec(view: str, among: Sequence[str] = ()) -> ViewSpec:
    """The spec of a bundled view's name or of a path to a TOML file.

    Raises UsageError naming the nearest view, for VIEW or, `among` others, for VIEWS, or the nearest key.
    """
    path = Path(view) if view.endswith(".toml") else SPECS / f"{view}.toml"
    if not path.is_file():
        if view.endswith(".toml"):
            raise UsageError(
                f"there is no view file {path}; type VIEW=path/to/mine.toml of one that is there"
            )
        near = nearest(view, view_names())
        meant = (
            {"VIEWS": ",".join(near if name == view else name for name in among)}
            if among
            else {"VIEW": near}
        )
        raise UsageError(
            f"no view {view!r}{did_you_mean(view, view_names())}. A view of your own is a TOML file: path/to/mine.toml",
            meant if near else None,
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML, mend it: {error}") from error
    for key in ("name", "source"):  # of the file itself, and not hashed
        if key in values:
            raise UsageError(
                f"{path}: unknown key {key!r}: leave it out, a view is named after its file"
            )
    spec = build(ViewSpec, {"name": path.stem, "source": path.resolve(), **values}, str(path))
    check(spec, str(path))
    return spec


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`preprocess.resize: 224 -> 256` for every field that differs between two nested dicts, in order of name; of digests the first 12 digits."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {short(a)} -> {short(b)}")
    return lines


def build(kind: type, values: dict[str, Any], where: str) -> Any:
    """A frozen dataclass from parsed TOML; each value must have exactly the declared type."""
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise UsageError(f"{where}: unknown key {key!r}{did_you_mean(key, hints)}")
    built = {}
    for field in dataclasses.fields(kind):
        if field.name in values:
            built[field.name] = _convert(
                hints[field.name], values[field.name], f"{where}: {field.name}"
            )
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UsageError(
                f"{where}: the key {field.name!r} is missing; add it, as in {SPECS / 'clip.toml'}"
            )
    return kind(**built)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return build(typing.cast(type, hint), value, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal and value in args:
        return value
    if origin is Literal:
        raise UsageError(f"{where} = {value!r}{did_you_mean(str(value), args)}")
    if origin in (typing.Union, types.UnionType):
        return _convert(next(arg for arg in args if arg is not type(None)), value, where)
    if origin is dict and isinstance(value, dict):
        return {
            key: item if args[1] is Any else _convert(args[1], item, f"{where}.{key}")
            for key, item in value.items()
        }
    if origin is tuple and isinstance(value, list):
        if args[-1] is Ellipsis and value:
            return tuple(_convert(args[0], item, where) for item in value)
        if len(value) == len(args):
            return tuple(_convert(arg, item, where) for arg, item in zip(args, value, strict=True))
    if hint is float and type(value) in (int, float):
        return float(value)
    if (isinstance(hint, type) and type(value) is hint) or (
        hint is Path and isinstance(value, Path)
    ):
        return value
    wanted = str(hint) if origin else getattr(hint, "__name__", str(hint))
    raise UsageError(f"{where} = {value!r} is not of the type {wanted}; write one that is")


def check(spec: ViewSpec, where: str) -> None:
    weights, prep = spec.weights, spec.preprocess
    if sum(source is not None for source in (weights.hub, weights.path, weights.url)) != 1:
        raise UsageError(f"{where}: weights needs one of 'hub' (with 'revision'), 'path' and 'url'")
    if weights.url is not None and (
        not weights.url.startswith("https://")
        or [Path(name).suffix for name in weights.files] != [".safetensors"]
    ):
        raise UsageError(
            f"{where}: weights.url must be https:// and weights.files the one .safetensors file that is made of it, found {weights.url!r} "
            f"and {list(weights.files)}"
        )
    if weights.url is None and (weights.sha256 or weights.key):
        raise UsageError(
            f"{where}: weights.sha256 and weights.key belong to weights.url, and there is none: leave them out"
        )
    if not re.fullmatch("[0-9a-f]{64}", weights.sha256 or "0" * 64):
        raise UsageError(
            f"{where}: weights.sha256 must be 64 hexadecimal digits, found {weights.sha256!r}"
        )
    if "" in spec.tensors.drop:
        raise UsageError(
            f"{where}: tensors.drop names beginnings, found an empty one, which drops every tensor: leave it out"
        )
    for pattern, replacement in spec.tensors.rename.items():
        try:
            re.sub(f"{re.compile(pattern).pattern}|", replacement, "")
        except re.error as error:
            raise UsageError(
                f"{where}: tensors.rename: {pattern!r} and {replacement!r} are no regular expression and its replacement: {error}"
            ) from error
    if weights.hub is not None and weights.revision is None:
        raise UsageError(
            f"{where}: weights.hub needs weights.revision, a tag or commit of {weights.hub}"
        )
    unsafe = [name for name in weights.files if not name.endswith((".safetensors", ".json"))]
    if unsafe:
        raise UsageError(
            f"{where}: weights.files may be .safetensors and .json only (no pickles), found {unsafe[0]!r}"
        )
    outside = [
        name for name in weights.files if Path(name).is_absolute() or ".." in Path(name).parts
    ]
    if outside:
        raise UsageError(
            f"{where}: weights.files are relative to the repository or folder and stay inside it, found {outside[0]!r}"
        )
    if spec.width < 1 or prep.crop < 1 or prep.resize < prep.crop:
        raise UsageError(
            f"{where}: width and crop must be positive and resize at least crop, found {spec.width}, {prep.crop} and {prep.resize}"
        )
    if prep.resize_rule == "pad" and prep.crop != prep.resize:
        raise UsageError(
            f"{where}: with resize_rule 'pad' crop must equal resize, found {prep.crop} and {prep.resize}"
        )
    if not all(map(math.isfinite, (*prep.mean, *prep.std))) or min(prep.std) <= 0:
        raise UsageError(
            f"{where}: preprocess.std must be positive, found {list(prep.std)}, and mean finite, found {list(prep.mean)}"
        )


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple | list) else value
