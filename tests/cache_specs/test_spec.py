"""View specs: everything declared is hashed, nothing else is, and every mistake in a TOML file
is named with what to type."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
from conftest import VIEW_TOML

from base.errors import UsageError
from cache_specs.spec import (
    PIXELS,
    SPECS,
    ViewSpec,
    differences,
    fingerprint,
    load_spec,
    view_names,
)

TOML = VIEW_TOML.format(width=16)


def load(folder: Path, text: str, name: str = "v.toml") -> ViewSpec:
    (folder / name).write_text(text)
    return load_spec(str(folder / name))


@pytest.mark.parametrize("name", view_names())
def test_every_bundled_view_loads_and_holds_together(name):
    """What is hashed is what the file says, but for what it says about the model; a key that it
    leaves out is not hashed, but for what turns a file into RGB; nor is its text tower."""
    spec = load_spec(name)
    assert spec.name == name and spec.source == (SPECS / f"{name}.toml").resolve()
    said = tomllib.loads(spec.source.read_text())
    said.pop("about", None)
    said.pop("text", None)
    said["weights"] = {"hub": None, "revision": None, "path": None} | said["weights"]
    shown = {"background": [255, 255, 255], "bits": 16, "max_pixels": 2**27, "pixels": 3}
    said["preprocess"] = shown | said["preprocess"]
    if "tensors" in said:
        said["tensors"] = (
            {"strip": "", "drop": []}
            | said["tensors"]
            | {"rename": [list(rule) for rule in said["tensors"].get("rename", {}).items()]}
        )
    assert spec.declared() == said
    if spec.weights.path is not None:
        assert all((SPECS / spec.weights.path / file).is_file() for file in spec.weights.files)


@pytest.mark.parametrize(
    ("name", "digits"),
    [
        ("tiny-clip", "3ef1f2f9 d74bdcbd b5d28836"),
        ("tiny-dinov2", "cc0715e8 8aa78bca ea4ac009"),
        ("clip", "38380f28 cc4b75d3 8e42cdcf"),
        ("dinov2", "f234934a 548359c8 fe739ded"),
    ],
)
def test_what_is_cached_already_stays_valid(name, digits):
    """Also what was cached with an earlier version of the pixels, as its own."""
    spec, found = load_spec(name), []
    for pixels in range(1, PIXELS + 1):
        prep = dataclasses.replace(spec.preprocess, pixels=pixels)
        found.append(dataclasses.replace(spec, preprocess=prep).fingerprint("x")[:8])
    assert " ".join(found) == digits
    assert spec.fingerprint("x")[:8] == found[-1]


def test_the_bundled_views_are_these():
    assert set(view_names()) == {
        "aimv2",
        "align",
        "blip",
        "clip",
        "clip-b16",
        "dinov2",
        "dinov2-b14",
        "dinov2-g14",
        "dinov2-l14",
        "dinov3",
        "dinov3-convnext",
        "esvit",
        "esvit-last4",
        "eva01",
        "eva02",
        "hiera",
        "mae",
        "metaclip2",
        "owlv2",
        "owlv2-224",
        "pe-core",
        "siglip",
        "siglip2",
        "swav",
        "swav-rn50",
        "tiny-clip",
        "tiny-dinov2",
        "tipsv2",
    }


# One changed line for each declared field (crop and resize of a squashed image go together).
CHANGES = {
    "backend": ('backend = "transformers"', 'backend = "open_clip"'),
    "architecture": ('"Dinov2Model"', '"ViTModel"'),
    "output": ('output = "cls"', 'output = "pooled"'),
    "width": ("width = 16", "width = 17"),
    "compute_dtype": ('compute_dtype = "float32"', 'compute_dtype = "bfloat16"'),
    "weights.files": ('"config.json", ', ""),
    "weights.path": ('path = "none"', 'path = "other"'),
    "weights.hub": ('path = "none"', 'hub = "a/b"\nrevision = "main"'),
    "weights.url": (
        'path = "none"\nfiles = ["config.json", "model.safetensors"]',
        'url = "https://a/b.pth"\nfiles = ["b.safetensors"]',
    ),
    "arguments": ("[weights]", "[arguments]\nimg_size = 8\n[weights]"),
    "tensors": ("[weights]", '[tensors]\nstrip = "module."\n[weights]'),
    "preprocess.crop": (
        'resize = 8\nresize_rule = "squash"\ncrop = 8',
        'resize = 9\nresize_rule = "squash"\ncrop = 9',
    ),
    "preprocess.resize_rule": ('"squash"', '"shortest"'),
    "preprocess.interpolation": ('"bicubic"', '"bilinear"'),
    "preprocess.antialias": ("antialias = true", "antialias = false"),
    "preprocess.mean": ("mean = [0.5, 0.5, 0.5]", "mean = [0.5, 0.5, 0.25]"),
    "preprocess.std": ("std = [0.5, 0.5, 0.5]", "std = [0.5, 0.5, 0.25]"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_the_fingerprint_changes_with_each_declared_field(tmp_path, field):
    old, new = CHANGES[field]
    assert TOML.count(old) == 1
    before, after = load(tmp_path, TOML), load(tmp_path, TOML.replace(old, new))
    assert before.fingerprint("0" * 64) != after.fingerprint("0" * 64)
    assert any(
        line.startswith(f"{field}: ") for line in differences(before.declared(), after.declared())
    )


FULL = TOML.replace(
    'path = "none"\nfiles = ["config.json", "model.safetensors"]',
    f'''
url = "https://a/b.pth"
sha256 = "{"0" * 64}"
key = "teacher"
files = ["b.safetensors"]
''',
).replace(
    "[weights]",
    """
