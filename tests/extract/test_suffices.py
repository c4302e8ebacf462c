"""Extraction where memory, a disk or what the hub gives does not suffice; and the commit of the hub
that it keeps to."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import config
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from PIL import ImageFile
from safetensors.torch import load_file, save_file

from base.errors import StaleError, StorageError, UsageError
from cache_specs.spec import SPECS, ViewSpec, load_spec
from cache_specs.store import open_view
from extract.data.hub import of_hub
from extract.models.backbones import Backbone
from extract.models.weights import find_weights
from extract.run import run

A, B = 40 * "a", 40 * "b"
SMALL = """
import torch
from extract.models.backbones import Backbone
plain = Backbone.forward
def forward(self, pixels, exact=False):
    if not exact and len(pixels) > {most}:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return plain(self, pixels, exact)
Backbone.forward = forward
"""


def batch_of(cache: Path) -> int:
    (folder,) = cache.glob("*/tiny-clip-*")
    return open_view(folder).attributes["provenance"]["batch"]


def test_a_batch_that_is_too_large_says_which_to_type_and_that_works(
    photos: Path, tmp_path: Path, command: Callable
) -> None:
    """The view, of which no shard is done, is begun anew with it: the same bytes as one that never
    failed."""
    words = ["--view", "tiny-clip", "--data", photos, "--max-bad", "10%", "--shard-rows", 8]
    words += ["--device", "cpu", "--workers", 0]
    first = SMALL.format(most=8)
    failed = command("extract", *words, "--cache", tmp_path / "a", "--batch", 16, first=first)
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    assert "suffice for batches of 16 of tiny-clip on cpu (CUDA out of memory" in failed.stderr
    typed = shlex.split(failed.stderr.rpartition("Type: ")[2])
    assert typed[:3] == ["make", "extract", "VIEW=tiny-clip"] and typed[-1].endswith(" --batch 8")
    assert batch_of(tmp_path / "a") == 16
    done = command("extract", *words, "--cache", tmp_path / "a", "--batch", 8, first=first)
    assert done.returncode == 0 and batch_of(tmp_path / "a") == 8, done.stderr
    run(config(photos, tmp_path / "b", batch=8, shard_rows=8))
    (one,), (two,) = tmp_path.glob("a/*/tiny-clip-*"), tmp_path.glob("b/*/tiny-clip-*")
    assert open_view(one).attributes["provenance"].keys() == (
        open_view(two).attributes["provenance"].keys()
    )
    for file in sorted((two / "embeddings").glob("c/*/0")):
        assert file.read_bytes() == (one / file.relative_to(two)).read_bytes()


def test_a_good_image_is_not_lost_where_memory_is_short(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends, and goes on once there is enough."""
    settings = config(photos, tmp_path / "a", max_bad="50%")
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", lambda self: bytearray(2**62))
        with pytest.raises(UsageError, match="the memory does not suffice for"):
            run(settings)
    found, wanted = run(settings), run(config(photos, tmp_path / "b", max_bad="50%"))
    one, two = found.status_file(0).read_bytes(), wanted.status_file(0).read_bytes()
    assert one == two


def test_a_view_that_has_shards_keeps_its_batch(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(photos, tmp_path, batch=8, shard_rows=8)
    view = run(settings)
    (view.folder / "complete.json").unlink()
    view.commit_file(view.shards - 1).unlink()
    monkeypatch.setattr(Backbone, "forward", Backbone.forward)  # and back at the end
    exec(SMALL.format(most=1), {})
    with pytest.raises(UsageError, match="was begun with this batch and keeps it"):
        run(config(photos, tmp_path, batch=2, shard_rows=8))
    assert batch_of(tmp_path) == 8


def hub_view(folder: Path) -> Path:
    """tiny-clip, whose weights are those of a repository of the hub, at main."""
    text = (SPECS / "tiny-clip.toml").read_text()
    path = folder / "v.toml"
    path.write_text(
        text.replace('path = "weights/tiny-clip"', 'hub = "some/one"\nrevision = "main"')
    )
    return path


class Hub:
    """hf_hub_download of a repository with two commits, of which main is one."""

    def __init__(self, folder: Path) -> None:
        self.there, self.here, self.main, self.fetched = folder / "hub", folder / "local", A, []
        self.refs = ""
        for commit in (A, B):
            shutil.copytree(SPECS / "weights" / "tiny-clip", self.there / commit)
        file = self.there / B / "open_clip_model.safetensors"
        tensors = load_file(file)
        save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, file)

    def __call__(
        self, repository: str, name: str, revision: str, local_files_only: bool = False
    ) -> str:
        assert repository == "some/one"
        known = self.refs if revision == "main" else revision
        place = self.here / "models--some--one" / "snapshots"
        if (place / known / name).is_file():
            return str(place / known / name)
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        commit = self.main if revision == "main" else revision
        self.refs = commit if revision == "main" else self.refs
        (place / commit).mkdir(parents=True, exist_ok=True)
        shutil.copy(self.there / commit / name, place / commit / name)
        self.fetched.append((name, commit))
        return str(place / commit / name)

    def lost(self) -> None:
        """Another machine, or an emptied cache of the hub."""
        shutil.rmtree(self.here)
        self.refs = ""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path)
    monkeypatch.setattr("extract.models.weights.hf_hub_download", made)
    return made


