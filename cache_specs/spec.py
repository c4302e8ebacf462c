"""A view's specification: all that can change an embedding's numbers, in one TOML file, hashed.

    cache_specs/views/clip.toml  ->  load_spec("clip")  ->  .fingerprint(weights_sha256)
                                                        ->  cache/<dataset>/clip-<12 hex>/

A new view is one more TOML file, here or anywhere (VIEW=path/to/mine.toml). Unknown keys are
errors. What only changes the speed (batch size, workers, device, paths) is a flag of the command
line and never stands here.
"""

import dataclasses
import hashlib
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from base.console import short
from base.durable import canonical_json
from base.errors import UNKNOWN, UsageError, did_you_mean, nearest

SPECS = Path(__file__).parent / "views"
# How a file becomes 8-bit RGB (extract/pixels.py), and is scaled (extract/scaling.py). Earlier ones
# are kept for what was made with them.
PIXELS = 3
SINCE = {"background": 2, "bits": 2, "max_pixels": 2, "decoder": 3}  # keys that earlier ones lack
WHOLE = "whole"  # how files are decoded where a spec does not say it


# --- what each of a field's values must be (metadata "each"): '' or what is wrong with it


def _no_pickle(name: str) -> str:
    if name.endswith((".safetensors", ".json")):
        return ""
    return f" may be .safetensors and .json only (no pickles), found {name!r}"


def _inside(name: str) -> str:
    if not Path(name).is_absolute() and ".." not in Path(name).parts:
        return ""
    return f" are relative to the repository or folder and stay inside it, found {name!r}"


def _digest(value: str) -> str:
    if re.fullmatch("[0-9a-f]{64}", value):
        return ""
    return f" must be 64 hexadecimal digits, found {value!r}"


def _beginning(value: str) -> str:
    if value:
        return ""
    return " names beginnings, found an empty one, which drops every tensor: leave it out"


def _replacing(rule: tuple[str, str]) -> str:
    pattern, replacement = rule
    try:
        re.sub(f"{re.compile(pattern).pattern}|", replacement, "")
    except re.error as error:
        return (
            f": {pattern!r} and {replacement!r} are no regular expression and its replacement: "
            f"{error}"
        )
    return ""


def _level(value: int) -> str:
    return "" if 0 <= value <= 255 else f" is three levels from 0 to 255, found {value}"


def _bits(value: int) -> str:
    return "" if 8 <= value <= 16 else f" must be 8 to 16, found {value}"


def _some(value: int) -> str:
    return "" if 1 <= value <= 2**31 else f" must be 1 to {2**31:,}, found {value:,}"


def _made_here(value: int) -> str:
    if 1 <= value <= PIXELS:
        return ""
    return f" must be 1 to {PIXELS} here, found {value}: later ones need a later Coview"


def _colour(value: Any) -> Any:
    """'#rrggbb' as three levels; anything else as it is."""
    if not isinstance(value, str):
        return value
    if not re.fullmatch("#[0-9a-fA-F]{6}", value):
        raise ValueError("write a colour as '#rrggbb' or three levels from 0 to 255")
    return list(bytes.fromhex(value[1:]))


# --- the fields


@dataclass(frozen=True)
class About:
    """What a reader wants to know of a view; not hashed. parameters and gmacs (an image) of the
    tower that is used.

    probing: the feature that the model's own paper gives to linear probes. alike: views that are
    too alike to teach this one, and why.
    """

    model: str
    parameters: float
    gmacs: float
    licence: str
    probing: str
    alike: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """Where the model's tensors come from. `files` are all that is read and hashed, relative to the
    source.

    hub       Hugging Face repository id, with `revision` a tag, branch or commit
    path      a local folder instead, relative to the TOML file
    url       the authors' own checkpoint instead, which `make weights` turns into the one of
              `files`
    key       the checkpoint's entry that holds the tensors, and `sha256` of the checkpoint, where
              it is known (not hashed), of a url, or of a path where FROM= of `make weights` is one
    """

    files: tuple[str, ...] = dataclasses.field(metadata={"each": (_no_pickle, _inside)})
    hub: str | None = None
    revision: str | None = None
    path: str | None = None
    url: str | None = None
    sha256: str | None = dataclasses.field(default=None, metadata={"each": (_digest,)})
    key: str | None = None