[arguments]
img_size = 8
window = [2, 2]
[tensors]
strip = "module."
drop = ["head.", "b"]
rename = {'^a' = 'b', '^c' = 'd'}
[about]
model = "M"
parameters = 1e6
gmacs = 1
licence = "MIT"
probing = "none"
alike.clip = "the same images"
[tuned]
parent = "v-0123456789ab"
mode = "lora"
labels = 40
seen = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
settings.rank = 2
[weights]""",
)
FURTHER = {
    "arguments.img_size": ("img_size = 8", "img_size = 9"),
    "arguments.window": ("[2, 2]", "[2, 3]"),
    "tensors.strip": ('"module."', '"modul."'),
    "tensors.drop": ('["head.", "b"]', '["b", "head."]'),
    "tensors.rename": ("'^a' = 'b'", "'^a' = 'c'"),
    "weights.url": ("https://a/b.pth", "https://a/c.pth"),
    "weights.key": ('"teacher"', '"student"'),
    "preprocess.decoder": ("[preprocess]", "[preprocess]\ndecoder = 'scaled'"),
    "weights.files": ("b.safetensors", "c.safetensors"),
    "tuned.parent": ("v-0123456789ab", "w-0123456789ab"),
    "tuned.mode": ('mode = "lora"', 'mode = "full"'),
    "tuned.labels": ("labels = 40", "labels = 41"),
    "tuned.seen": ('"00112233', '"10112233'),
    "tuned.settings.rank": ("rank = 2", "rank = 4"),
}


@pytest.mark.parametrize("field", FURTHER)
def test_the_fingerprint_changes_with_each_field_that_a_spec_may_have(tmp_path, field):
    old, new = FURTHER[field]
    assert FULL.count(old) == 1
    before, after = load(tmp_path, FULL), load(tmp_path, FULL.replace(old, new))
    assert (
        before.fingerprint("x") != after.fingerprint("x") != load(tmp_path, TOML).fingerprint("x")
    )
    assert [line.split(":")[0] for line in differences(before.declared(), after.declared())] == [
        field
    ]


def test_rules_of_renaming_are_hashed_in_the_order_in_which_they_are_applied(tmp_path):
    swapped = load(tmp_path, FULL.replace("'^a' = 'b', '^c' = 'd'", "'^c' = 'd', '^a' = 'b'"))
    assert swapped.fingerprint("x") != load(tmp_path, FULL).fingerprint("x")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('model = "M"', 'model = "N"'),
        ("parameters = 1e6", "parameters = 2e6"),
        ("gmacs = 1", "gmacs = 2.5"),
        ('licence = "MIT"', 'licence = "CC"'),
        ('"the same images"', '"other"'),
        ('probing = "none"', 'probing = "all"'),
        (f'sha256 = "{"0" * 64}"', f'sha256 = "{"1" * 64}"'),
        (f'sha256 = "{"0" * 64}"', ""),
    ],
)
def test_what_is_said_about_a_model_or_checks_a_download_is_not_hashed(tmp_path, old, new):
    assert FULL.count(old) == 1
    spec = load(tmp_path, FULL.replace(old, new))
    assert (
        spec.fingerprint("x") == load(tmp_path, FULL).fingerprint("x")
        and "about" not in spec.declared()
        and spec.about.alike.keys() == {"clip"}
    )


def test_no_declared_field_is_left_out_of_the_fingerprint(tmp_path):
    """Also those that have one legal value today (storage_dtype), or are changed
    above together with another."""
    spec = load(tmp_path, TOML)
    seen = {spec.fingerprint("0" * 64)}

    def leaves(value: object, path: tuple = ()) -> list[tuple]:
        return (
            [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
            if isinstance(value, dict)
            else [path]
        )

    fields = leaves(spec.declared())
    full = leaves(load(tmp_path, FULL).declared())
    assert (
        len(full) == len(dataclasses.fields(ViewSpec)) - 9 + 6 + 11 + 2 + 3 + 5
    )  # name, source, about, text; weights, preprocess, arguments, tensors, tuned -> their fields
    assert len(fields) == len(full) - 2 - 2 - 3 - 5  # what need not be there
    for path in fields:
        declared = spec.declared()
        inner = declared
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = "changed"
        seen.add(fingerprint(declared, "0" * 64))
    assert len(seen) == 1 + len(fields)


def test_the_fingerprint_changes_with_the_weights_and_not_with_the_file_its_place_or_its_comments(
    tmp_path,
):
    spec = load(tmp_path, TOML)
    (tmp_path / "deep").mkdir()
    same = load(
        tmp_path / "deep",
        "# a comment\n" + TOML.replace("0.5, 0.5, 0.5", "0.50,0.5 , 0.5"),
        "other.toml",
    )
    assert same.name == "other" and same.fingerprint("0" * 64) == spec.fingerprint("0" * 64)
    assert spec.fingerprint("0" * 64) != spec.fingerprint("1" * 64)
    assert re.fullmatch("[0-9a-f]{64}", spec.fingerprint("0" * 64))


def test_a_whole_number_and_its_float_are_one_value(tmp_path):
    assert load(tmp_path, TOML.replace("mean = [0.5, 0.5, 0.5]", "mean = [0, 0, 0]")).fingerprint(
        ""
    ) == load(
        tmp_path, TOML.replace("mean = [0.5, 0.5, 0.5]", "mean = [0.0, 0.0, 0.0]")
    ).fingerprint("")


MISTAKES = {
    "unknown key": (
        'output = "cls"',
        'outptu = "cls"',
        r"unknown key 'outptu'; did you mean 'output'",
    ),
    "unknown key, nothing near": (
        'output = "cls"',
        'zzzz = 1\noutput = "cls"',
        r"unknown key 'zzzz'; there is: about, architecture, arguments, backend",
    ),
    "unknown inner key": (
        "antialias = true",
        "antialis = true",
        r"unknown key 'antialis'; did you mean 'antialias'",
    ),
    "wrong type": ("width = 16", 'width = "16"', r"width = '16' is not of the type int"),
    "a bool for a number": ("width = 16", "width = true", r"width = True is not of the type int"),
    "a number for a bool": (
        "antialias = true",
        "antialias = 1",
        r"antialias = 1 is not of the type bool",
    ),
    "a float for an int": ("width = 16", "width = 16.0", r"width = 16.0 is not of the type int"),
    "two of three": (
        "mean = [0.5, 0.5, 0.5]",
        "mean = [0.5, 0.5]",
        r"mean = \[0.5, 0.5\] is not of the type tuple\[float, float, float\]",
    ),
    "text among numbers": (
        "mean = [0.5, 0.5, 0.5]",
        'mean = [0.5, 0.5, "x"]',
        r"mean = 'x' is not of the type float",
    ),
    "no files": (
        'files = ["config.json", "model.safetensors"]',
        "files = []",
        r"files = \[\] is not of the type tuple",
    ),
    "a table for a value": (
        "width = 16",
        "width = {a = 1}",
        r"width = \{'a': 1\} is not of the type int",
    ),
    "missing key": ("width = 16\n", "", r"the key 'width' is missing"),
    "missing inner key": (
        "crop = 8\n",
        "",
        r"preprocess: the key 'crop' is missing|the key 'crop' is missing",
    ),
    "bad literal": ('output = "cls"', 'output = "clss"', r"output = 'clss'; did you mean 'cls'"),
    "another storage": (
        '"float16"',
        '"bfloat16"',
        r"storage_dtype = 'bfloat16'; did you mean 'float16'",
    ),
    "a backend that is not here": (
        '"transformers"',
        '"jax"',
        r"backend = 'jax'; there is: open_clip, timm, transformers",
    ),
    "hub without revision": (
        'path = "none"',
        'hub = "a/b"',
        r"weights\.hub needs weights\.revision, a tag or commit of a/b",
    ),
    "hub and path": (
        'path = "none"',
        'path = "none"\nhub = "a/b"\nrevision = "main"',
        r"weights needs one of 'hub' \(with 'revision'\), 'path' and 'url'",
    ),
    "neither": ('path = "none"\n', "", r"weights needs one of 'hub'"),
    "url and path": (
        'path = "none"',
        'path = "none"\nurl = "https://a/b.pth"',
        r"weights needs one of 'hub' \(with 'revision'\), 'path' and 'url'",
    ),
    "url that is not https": (
        'path = "none"',
        'url = "http://a/b.pth"',
        r"weights\.url must be https:// .* found 'http://a/b\.pth'",
    ),
    "url and two files": (
        'path = "none"',
        'url = "https://a/b.pth"',
        r"the one \.safetensors file that is made of it, found .*'config\.json'",
    ),
    "url and no safetensors": (
        'path = "none"\nfiles = ["config.json", "model.safetensors"]',
        'url = "https://a/b.pth"\nfiles = ["config.json"]',
        r"the one \.safetensors file that is made of it, found .*'config\.json'",
    ),
    "key of the hub's": (
        'path = "none"',
        'hub = "a/b"\nrevision = "main"\nkey = "teacher"',
        r"weights\.sha256 and weights\.key are of a checkpoint.*leave them out",
    ),
    "sha256 of the hub's": (
        'path = "none"',
        f'hub = "a/b"\nrevision = "main"\nsha256 = "{"0" * 64}"',
        r"weights\.sha256 and weights\.key are of a checkpoint.*leave them out",
    ),
    "sha256 that is none": (
        'path = "none"\nfiles = ["config.json", "model.safetensors"]',
        'url = "https://a/b.pth"\nsha256 = "12"\nfiles = ["b.safetensors"]',
        r"weights\.sha256 must be 64 hexadecimal digits, found '12'",
    ),
    "no regular expression": (
        "[weights]",
        "[tensors]\nrename = {'(' = ''}\n[weights]",
        r"tensors\.rename: '\(' and '' are no regular expression",
    ),
    "replacement of a group that is not there": (
        "[weights]",
        "[tensors]\nrename = {'a' = '\\1'}\n[weights]",
        r"tensors\.rename: 'a' and .*invalid group",
    ),
    "drop that drops all": (
        "[weights]",
        '[tensors]\ndrop = [""]\n[weights]',
        r"tensors\.drop names beginnings, found an empty one",
    ),
    "drop that is no list": (
        "[weights]",
        '[tensors]\ndrop = "head."\n[weights]',
        r"drop = 'head\.' is not of the type tuple",
    ),
    "about without a licence": (
        "[weights]",
        '[about]\nmodel = "M"\nparameters = 1\ngmacs = 1\nprobing = "x"\n[weights]',
        r"the key 'licence' is missing",
    ),
    "arguments that are none": (
        "width = 16",
        'arguments = "x"\nwidth = 16',
        r"arguments = 'x' is not of the type dict",
    ),
    "rename to a number": (
        "[weights]",
        "[tensors]\nrename = {'a' = 1}\n[weights]",
        r"rename\.a = 1 is not of the type str",
    ),
    "pickle": (
        '"model.safetensors"',
        '"pytorch_model.bin"',
        r"\.safetensors and \.json only \(no pickles\), found 'pytorch_model\.bin'",
    ),
    "crop above resize": (
        '"squash"\ncrop = 8',
        '"shortest"\ncrop = 9',
        r"resize at least crop, found 16, 9 and 8",
    ),
    "no width": ("width = 16", "width = 0", r"width and crop must be positive.*found 0, "),
    "pad with a crop": (
        'resize_rule = "squash"\ncrop = 8',
        'resize_rule = "pad"\ncrop = 7',
        r"with resize_rule 'pad' crop must equal resize, found 7 and 8",
    ),
    "std of 0": (
        "std = [0.5, 0.5, 0.5]",
        "std = [0.5, 0.0, 0.5]",
        r"preprocess\.std must be positive, found \[0\.5, 0\.0, 0\.5\]",
    ),
    "std that is no number": (
        "std = [0.5, 0.5, 0.5]",
        "std = [0.5, nan, 0.5]",
        r"preprocess\.\w+ must be",
    ),
    "mean that is no number": (
        "mean = [0.5, 0.5, 0.5]",
        "mean = [0.5, inf, 0.5]",
        r"preprocess\.\w+ must be",
    ),
    "no TOML": ("width = 16", "width: 16", r"is not valid TOML, mend it: .*line 5"),
    "files that leave the folder": (
        '"model.safetensors"',
        '"../model.safetensors"',
        r"weights\.files.*'\.\./model\.safetensors'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_file(tmp_path, mistake):
    old, new, message = MISTAKES[mistake]
    assert TOML.count(old) == 1
    with pytest.raises(UsageError, match=message) as caught:
        load(tmp_path, TOML.replace(old, new))
    assert str(tmp_path / "v.toml") in str(caught.value) and caught.value.exit_code == 2


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "v.toml").write_bytes(b"\xff\xfe" + TOML.encode())
    with pytest.raises(UsageError, match="is not valid TOML"):
        load_spec(str(tmp_path / "v.toml"))


def test_the_name_and_the_place_cannot_be_declared(tmp_path):
    for key in ("name", "source"):
        with pytest.raises(UsageError, match=f"unknown key '{key}'"):
            load(tmp_path, f'{key} = "x"\n' + TOML)


def test_a_misspelt_view_names_the_nearest_and_the_whole_command():
    with pytest.raises(UsageError, match=r"no view 'dinvo2'; did you mean 'dinov2'") as caught:
        load_spec("dinvo2")
    assert caught.value.instead == {"VIEW": "dinov2"}
    with pytest.raises(UsageError) as caught:
        load_spec("dinvo2", ["clip", "dinvo2"])
    assert caught.value.instead == {"VIEWS": "clip,dinov2"}
    with pytest.raises(
        UsageError,
        match=r"no view 'qqqq'; there is: aimv2, align, .*A view of your own is a TOML file",
    ):
        load_spec("qqqq")
    with pytest.raises(UsageError, match=r"there is no view file /nowhere/v\.toml"):
        load_spec("/nowhere/v.toml")


def test_differences_name_nested_fields_in_order():
    assert differences({"a": 1, "b": {"c": [1], "d": 2}}, {"b": {"c": [1, 2], "d": 2}, "e": 3}) == [
        "a: 1 -> None",
        "b.c: [1] -> [1, 2]",
        "e: None -> 3",
    ]


# --- the text tower

TEXT = '\n[text]\nbackend = "transformers"\narchitecture = "CLIPModel"\ncontext = 77\n'


def test_no_embedding_depends_on_the_text_tower(tmp_path):
    """It has a fingerprint of its own, of all that changes a text's vector."""
    plain, spec = load(tmp_path, TOML), load(tmp_path, TOML + TEXT)
    assert plain.text is None and spec.declared() == plain.declared()
    assert spec.text is not None and spec.text.templates == ("a photo of a {}.",)
    prints = {spec.text.fingerprint("x"), spec.text.fingerprint("y")}
    for old, new in (("77", "64"), ("CLIPModel", "SiglipModel"), ("transformers", "open_clip")):
        other = load(tmp_path, TOML + TEXT.replace(old, new)).text
        prints.add(other.fingerprint("x"))
    cleaned = load(tmp_path, f'{TOML}{TEXT}clean = "canonicalize"\n').text
    assert len(prints | {cleaned.fingerprint("x")}) == 6
    named = load(tmp_path, f'{TOML}{TEXT}templates = ["{{}}"]\n').text
    assert named.fingerprint("x") == spec.text.fingerprint("x")  # the prompts are kept themselves