def test_all_files_are_of_one_commit(hub: Hub, tmp_path: Path) -> None:
    spec = load_spec(str(hub_view(tmp_path)))
    hub("some/one", spec.weights.files[0], "main")
    hub.main = B  # moves between two files
    _, sha256 = find_weights(spec, None)
    assert hub.fetched == [(name, A) for name in spec.weights.files]
    hub.lost()
    assert find_weights(spec, None)[1] != sha256
    assert {commit for _, commit in hub.fetched[2:]} == {B}
    hub.lost()
    assert find_weights(spec, None, commit=A)[1] == sha256


def test_the_commit_that_was_fetched_is_recorded_and_kept_to(
    hub: Hub, tmp_path: Path, photos: Path
) -> None:
    """A later main is not mixed in: neither in this data set, nor in another, nor by predict."""
    view, cache = str(hub_view(tmp_path)), tmp_path / "cache"
    made = run(config(photos, cache, view=view))
    assert made.attributes["provenance"]["weights_commit"] == A
    hub.main = B
    hub.lost()
    assert run(config(photos, cache, view=view)).identity == made.identity
    more = tmp_path / "more"
    shutil.copytree(photos, more)
    np.random.default_rng(0).integers(0, 9, 9).tofile(more / "x.txt")
    hub.lost()
    assert run(config(more, cache, view=view, name="more")).folder.name == made.folder.name
    assert {commit for _, commit in hub.fetched} == {A}
    newest = run(config(photos, tmp_path / "another cache", view=view))
    assert newest.attributes["provenance"]["weights_commit"] == B
    assert newest.folder.name != made.folder.name


def test_weights_from_elsewhere_have_no_commit_and_others_are_refused(
    hub: Hub, tmp_path: Path, photos: Path
) -> None:
    view, cache = str(hub_view(tmp_path)), tmp_path / "cache"
    made = run(config(photos, cache, view=view, weights=str(hub.there / A)))
    assert "weights_commit" not in made.attributes["provenance"] and not hub.fetched
    hub.main = B
    with pytest.raises(StaleError, match=r"weights\.sha256"):
        run(config(photos, cache, view=view))


def refused(spec: ViewSpec, error: Exception, monkeypatch: pytest.MonkeyPatch) -> Exception:
    """What find_weights makes of an error of the hub."""

    def fetch(*_: object, local_files_only: bool = False, **more: object) -> str:
        raise LocalEntryNotFoundError("not here") if local_files_only else error

    monkeypatch.setattr("extract.models.weights.hf_hub_download", fetch)
    with pytest.raises((UsageError, StorageError)) as caught:
        find_weights(spec, None)
    return caught.value


def answer(kind: type, text: str) -> Exception:
    """An error that holds an answer of the hub, without one."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


@pytest.mark.parametrize(
    ("error", "code", "parts"),
    [
        (
            answer(GatedRepoError, "403 Client Error"),
            2,
            ("are gated", "Agree at https://huggingface.co/timm/vit_large_p", "/hf auth login\n"),
        ),
        (
            answer(RepositoryNotFoundError, "401 Client Error"),
            2,
            ("has no repository timm/vit_large", "weights.hub", "private", "/hf auth login\n"),
        ),
        (
            answer(RemoteEntryNotFoundError, "404 Client Error"),
            2,
            ("at the revision main: mend weights.files or weights.revision in",),
        ),
        (OSError(28, "No space left on device"), 4, ("No space left", "HF_HUB_CACHE=/another/")),
        (PermissionError(13, "Permission denied"), 4, ("Permission denied", "mend the disk")),
        (RuntimeError("xet: No space left on device (os error 28)"), 4, ("were not fetched",)),
        (ValueError("odd"), 2, ("(ValueError: odd)", "--local-dir FOLDER", "--revision main")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_why_weights_were_not_fetched_and_what_to_type(
    error: Exception, code: int, parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = refused(load_spec("dinov3"), error, monkeypatch)
    assert found.exit_code == code, found
    for part in parts:
        assert part in str(found)


def test_a_full_disk_while_a_data_set_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **given: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("extract.data.hub._listed", lambda *_: ["train-0.parquet"])
    monkeypatch.setattr("extract.data.hub._snapshot", full)
    monkeypatch.setattr("extract.data.hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(StorageError, match=r"DATA=hf:some/one: .*No space left on device\. Make"):
        of_hub("hf:some/one", tmp_path)