@dataclass(frozen=True)
class Tensors:
    """From the checkpoint's names to the model's: `strip` takes a prefix off, then `drop` names the
    beginnings of all that is no part of the model, then `rename` replaces, regular expression by
    replacement. What is left over after that is an error."""

    strip: str = ""
    drop: tuple[str, ...] = dataclasses.field(default=(), metadata={"each": (_beginning,)})
    rename: dict[str, str] = dataclasses.field(
        default_factory=dict, metadata={"each": (_replacing,)}
    )


@dataclass(frozen=True)
class Preprocess:
    """Image -> pixels, as the model was published. Sizes in pixels; mean and std of RGB in [0, 1].

    resize_rule `shortest` scales the shorter side to `resize` and cuts the middle `crop` square;
    `squash` scales both sides to `resize` whatever the shape, and cuts the middle too; `pad` adds
    grey below or on the right until the image is square, and scales it to `resize` (then crop =
    resize).

    background: what lies under transparent pixels, '#rrggbb' or three levels. bits: of the 16 of a
    file so many are used (white is 2^bits - 1). max_pixels: of a file; one with more is `too
    large`. pixels: the version of all that turns a file into RGB, and scales it; a new one makes
    each cache stale once. decoder `scaled` decodes a large JPEG at a half, a quarter or an eighth
    of its size, as long as both sides have at least twice `resize`: faster, and a little different.
    """

    resize: int
    resize_rule: Literal["shortest", "squash", "pad"]
    crop: int
    interpolation: Literal["bilinear", "bicubic"]
    antialias: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    background: tuple[int, int, int] = dataclasses.field(
        default=(255, 255, 255), metadata={"read": _colour, "each": (_level,)}
    )
    bits: int = dataclasses.field(default=16, metadata={"each": (_bits,)})
    max_pixels: int = dataclasses.field(default=2**27, metadata={"each": (_some,)})
    pixels: int = dataclasses.field(default=PIXELS, metadata={"each": (_made_here,)})
    decoder: Literal["whole", "scaled"] = WHOLE


def _template(value: str) -> str:
    return "" if "{}" in value else f" must have {{}} where the name stands, found {value!r}"


@dataclass(frozen=True)
class Text:
    """The text tower of a view's model, which brings the names of classes to where its embeddings
    are (extract/models/text.py). No embedding depends on it: it is not in the view's fingerprint,
    but has one of its own.

    architecture: of open_clip, or a class of transformers with both towers. weights: of the whole
    model, and the tokenizer's files where it has some; by itself those of the view. context:
    tokens, to which every text is padded or cut. clean: how open_clip's tokenizers clean a text;
    `canonicalize`: in lower case, without punctuation. templates: what a name is put into, at {}.
    """

    backend: Literal["open_clip", "transformers"]
    architecture: str
    context: int = dataclasses.field(metadata={"each": (_some,)})
    weights: Weights | None = None
    clean: Literal["lower", "whitespace", "canonicalize"] = "lower"
    templates: tuple[str, ...] = dataclasses.field(
        default=("a photo of a {}.",), metadata={"each": (_template,)}
    )

    def fingerprint(self, weights_sha256: str) -> str:
        """sha256 (hex) of what changes a text's vector: all but the templates, which are known by
        the prompts that are made of them, and the check of a download."""
        values = dataclasses.asdict(self)
        del values["weights"], values["templates"]
        return fingerprint(_lists(values), weights_sha256)


