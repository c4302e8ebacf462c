"""Views of bfloat16 on processors with and without instructions for it; what is chosen once and
kept."""

import dataclasses
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import config
from test_reuse import contents, rows

from base import native
from base.errors import StaleError
from cache_specs import store
from cache_specs.spec import SPECS, load_spec
from cache_specs.view import View, computed_in
from extract import canary, job, stream
from extract.data.datasets import build_items, open_dataset
from extract.images import Batches
from extract.models import backbones
from extract.prepare import default_batch
from extract.run import run
from predict.images import embed_images
from predict.model import ViewRecord
from upkeep.config import RepairConfig, VerifyConfig
from upkeep.repair import mend_view
from upkeep.status import dataset_records, status_text
from upkeep.verify import verify


@pytest.fixture
def low(tmp_path: Path) -> str:
    """tiny-dinov2 in bfloat16."""
    toml = (SPECS / "tiny-dinov2.toml").read_text()
    toml = toml.replace('path = "weights/', f'path = "{SPECS}/weights/')
    place = tmp_path / "low.toml"
    place.write_text(toml.replace('compute_dtype = "float32"', 'compute_dtype = "bfloat16"'))
    return str(place)


def processor(monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    monkeypatch.setattr(native, "has_bfloat16", lambda: able)


def extracted(
    monkeypatch: pytest.MonkeyPatch, able: bool, photos: Path, cache: Path, **given: object
) -> View:
    processor(monkeypatch, able)
    return run(config(photos, cache, **given))


def stored(view: View) -> np.ndarray:
    return store.read_rows(view, range(view.n))[0]


def undone(view: View, first: int) -> View:
    """As a run leaves it that was killed before the shard `first`."""
    (view.folder / "complete.json").unlink()
    for shard in range(first, view.shards):
        view.commit_file(shard).unlink()
    return store.open_view(view.folder)


def test_without_the_instructions_it_is_float32_under_the_same_name(
    low: str, photos: Path, tmp_path: Path, monkeypatch, caplog
) -> None:
    caplog.set_level(logging.INFO)
    able = extracted(monkeypatch, True, photos, tmp_path / "able", view=low)
    assert "computed in" not in caplog.text
    plain = extracted(monkeypatch, False, photos, tmp_path / "plain", view=low)
    assert "low: computed in float32, since this CPU has no instructions for bfloat16" in (
        caplog.text
    )
    assert able.folder.name == plain.folder.name
    assert (computed_in(able), computed_in(plain)) == ("bfloat16", "float32")
    full = extracted(monkeypatch, True, photos, tmp_path / "full", view="tiny-dinov2")
    np.testing.assert_array_equal(stored(plain), stored(full))
    far = canary.distance(stored(plain).astype(np.float32), stored(able).astype(np.float32))
    assert 1e-4 < far.max() < canary.STORED["bfloat16"]
    assert ", computed in float32, not bfloat16: finished" in status_text(tmp_path / "plain")
    assert "computed in" not in status_text(tmp_path / "able")
    (record,) = dataset_records(tmp_path / "plain")[0]["views"]
    assert (record["precision"], record["compute_dtype"]) == ("float32", "bfloat16")


@pytest.mark.parametrize("able", [True, False])
def test_a_view_goes_on_in_the_precision_that_it_was_begun_in(
    able: bool, low: str, photos: Path, tmp_path: Path, monkeypatch, caplog
) -> None:
    """On a processor of the other kind, to the bytes of the run that was never stopped."""
    caplog.set_level(logging.INFO)
    view = extracted(monkeypatch, able, photos, tmp_path / "cache", view=low)
    whole = contents(view)
    undone(view, 1)
    again = extracted(monkeypatch, not able, photos, tmp_path / "cache", view=low)
    left = {name for name, data in contents(again).items() if data != whole[name]}
    # the seconds of each shard, and the seal, whose digests of the commits hold them
    assert all(name.startswith(("commits/", "complete.json")) for name in left)
    assert computed_in(again) == ("bfloat16" if able else "float32")
    said = "begun in bfloat16, on another machine, and goes on so" if able else "as it was begun"
    assert said in caplog.text


def test_a_view_of_which_nothing_is_done_is_begun_as_it_would_be_now(
    low: str, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    view = extracted(monkeypatch, True, photos, tmp_path / "cache", view=low)
    undone(view, 0)
    again = extracted(monkeypatch, False, photos, tmp_path / "cache", view=low)
    full = extracted(monkeypatch, False, photos, tmp_path / "full", view="tiny-dinov2")
    assert computed_in(again) == "float32" and np.array_equal(
        stored(again), stored(full), equal_nan=True
    )


def test_one_that_was_begun_before_it_was_recorded_is_of_its_spec(
    low: str, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    with monkeypatch.context() as then:
        then.setattr("extract.run.how", lambda ready: {"batch": 8, "compile": False})
        view = extracted(then, True, photos, tmp_path / "cache", view=low)
    assert not {"precision", "threads"} & view.attributes["provenance"].keys()
    whole = stored(view)
    undone(view, 1)
    again = extracted(monkeypatch, False, photos, tmp_path / "cache", view=low)
    assert computed_in(again) == "bfloat16" and np.array_equal(stored(again), whole, equal_nan=True)


def test_rows_of_both_kinds_stand_in_one_view_and_a_donor_that_is_too_far_does_not(
    low: str, photos: Path, tmp_path: Path, monkeypatch, caplog
) -> None:
    """The next version of the data set copies what the other processor computed."""
    caplog.set_level(logging.INFO)
    data = shutil.copytree(photos, tmp_path / "data")
    next(data.rglob("040.jpg")).unlink()  # no image of which nothing is known
    moved = sorted(data.rglob("*.png"))[0]
    held = moved.read_bytes()
    moved.unlink()
    first = extracted(monkeypatch, True, data, tmp_path / "cache", view=low)
    moved.write_bytes(held)
    shutil.copytree(tmp_path / "cache", tmp_path / "other")
    caplog.clear()
    mixed = extracted(monkeypatch, False, data, tmp_path / "cache", view=low)
    assert "rows are copied" in caplog.text and computed_in(mixed) == "float32"
    before, after = rows(first), rows(mixed)
    assert len(after) == len(before) + 1 and all(after[sha] == before[sha] for sha in before)
    # what is copied whole is what the donor was computed in
    moved.rename(moved.with_name("another name.png"))
    assert computed_in(extracted(monkeypatch, True, data, tmp_path / "cache", view=low)) == (
        "float32"
    )
    monkeypatch.setitem(canary.STORED, "bfloat16", 1e-5)
    caplog.clear()
    alone = extracted(monkeypatch, False, data, tmp_path / "other", view=low)
    assert re.search(r"nothing is copied from .*stored rows, allowed 1e-05", caplog.text)
    assert "rows are copied" not in caplog.text and computed_in(alone) == "float32"


@pytest.mark.parametrize("able", [True, False])
def test_repair_and_verify_compute_in_the_precision_of_then(
    able: bool, low: str, photos: Path, tmp_path: Path, monkeypatch, caplog, capsys
) -> None:
    caplog.set_level(logging.INFO)
    view = extracted(monkeypatch, able, photos, tmp_path / "cache", view=low)
    whole = stored(view)
    processor(monkeypatch, not able)
    monkeypatch.setitem(canary.STORED, "bfloat16", 1e-6)  # what is computed now is what was then
    cache = str(tmp_path / "cache")
    verify(VerifyConfig(cache=cache, view=low, data=str(photos), recompute=3, device="cpu"))
    monkeypatch.undo()
    processor(monkeypatch, not able)
    view.embeddings_file(0).write_bytes(b"lost")
    mend_view(RepairConfig(cache=cache, view=low, data=str(photos), device="cpu"))
    again = store.open_view(view.folder)
    assert again.is_complete and np.array_equal(stored(again), whole, equal_nan=True)
    assert "are others than before" not in caplog.text


@pytest.mark.parametrize("able", [True, False])
def test_prediction_embeds_in_what_its_processor_has(
    able: bool, low: str, photos: Path, monkeypatch
) -> None:
    processor(monkeypatch, able)
    spec = load_spec(low)
    dataset = open_dataset(str(photos), Path())
    items = build_items(dataset)
    files = {name: SPECS / "weights" / "tiny-dinov2" / name for name in spec.weights.files}
    record = ViewRecord("low", spec.width, spec.declared(), "", low, 8)
    (found,), status = embed_images([record], [(spec, files)], dataset, items, "cpu", 0)
    model = backbones.load_backbone(spec, files, "cpu")
    assert model.precision == ("bfloat16" if able else "float32")
    pixels, *_ = Batches(dataset.read, items.sha256, spec.preprocess, [list(range(8))], 8)[0]
    ok = status[:8] == 0
    with torch.inference_mode():
        expected = model(pixels, exact=not able).half().numpy()
    np.testing.assert_array_equal(found[:8][ok], expected[ok])


def test_only_a_cpu_is_asked(low: str, monkeypatch) -> None:
    processor(monkeypatch, False)
    spec = load_spec(low)
    assert backbones.precision_of(spec, "cuda:0") == "bfloat16"
    assert backbones.precision_of(spec, "cpu") == "float32"
    processor(monkeypatch, True)
    assert backbones.precision_of(spec, "cpu") == "bfloat16"
    assert backbones.precision_of(load_spec("tiny-clip"), "cpu") == "float32"


def test_a_canary_of_another_precision_is_still_compared(
    low: str, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    """It is float32 on both sides: weights that changed are found, whatever the view is computed
    in."""
    view = extracted(monkeypatch, True, photos, tmp_path / "cache", view=low)
    undone(view, 1)
    plain = backbones.Backbone.forward
    monkeypatch.setattr(
        backbones.Backbone, "forward", lambda *given, **more: 1.01 * plain(*given, **more)
    )
    with pytest.raises(StaleError, match="the model's outputs changed"):
        extracted(monkeypatch, False, photos, tmp_path / "cache", view=low)


# --- batch, threads, workers


def test_a_cpu_takes_small_batches_of_large_images() -> None:
    tiny, clip = load_spec("tiny-clip"), load_spec("clip")
    taken = [default_batch(spec, device) for spec in (tiny, clip) for device in ("cpu", "cuda:0")]
    assert taken == [64, 64, 16, 64]


def test_the_batch_that_is_chosen_is_recorded_and_one_of_then_is_kept(
    photos: Path, tmp_path: Path, monkeypatch
) -> None:
    view = extracted(monkeypatch, True, photos, tmp_path / "cache", batch=0)
    assert view.attributes["provenance"]["batch"] == 64
    undone(view, 1)
    monkeypatch.setattr("extract.prepare.TINY", 1)
    again = extracted(monkeypatch, True, photos, tmp_path / "cache", batch=0)
    assert again.attributes["provenance"]["batch"] == 64
    new = extracted(monkeypatch, True, photos, tmp_path / "new", batch=0)
    assert new.attributes["provenance"]["batch"] == 16


@pytest.mark.parametrize(
    ("begun", "own", "processes", "threads"),
    [
        (None, False, 1, 6),
        (None, False, 4, 1),
        (3, False, 1, 3),
        (3, False, 4, 3),
        (3, True, 1, 16),
        (None, True, 2, 8),
    ],
)
def test_threads_are_the_cores_and_are_kept_unless_the_user_says_how_many(
    begun: int | None, own: bool, processes: int, threads: int, monkeypatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(native, "cores", lambda: 6)
    monkeypatch.setenv(job.OWN_THREADS, "16")
    if not own:
        monkeypatch.delenv(job.OWN_THREADS)
    attributes = {"provenance": {"threads": begun} if begun else {}}
    view = View(Path("v"), 1, 1, 1, "", attributes)
    assert job._threads(view, processes) == threads


def test_threads_are_recorded_on_a_cpu(photos: Path, tmp_path: Path, monkeypatch) -> None:
    view = extracted(monkeypatch, True, photos, tmp_path)
    assert view.attributes["provenance"]["threads"] == torch.get_num_threads()
    assert "threads" not in json.dumps(view.attributes["spec"])


@dataclasses.dataclass
class Slow:
    """Batches of four images, of which each takes so many seconds of the clock."""

    rows: list[list[int]]
    seconds: float
    clock: float = 0.0

    def __getitem__(self, index: int) -> None:
        self.clock += self.seconds * len(self.rows[index])


@pytest.mark.parametrize(
    ("images", "seconds", "asked", "device", "workers"),
    [
        (400, 0.074, -1, "cpu", 0),
        (400, 0.076, -1, "cpu", 8),
        (400, 9.0, 0, "cpu", 0),
        (400, 0.0, 3, "cpu", 3),
        (400, 0.0, -1, "cuda:0", 8),
        (0, 9.0, -1, "cpu", 0),
    ],
)
def test_processes_decode_where_one_would_take_half_a_minute(
    images: int, seconds: float, asked: int, device: str, workers: int, monkeypatch
) -> None:
    slow = Slow([list(range(i, i + 4)) for i in range(0, images, 4)], seconds)
    monkeypatch.setattr(stream.time, "monotonic", lambda: slow.clock)
    monkeypatch.setattr(native, "cores", lambda: 8)
    assert stream.workers_for(slow, asked, device) == workers
    assert not slow.clock or (asked == -1 and device == "cpu")


def test_that_decoding_is_timed_and_pays_changes_no_row(
    photos: Path, tmp_path: Path, monkeypatch
) -> None:
    one = extracted(monkeypatch, True, photos, tmp_path / "a", workers=0)
    taken = []
    plain = job.load

    def load(batches: Batches, workers: int, device: str) -> object:
        taken.append(workers)
        return plain(batches, 0, device)

    monkeypatch.setattr("extract.workers.WORTH_S", 0.0)
    monkeypatch.setattr(job, "load", load)
    monkeypatch.setattr(job, "begin_workers", lambda: None)
    two = extracted(monkeypatch, True, photos, tmp_path / "b", workers=-1)
    assert taken == [native.cores()] and np.array_equal(stored(one), stored(two), equal_nan=True)
