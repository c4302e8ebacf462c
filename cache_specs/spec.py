"""A view's specification: everything that can change an embedding's numbers, in one TOML file, hashed.

    cache_specs/clip.toml   ->   load_spec("clip")   ->   .fingerprint(weights_sha256)   ->   cache/<dataset>/clip-<12 hex>/

A new view is one more TOML file, here or anywhere (VIEW=path/to/mine.toml). Unknown keys are errors. What only changes
the speed (batch size, workers, device, paths) is a flag of the command line and never stands here.
"""

import dataclasses
import difflib
import hashlib
import math
import tomllib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cache_specs.durable import canonical_json
from cache_specs.errors import UsageError, did_you_mean

SPECS = Path(__file__).parent


@dataclass(frozen=True)
class Weights:
    """Where the model's tensors come from. `files` are all that is read and hashed, relative to the source.

    hub       Hugging Face repository id, with `revision` a tag, branch or commit
    path      a local folder instead, relative to the TOML file
    """

    files: tuple[str, ...]
    hub: str | None = None
    revision: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class Preprocess:
    """Image -> pixels, as the model was published. Sizes in pixels; mean and std of RGB in [0, 1].

    resize_rule `shortest` scales the shorter side to `resize` and cuts the middle `crop` square;
    `squash` scales both sides to `resize` whatever the shape (then crop = resize).
    """

    resize: int
    resize_rule: Literal["shortest", "squash"]
    crop: int
    interpolation: Literal["bilinear", "bicubic"]
    antialias: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class ViewSpec:
    """One view. `output`: cls (normed class token), pooled (the model's own pooling), mean (of patch tokens), projected."""

    name: str
    source: Path
    backend: Literal["open_clip", "transformers"]
    architecture: str
    output: Literal["cls", "pooled", "mean", "projected"]
    width: int
    storage_dtype: Literal["float16"]
    compute_dtype: Literal["float32", "bfloat16"]
    weights: Weights
    preprocess: Preprocess

    def declared(self) -> dict[str, Any]:
        """The hashed values as plain JSON types: all but the view's name and the place of the TOML file."""
        values = dataclasses.asdict(self)
        del values["name"], values["source"]
        return _lists(values)

    def fingerprint(self, weights_sha256: str) -> str:
        """sha256 (hex) of the declared values and of the weights; its first 12 digits name the cache folder."""
        return fingerprint(self.declared(), weights_sha256)


def fingerprint(declared: dict[str, Any], weights_sha256: str) -> str:
    return hashlib.sha256(canonical_json({"spec": declared, "weights_sha256": weights_sha256})).hexdigest()


def view_names() -> list[str]:
    """The views that come with the project."""
    return sorted(path.stem for path in SPECS.glob("*.toml"))


def load_spec(view: str, command: str = "make extract VIEW={view} DATA=…") -> ViewSpec:
    """The spec of a bundled view's name or of a path to a TOML file.

    Raises UsageError naming the nearest view, with `command` filled in, or the nearest key.
    """
    path = Path(view) if view.endswith(".toml") else SPECS / f"{view}.toml"
    if not path.is_file():
        if view.endswith(".toml"):
            raise UsageError(f"there is no view file {path}")
        near = difflib.get_close_matches(view, view_names(), n=1, cutoff=0.5) or ["clip"]
        raise UsageError(f"no view {view!r}{did_you_mean(view, view_names())}. Type: {command.format(view=near[0])}   "
                         "(a view of your own is a TOML file: path/to/mine.toml)")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    for key in ("name", "source"):          # of the file itself, and not hashed
        if key in values:
            raise UsageError(f"{path}: unknown key {key!r}; a view is named after its file")
    spec = _build(ViewSpec, {"name": path.stem, "source": path.resolve(), **values}, str(path))
    _check(spec, str(path))
    return spec


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`preprocess.resize: 224 -> 256` for every field that differs between two nested dicts, in order of name."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


def _build(kind: type, values: dict[str, Any], where: str) -> Any:
    """A frozen dataclass from parsed TOML; each value must have exactly the declared type."""
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise UsageError(f"{where}: unknown key {key!r}{did_you_mean(key, hints)}")
    built = {}
    for field in dataclasses.fields(kind):
        if field.name in values:
            built[field.name] = _convert(hints[field.name], values[field.name], f"{where}: {field.name}")
        elif field.default is dataclasses.MISSING:
            raise UsageError(f"{where}: the key {field.name!r} is missing")
    return kind(**built)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(typing.cast(type, hint), value, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal and value in args:
        return value
    if origin is Literal:
        raise UsageError(f"{where} = {value!r}{did_you_mean(str(value), args)}")
    if origin in (typing.Union, types.UnionType):
        return _convert(next(arg for arg in args if arg is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        if args[-1] is Ellipsis and value:
            return tuple(_convert(args[0], item, where) for item in value)
        if len(value) == len(args):
            return tuple(_convert(arg, item, where) for arg, item in zip(args, value, strict=True))
    if hint is float and type(value) in (int, float):
        return float(value)
    if (isinstance(hint, type) and type(value) is hint) or (hint is Path and isinstance(value, Path)):
        return value
    wanted = str(hint) if origin else getattr(hint, "__name__", str(hint))
    raise UsageError(f"{where} = {value!r} is not of the type {wanted}")


def _check(spec: ViewSpec, where: str) -> None:
    weights, prep = spec.weights, spec.preprocess
    if (weights.hub is None) == (weights.path is None):
        raise UsageError(f"{where}: weights needs either 'hub' (with 'revision') or 'path'")
    if weights.hub is not None and weights.revision is None:
        raise UsageError(f"{where}: weights.hub needs weights.revision, a tag or commit of {weights.hub}")
    unsafe = [name for name in weights.files if not name.endswith((".safetensors", ".json"))]
    if unsafe:
        raise UsageError(f"{where}: weights.files may be .safetensors and .json only (no pickles), found {unsafe[0]!r}")
    outside = [name for name in weights.files if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise UsageError(f"{where}: weights.files are relative to the repository or folder and stay inside it, found {outside[0]!r}")
    if spec.width < 1 or prep.crop < 1 or prep.resize < prep.crop:
        raise UsageError(f"{where}: width and crop must be positive and resize at least crop, "
                         f"found width {spec.width}, resize {prep.resize}, crop {prep.crop}")
    if prep.resize_rule == "squash" and prep.crop != prep.resize:
        raise UsageError(f"{where}: with resize_rule 'squash' crop must equal resize, found {prep.crop} and {prep.resize}")
    if not all(map(math.isfinite, (*prep.mean, *prep.std))) or min(prep.std) <= 0:
        raise UsageError(f"{where}: preprocess.std must be positive, found {list(prep.std)}, and mean finite, found {list(prep.mean)}")


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