@dataclass(frozen=True)
class Tuned:
    """What `make finetune` writes into the file of a view whose backbone has learnt from labels.

    parent: the view that it was tuned from, by its folder in the cache. labels: of so many images;
    seen: the sha256 of the list of these (cache_specs/tuned.py). settings: how it was tuned.
    """

    parent: str
    mode: Literal["lora", "norms", "full"]
    labels: int
    seen: str = dataclasses.field(metadata={"each": (_digest,)})
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class ViewSpec:
    """One view. `output`: cls (normed class token), pooled (the model's own pooling), mean (of the
    patch tokens, then the norm where the model has one for it), projected, last4 (of the last four
    blocks, side by side: the normed class token, or where there is none the mean of the patches).

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
    text: Text | None = None
    tuned: Tuned | None = None

    @property
    def both_towers(self) -> "ViewSpec":
        """The model of `text` as a view of its own: whence its weights come."""
        assert self.text is not None, f"{self.source} has no text tower"
        model = self.text.backend, self.text.architecture
        weights = self.text.weights or self.weights
        return dataclasses.replace(
            self,
            backend=model[0],
            architecture=model[1],
            weights=weights,
            arguments={},
            tensors=Tensors(),
        )

    def declared(self) -> dict[str, Any]:
        """The hashed values as plain JSON types: all but the view's name, the place of the TOML
        file, what it says about the model, its text tower, and the check of a download (the
        weights' own hash is beside it). What a spec need not have is hashed where it has it."""
        values = dataclasses.asdict(self)
        for key in ("name", "source", "about", "text"):
            del values[key]
        if not self.arguments:
            del values["arguments"]
        if self.tuned is None:
            del values["tuned"]
        if self.tensors == Tensors():
            del values["tensors"]
        else:  # in their order, which canonical JSON would lose
            values["tensors"]["rename"] = list(self.tensors.rename.items())
        del values["weights"]["sha256"]
        for key in ("url", "key"):
            if values["weights"][key] is None:
                del values["weights"][key]
        if self.preprocess.decoder == WHOLE:
            del values["preprocess"]["decoder"]
        if self.preprocess.pixels == 1:  # as it was hashed before there were versions
            for key in ("pixels", "background", "bits", "max_pixels"):
                del values["preprocess"][key]
        return _lists(values)

    def fingerprint(self, weights_sha256: str) -> str:
        """sha256 (hex) of the declared values and of the weights; its first 12 digits name the
        cache folder."""
        return fingerprint(self.declared(), weights_sha256)


# --- what several fields must be together: '' or what is wrong with them


def _one_source(spec: ViewSpec) -> str:
    sources = (spec.weights.hub, spec.weights.path, spec.weights.url)
    if sources.count(None) == len(sources) - 1:
        return ""
    return "weights needs one of 'hub' (with 'revision'), 'path' and 'url'"


def _url_of_one_file(spec: ViewSpec) -> str:
    url, files = spec.weights.url, list(spec.weights.files)
    if url is None:
        return ""
    if url.startswith("https://") and [Path(name).suffix for name in files] == [".safetensors"]:
        return ""
    return (
        "weights.url must be https:// and weights.files the one .safetensors file that is made of "
        f"it, found {url!r} and {files}"
    )


def _nothing_of_a_checkpoint(spec: ViewSpec) -> str:
    if spec.weights.hub is None or not (spec.weights.sha256 or spec.weights.key):
        return ""
    return (
        "weights.sha256 and weights.key are of a checkpoint that make weights turns into "
        "safetensors (weights.url or weights.path), and this is the hub's: leave them out"
    )


def _revision_of_hub(spec: ViewSpec) -> str:
    if spec.weights.hub is None or spec.weights.revision is not None:
        return ""
    return f"weights.hub needs weights.revision, a tag or commit of {spec.weights.hub}"


def _sizes(spec: ViewSpec) -> str:
    crop, resize = spec.preprocess.crop, spec.preprocess.resize
    if spec.width >= 1 and 1 <= crop <= resize:
        return ""
    return (
        "width and crop must be positive and resize at least crop, found "
        f"{spec.width}, {crop} and {resize}"
    )


def _padded(spec: ViewSpec) -> str:
    crop, resize = spec.preprocess.crop, spec.preprocess.resize
    if spec.preprocess.resize_rule != "pad" or crop == resize:
        return ""
    return f"with resize_rule 'pad' crop must equal resize, found {crop} and {resize}"


def _mean_and_std(spec: ViewSpec) -> str:
    mean, std = spec.preprocess.mean, spec.preprocess.std
    if all(map(math.isfinite, (*mean, *std))) and min(std) > 0:
        return ""
    return (
        f"preprocess.std must be positive, found {list(std)}, and mean finite, found {list(mean)}"
    )


def _text_of_files(spec: ViewSpec) -> str:
    if spec.text is None or spec.text.weights is None or spec.text.weights.url is None:
        return ""
    return "text.weights are of the hub or a path: make weights turns url into the view's own alone"


def _of_later_pixels(spec: ViewSpec) -> str:
    found = spec.preprocess.pixels
    for field in dataclasses.fields(Preprocess):
        later = SINCE.get(field.name, 0) > found
        if later and getattr(spec.preprocess, field.name) != field.default:
            return f"preprocess.{field.name} needs pixels = {PIXELS}, found pixels = {found}"
    return ""


TOGETHER = (
    _one_source,
    _url_of_one_file,
    _nothing_of_a_checkpoint,
    _revision_of_hub,
    _sizes,
    _padded,
    _mean_and_std,
    _text_of_files,
    _of_later_pixels,
)


def check(spec: ViewSpec, where: str) -> None:
    """Raise UsageError for values that have their types, and cannot be meant."""
    for complaint in _complaints(spec):
        raise UsageError(f"{where}: {complaint}")
    if spec.text is not None:
        for complaint in _complaints(spec.both_towers):
            raise UsageError(f"{where}: text.{complaint}")


def _complaints(spec: ViewSpec) -> Iterator[str]:
    yield from filter(None, (rule(spec) for rule in TOGETHER))
    parts: dict[str, Any] = {
        "weights": spec.weights,
        "tensors": spec.tensors,
        "preprocess": spec.preprocess,
    }
    if spec.text is not None:
        parts["text"] = spec.text
    if spec.tuned is not None:
        parts["tuned"] = spec.tuned
    for group, part in parts.items():
        for field in dataclasses.fields(part):
            values = _values(getattr(part, field.name))
            for rule in field.metadata.get("each", ()):
                for wrong in filter(None, map(rule, values)):
                    yield f"{group}.{field.name}{wrong}"


def _values(value: Any) -> Iterable[Any]:
    """What a rule for each value of a field looks at."""
    if isinstance(value, dict):
        return value.items()
    if isinstance(value, tuple):
        return value
    return () if value is None else (value,)


# --- versions of the pixels


def pixels_of(declared: dict[str, Any]) -> int:
    """The version of the pixels that declared values were written with; 0 of imported rows."""
    return declared["preprocess"].get("pixels", 1) if "preprocess" in declared else 0


def changed_fields(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`differences` of two specs' declared values. Where their versions of the pixels differ that
    is said, and not which keys the earlier one lacks."""
    versions = pixels_of(old), pixels_of(new)
    if 0 in versions:
        return differences(old, new)
    left_out = [key for key, since in SINCE.items() if since > min(versions)]

    def comparable(declared: dict[str, Any], version: int) -> dict[str, Any]:
        kept = {"decoder": WHOLE, **declared["preprocess"], "pixels": version}
        for key in left_out:
            kept.pop(key, None)
        return {**declared, "preprocess": kept}

    return differences(comparable(old, versions[0]), comparable(new, versions[1]))


def with_pixels_of(spec: ViewSpec, declared: dict[str, Any]) -> ViewSpec:
    """The spec as it was before the pixels had their version of now, where that is all in which
    `declared`, of a view that was made, differs; else the spec itself."""
    made = pixels_of(declared)
    if not 0 < made < spec.preprocess.pixels:
        return spec
    older = dataclasses.replace(spec, preprocess=dataclasses.replace(spec.preprocess, pixels=made))
    return older if not _of_later_pixels(older) and older.declared() == declared else spec


# --- reading


def fingerprint(declared: dict[str, Any], weights_sha256: str) -> str:
    whole = {"spec": declared, "weights_sha256": weights_sha256}
    return hashlib.sha256(canonical_json(whole)).hexdigest()


def view_names() -> list[str]:
    """The views that come with the project."""
    return sorted(path.stem for path in SPECS.glob("*.toml"))


def load_spec(view: str, among: Sequence[str] = (), own: Sequence[str] = ()) -> ViewSpec:
    """The spec of a bundled view's name or of a path to a TOML file.

    Raises UsageError naming the nearest view, for VIEW or, `among` others, for VIEWS, or the
    nearest key. own: names of views that the cache holds besides.
    """
    path = Path(view) if view.endswith(".toml") else SPECS / f"{view}.toml"
    if not path.is_file():
        raise _no_view(view, among, own)
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


def recorded_spec(name: str, values: dict[str, Any], source: Path) -> ViewSpec:
    """The spec that a view's cache holds (`declared()` of then), whatever has become of its TOML
    file. source: where that lay, since weights.path is relative to it. Raises UsageError."""
    given = _given(values)
    given["weights"] = _given(values["weights"])
    # one that was recorded before pixels had versions is of the first
    given["preprocess"] = {"pixels": 1, **values["preprocess"]}
    if "tensors" in given:
        given["tensors"] = {**given["tensors"], "rename": dict(given["tensors"]["rename"])}
    told = f"the recorded spec of {name}"
    spec = build(ViewSpec, {"name": name, "source": source, **given}, told)
    check(spec, told)
    return spec


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _no_view(view: str, among: Sequence[str], own: Sequence[str]) -> UsageError:
    known = sorted({*view_names(), *own})
    if view.endswith(".toml"):
        meant = Path(view).stem if Path(view).stem in known else ""
        told = f". The cache has the view {meant!r}: name that" if meant else "; name one that is"
        return UsageError(f"there is no view file {Path(view)}{told}", _named(view, meant, among))
    near = nearest(view, known)
    return UsageError(
        f"no view {view!r}{did_you_mean(view, known)}. A view of your own is a TOML file: "
        "path/to/mine.toml",
        _named(view, near, among),
    )


def _named(view: str, meant: str, among: Sequence[str]) -> dict[str, str | None]:
    """The change to the command that names another view: of VIEWS, where it stands among others."""
    if not among:
        return {"VIEW": meant or UNKNOWN}
    return {"VIEWS": ",".join(meant or UNKNOWN if name == view else name for name in among)}


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`preprocess.resize: 224 -> 256` for every field that differs between two nested dicts, in
    order of name; of digests the first 12 digits."""
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
        name = field.name
        if name in values:
            value = _read(field, values[name], f"{where}: {name}")
            built[name] = _convert(hints[name], value, f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UsageError(
                f"{where}: the key {name!r} is missing; add it, as in {SPECS / 'clip.toml'}"
            )
    return kind(**built)


def _read(field: dataclasses.Field, value: Any, where: str) -> Any:
    """The value where a field may be written in another form, too (metadata "read")."""
    try:
        return field.metadata.get("read", lambda given: given)(value)
    except ValueError as error:
        raise UsageError(f"{where} = {value!r} must be another value: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return build(typing.cast(type, hint), value, where)
    convert = CONVERT.get(typing.get_origin(hint), _plain)
    return convert(hint, value, where)


def _choice(hint: Any, value: Any, where: str) -> Any:
    choices = typing.get_args(hint)
    if value not in choices:
        raise UsageError(f"{where} = {value!r}{did_you_mean(str(value), choices)}")
    return value


def _optional(hint: Any, value: Any, where: str) -> Any:
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    return _convert(kinds[0], value, where)


def _mapping(hint: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _other_type(hint, value, where)
    kind = typing.get_args(hint)[1]
    if kind is Any:
        return dict(value)
    return {key: _convert(kind, item, f"{where}.{key}") for key, item in value.items()}


def _tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _other_type(hint, value, where)
    kinds = typing.get_args(hint)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * max(1, len(value))
    if len(value) != len(kinds):
        raise _other_type(hint, value, where)
    return tuple(_convert(kind, item, where) for kind, item in zip(kinds, value, strict=True))


def _plain(hint: Any, value: Any, where: str) -> Any:
    if hint is float and type(value) in (int, float):
        return float(value)
    if type(value) is hint or (hint is Path and isinstance(value, Path)):
        return value
    raise _other_type(hint, value, where)


def _other_type(hint: Any, value: Any, where: str) -> UsageError:
    wanted = str(hint) if typing.get_origin(hint) else getattr(hint, "__name__", str(hint))
    return UsageError(f"{where} = {value!r} is not of the type {wanted}; write one that is")


CONVERT: dict[Any, Callable[[Any, Any, str], Any]] = {
    Literal: _choice,
    typing.Union: _optional,
    types.UnionType: _optional,
    dict: _mapping,
    tuple: _tuple,
}


def _lists(value: Any) -> Any:
    """With lists in the place of tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple | list) else value