def test_its_model_is_the_views_unless_it_names_another(tmp_path):
    mine = '[text.weights]\nhub = "a/b"\nrevision = "main"\nfiles = ["config.json"]\n'
    assert load(tmp_path, TOML + TEXT).both_towers.weights.path == "none"
    both = load(tmp_path, TOML + TEXT + mine).both_towers
    assert (both.architecture, both.weights.hub, both.weights.path) == ("CLIPModel", "a/b", None)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("clean = 'low'", "text: clean = 'low'; did you mean 'lower'"),
        (
            "templates = ['a photo']",
            "text.templates must have {} where the name stands, found",
        ),
        ("padding = 64", "text: unknown key 'padding'; there is: architecture"),
        ("[text.weights]\nfiles = ['a.bin']\npath = 'p'", "weights.files may be .safetensors and"),
        (
            "[text.weights]\nfiles = ['config.json']\nhub = 'a/b'",
            "text.weights.hub needs weights.revision",
        ),
        (
            "[text.weights]\nfiles = ['a.safetensors']\nurl = 'https://a/b'",
            "text.weights are of the hub or a path",
        ),
    ],
)
def test_what_is_wrong_with_a_text_tower_is_named(tmp_path, more, told):
    with pytest.raises(UsageError, match=re.escape(told)):
        load(tmp_path, f"{TOML}{TEXT}{more}\n")


def test_the_views_with_a_text_tower_are_these():
    towers = {name: load_spec(name).text for name in view_names()}
    context = {name: text.context for name, text in towers.items() if text is not None}
    assert context == {
        "align": 64,
        "clip": 77,
        "clip-b16": 77,
        "metaclip2": 77,
        "pe-core": 32,
        "siglip": 64,
        "siglip2": 64,
        "tiny-clip": 20,
        "tipsv2": 64,
    }
