"""make weights: the authors' checkpoint becomes safetensors, once; what is another file, hostile
or half there never does."""

import argparse
import hashlib
import io
import pickle
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from models import unpickle_here, write_spec
from safetensors.torch import load_file, save_file

import extract.models.convert as convert_module
from base.errors import IntegrityError, StorageError, UsageError
from cache_specs.spec import ViewSpec, load_spec
from extract.config import ConvertConfig
from extract.models.convert import convert, weights_folder
from extract.models.weights import find_weights

FIT = convert_module._require_fit
RUN = subprocess.run  # as a user's is, in a process of its own; most tests do without
URL = "https://nowhere.example/checkpoint.pth"
TENSORS = {
    "module.a": torch.arange(6.0).view(2, 3),
    "module.b": torch.ones(3, dtype=torch.int64),
    "module.c": torch.arange(12.0).view(3, 4).T,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the TOML file and the checkpoint lie; weights go to its weights/."""
    unpickle_here(monkeypatch)
    monkeypatch.setenv("COVIEW_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(
        "extract.models.convert._require_fit", lambda *given: None
    )  # most checkpoints here are of no model
    return tmp_path


def view(folder: Path, more: str = "") -> ViewSpec:
    spec = write_spec(folder, "resnet50", "mean", 2048, files=["made.safetensors"])
    spec.source.write_text(spec.source.read_text().replace('path = "."', f'url = "{URL}"\n{more}'))
    return load_spec(str(spec.source))


def made(spec: ViewSpec, source: Path | None = None) -> Path:
    return convert(
        ConvertConfig(view=str(spec.source), source=None if source is None else str(source))
    )


def saved(folder: Path, checkpoint: object, name: str = "checkpoint.pth") -> Path:
    torch.save(checkpoint, folder / name)
    return folder / name


def nothing_is_left(folder: Path) -> bool:
    return not list(folder.glob("weights/*")) + list(folder.glob("weights/.*"))


class Answer(io.BytesIO):
    """What urlopen returns."""

    def __init__(self, data: bytes, length: int | None = None) -> None:
        super().__init__(data)
        self.headers = {"Content-Length": str(len(data) if length is None else length)}


def test_the_tensors_are_kept_as_they_are_and_found_by_make_extract(folder, monkeypatch, capsys):
    spec = view(folder)
    with pytest.raises(
        UsageError,
        match=rf"its authors' own checkpoint, {URL}, .*Type: make weights VIEW={spec.source} ",
    ):
        find_weights(spec, None)
    source = saved(folder, TENSORS)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("extract.models.convert.subprocess.run", RUN)
    target = made(spec, Path(source.name))
    found = load_file(target)
    assert target == folder / "weights" / "made.safetensors" and found.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensor, TENSORS[name]) and tensor.dtype == TENSORS[name].dtype
        for name, tensor in found.items()
    )
    assert find_weights(spec, None)[0] == {"made.safetensors": target} and not list(
        folder.glob("weights/.*")
    )
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    out = capsys.readouterr().out
    assert f'sha256 {sha256}; to pin it, write sha256 = "{sha256}" below [weights] in v.toml' in out
    made(view(folder, f'sha256 = "{sha256}"'), source)
    assert "to pin it" not in capsys.readouterr().out


def test_one_entry_of_a_training_checkpoint_with_settings_beside_it(folder):
    source = saved(
        folder,
        {
            "student": {"x": torch.zeros(1)},
            "teacher": TENSORS,
            "args": argparse.Namespace(lr=0.1, out=None),
            "epoch": 3,
        },
    )
    assert load_file(made(view(folder, 'key = "teacher"'), source)).keys() == TENSORS.keys()


def test_an_old_checkpoint_of_before_zip_files_and_shared_tensors_are_read(folder):
    one = torch.arange(4.0)
    torch.save({"a": one, "b": one[:2]}, folder / "old.pth", _use_new_zipfile_serialization=False)
    assert {
        name: tensor.tolist()
        for name, tensor in load_file(made(view(folder), folder / "old.pth")).items()
    } == {"a": [0, 1, 2, 3], "b": [0, 1]}


@pytest.mark.parametrize(
    ("checkpoint", "more", "message"),
    [
        ({"model": TENSORS}, 'key = "teacher"', r"it has no entry 'teacher', but \['model'\]"),
        ([1, 2], 'key = "teacher"', r"it has no entry 'teacher', but list"),
        (
            {"model": TENSORS, "epoch": 3},
            "",
            r"it is no dictionary of tensors: model: dict, epoch: int",
        ),
        ({}, "", "it is no dictionary of tensors"),
        ({"teacher": [torch.zeros(1)]}, 'key = "teacher"', "it is no dictionary of tensors"),
        (torch.zeros(3), "", "it is no dictionary of tensors"),
    ],
)
def test_what_is_no_dictionary_of_tensors_is_refused(folder, checkpoint, more, message):
    with pytest.raises(IntegrityError, match=message):
        made(view(folder, more), saved(folder, checkpoint))
    assert nothing_is_left(folder)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_another_models_checkpoint_is_refused_at_once_and_leaves_what_was_there(
    folder, monkeypatch
):
    from torchvision.models.resnet import BasicBlock, ResNet

    monkeypatch.setattr("extract.models.convert._require_fit", FIT)
    torch.manual_seed(0)
    state = {
        f"module.{name}": tensor
        for name, tensor in ResNet(BasicBlock, [1, 1, 1, 1]).state_dict().items()
        if not name.startswith("fc.")
    }
    spec = view(folder)
    text = (
        spec.source.read_text()
        .replace('"resnet50"', '"resnet18"')
        .replace("width = 2048", "width = 512")
        .replace('strip = ""', 'strip = "module."')
    )
    spec.source.write_text(text.replace("[arguments]\n", "[arguments]\nlayers = [1, 1, 1, 1]\n"))
    target = made(spec, saved(folder, state))
    before = target.read_bytes()
    for wrong in (
        TENSORS,
        {name: tensor for name, tensor in state.items() if "layer4" not in name},
    ):
        with pytest.raises(
            IntegrityError,
            match=(
                r"wrong\.pth is not the checkpoint of 'v', or the spec does not "
                r"describe it: .*missing.*Fetch https"
            ),
        ):
            made(spec, saved(folder, wrong, "wrong.pth"))
        assert target.read_bytes() == before and list(folder.glob("weights/.*")) == []


def test_a_full_disk_is_told_as_one(folder, monkeypatch):
    full = subprocess.CompletedProcess(
        [], 1, "", "Traceback\nOSError: [Errno 28] No space left on device"
    )
    monkeypatch.setattr("extract.models.convert.subprocess.run", lambda *args, **given: full)
    with pytest.raises(
        StorageError,
        match=(
            r"weights is full \(.*No space left.*Make room there, "
            r"or name another folder with COVIEW_WEIGHTS"
        ),
    ):
        made(view(folder), saved(folder, TENSORS))
    assert nothing_is_left(folder)


def test_a_pickle_as_weights_is_answered_with_what_makes_safetensors_of_it(folder):
    spec, pickled = view(folder), saved(folder, TENSORS)
    with pytest.raises(
        UsageError,
        match=rf"type first: make weights VIEW={spec.source} FROM={pickled} ",
    ):
        find_weights(spec, str(pickled))
    with pytest.raises(
        UsageError,
        match=(
            r"'mae' needs a \.safetensors file; "
            r"other checkpoints are pickles, which are not opened here"
        ),
    ):
        find_weights(load_spec("mae"), str(pickled))


@pytest.mark.parametrize("form", ["zip", "old", "bare"])
def test_code_in_a_checkpoint_is_never_run(folder, monkeypatch, form):
    if form == "zip":
        monkeypatch.setattr("extract.models.convert.subprocess.run", RUN)
    harm = {"module.a": torch.zeros(1), "args": Hostile(folder / "harm")}
    source = folder / "checkpoint.pth"
    if form == "bare":
        source.write_bytes(pickle.dumps(harm))
    else:
        torch.save(harm, source, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(
        IntegrityError,
        match=r"checkpoint\.pth is not a checkpoint of bare tensors that can be read safely",
    ):
        made(view(folder), source)
    assert not (folder / "harm").exists() and nothing_is_left(folder)
    pickle.loads(pickle.dumps(Hostile(folder / "harm")))
    assert (folder / "harm").exists(), "it would have"


def test_a_damaged_checkpoint_is_refused(folder):
    source = saved(folder, TENSORS)
    source.write_bytes(source.read_bytes()[:-300])
    with pytest.raises(IntegrityError, match="is not a checkpoint of bare tensors"):
        made(view(folder), source)
    assert nothing_is_left(folder)


def test_another_file_than_the_pinned_one_is_refused_and_not_opened(folder):
    source = saved(folder, TENSORS)
    found = hashlib.sha256(source.read_bytes()).hexdigest()
    with pytest.raises(
        IntegrityError,
        match=rf"is not the checkpoint of 'v': its sha256 is {found}, expected {'0' * 64}",
    ):
        made(view(folder, f'sha256 = "{"0" * 64}"'), source)
    assert nothing_is_left(folder)


def test_it_is_fetched_once(folder, monkeypatch, capsys):
    data, asked = saved(folder, TENSORS).read_bytes(), []
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda url, timeout: asked.append(url) or Answer(data)
    )
    target = made(view(folder))
    before = target.read_bytes()
    assert (
        asked == [URL]
        and f"fetching {URL}" in capsys.readouterr().err
        and not list(folder.glob("weights/.*"))
    )
    assert (
        made(view(folder)) == target
        and asked == [URL]
        and "is there already" in capsys.readouterr().out
    )
    saved(folder, {"other": torch.zeros(1)})
    assert (
        load_file(made(view(folder), folder / "checkpoint.pth")).keys() == {"other"}
        and target.read_bytes() != before
    ), "FROM= is a wish to have it anew"


def test_a_download_that_fails_or_ends_early_leaves_nothing(folder, monkeypatch):
    def refused(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refused)
    with pytest.raises(
        StorageError,
        match=rf"{URL} could not be fetched \(.*no route.*make weights VIEW=.*v\.toml FROM=…",
    ):
        made(view(folder))
    data = saved(folder, TENSORS).read_bytes()
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda url, timeout: Answer(data[:-10], len(data))
    )
    with pytest.raises(
        IntegrityError, match=f"ended after {len(data) - 10:,} of {len(data):,} bytes"
    ):
        made(view(folder))
    assert nothing_is_left(folder)


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_offline_nothing_is_fetched_but_a_file_is_taken(folder, monkeypatch, value):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **given: pytest.fail("fetched"))
    with pytest.raises(
        UsageError,
        match=rf"HF_HUB_OFFLINE is set, so {URL} is not fetched.*make weights VIEW=.* FROM=…",
    ):
        made(view(folder))
    assert nothing_is_left(folder) and (
        value != "1" or made(view(folder), saved(folder, TENSORS)).is_file()
    )


def test_mistakes_are_named(folder):
    with pytest.raises(UsageError, match=r"VIEW is missing\. Type: make weights VIEW=swav"):
        convert(ConvertConfig())
    with pytest.raises(UsageError, match=r"no view 'swaw'; did you mean 'swav'"):
        convert(ConvertConfig(view="swaw"))
    with pytest.raises(
        UsageError,
        match=(
            r"the view 'clip' needs no conversion: its weights are timm/.*"
            r"Type: make extract VIEW=clip"
        ),
    ):
        convert(ConvertConfig(view="clip"))
    with pytest.raises(
        UsageError,
        match=(
            r"FROM=/nowhere/x\.pth: there is no such file\. "
            rf"Name one, or leave FROM out: then it is fetched from {URL}"
        ),
    ):
        made(view(folder), Path("/nowhere/x.pth"))


def test_the_folder_is_the_users_own(monkeypatch):
    monkeypatch.delenv("COVIEW_WEIGHTS", raising=False)
    assert weights_folder() == Path.home() / ".cache" / "coview" / "weights"


# ---------------------------------------------------------------- a spec with a path


def own(folder: Path, more: str = "") -> ViewSpec:
    """A spec whose weights lie in weights.path = "in", none of them yet."""
    spec = write_spec(folder, "resnet50", "mean", 2048, files=["made.safetensors"])
    text = spec.source.read_text().replace('path = "."', f'path = "in"\n{more}')
    spec.source.write_text(text)
    return load_spec(str(spec.source))


@pytest.mark.parametrize("kind", ["pth", "safetensors", "entry"])
def test_a_local_checkpoint_of_a_spec_with_a_path_lands_where_extract_looks(folder, kind):
    spec = own(folder, 'key = "state_dict"' if kind == "entry" else "")
    if kind == "safetensors":
        source = folder / "theirs.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, source)
    else:
        source = saved(folder, {"state_dict": TENSORS} if kind == "entry" else TENSORS)
    with pytest.raises(
        UsageError, match=r"needs the file .*in/made\.safetensors.*make weights VIEW"
    ):
        find_weights(spec, None)
    target = made(spec, source)
    assert target == folder / "in" / "made.safetensors"
    assert find_weights(spec, None)[0] == {"made.safetensors": target}
    for name, tensor in load_file(target).items():
        assert torch.equal(tensor, TENSORS[name])
    assert [path.name for path in target.parent.iterdir()] == ["made.safetensors"]
    assert not (folder / "weights").exists()


def test_weights_that_are_there_are_never_replaced_by_others(folder):
    spec = own(folder)
    with pytest.raises(UsageError, match="FROM is missing: name the checkpoint of which") as raised:
        made(spec)
    assert raised.value.instead == {"FROM": "…"}
    target = made(spec, saved(folder, TENSORS))
    before = target.read_bytes()
    assert made(spec) == made(spec, saved(folder, TENSORS)) == target
    other = saved(folder, {**TENSORS, "module.a": torch.zeros(2, 3)})
    with pytest.raises(UsageError, match="is there already and holds other bytes; it is kept"):
        made(spec, other)
    assert target.read_bytes() == before and len(list(target.parent.iterdir())) == 1
    with pytest.raises(IntegrityError, match=r"no dictionary of tensors.*key = \"state_dict\""):
        made(own(folder), saved(folder, {"epoch": 3, "state_dict": TENSORS}))


def test_another_models_checkpoint_is_refused_for_a_path_too(folder, monkeypatch):
    monkeypatch.setattr("extract.models.convert._require_fit", FIT)
    spec = own(folder)
    with pytest.raises(IntegrityError, match=r"is not the checkpoint of 'v'.*Take another"):
        made(spec, saved(folder, TENSORS))
    assert not list((folder / "in").iterdir())
    (folder / "bad.safetensors").write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=r"bad.safetensors is not the checkpoint of 'v'"):
        made(spec, folder / "bad.safetensors")
