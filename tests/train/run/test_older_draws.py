"""A run that a version began which drew other labelled images for the same seed: it is resumed,
shown and read with those that it drew."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import Made
from training import config, outcome

from base import durable
from base.errors import IntegrityError, StaleError, UsageError
from predict.from_run import of_run
from train.command import run
from train.data import splits
from train.run import rundir
from train.run.log import Listeners
from train.run.rundir import read_config


@contextmanager
def earlier() -> Iterator[None]:
    """As version 0.1.0 drew: a stream for the number of the class, here also its name."""

    def by_number(seed: int, purpose: int, place: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[seed, (3 << 40) + place]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "place_of", int)
        patch.setattr(splits, "stream", by_number)
        patch.setattr(rundir, "DRAWS", "")
        yield


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:

        def harmed(listeners: Listeners, now: int) -> None:
            if now == step:
                raise RuntimeError("killed")

        patch.setattr(Listeners, "step", harmed)
        with pytest.raises(RuntimeError, match="killed"):
            yield


def keys_of(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted((folder / "splits").iterdir())]


@pytest.fixture(scope="module")
def older(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the version before: `whole`, and `half`, which was killed while mct trained."""
    folder = tmp_path_factory.mktemp("older")
    with earlier():
        run(config(made, folder, run="whole"))
        with killed_at(25):
            run(config(made, folder, run="half"))
    path = folder / "half" / "config.json"
    record = durable.read_sealed(path)
    assert record.pop("draws") == ""  # it knew no such word
    del record["sha256"]
    path.write_bytes(durable.sealed(record))
    assert not (folder / "half" / "summary.json").exists()
    return folder


def test_it_is_resumed_to_the_bytes_of_the_uninterrupted_one(
    made: Made, older: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(older / "half", tmp_path / "half")
    before = keys_of(tmp_path / "half")
    run(config(made, tmp_path, run="half"))
    told = f"{tmp_path / 'half'} was begun by an earlier version, which drew other labelled images"
    assert told in capsys.readouterr().err
    assert outcome(tmp_path / "half") == outcome(older / "whole")
    assert keys_of(tmp_path / "half") == before
    run(config(made, tmp_path, run="new"))
    assert keys_of(tmp_path / "new") != before
    assert read_config(tmp_path / "new")["draws"] == splits.DRAWS


def test_it_is_shown_and_read_where_it_is_finished(made: Made, older: Path) -> None:
    before = outcome(older / "whole")
    assert run(config(made, older, run="whole"))["methods"] == before["summary"]["methods"]
    assert outcome(older / "whole") == before
    model, cache, found = of_run(older / "whole", "mct", cache=made.cache)
    drawn = ["".join(f"{cache.items.keys[row]}\n" for row in one.labelled) for one in found]
    assert drawn == keys_of(older / "whole")
    with earlier():
        wanted = of_run(older / "whole", "mct", cache=made.cache)
    for one, other in zip(found, wanted[2], strict=True):
        for part in ("labelled", "unlabelled", "val", "test"):
            assert np.array_equal(getattr(one, part), getattr(other, part))
    rows = [emb_ND[found[0].test] for emb_ND in cache.emb]
    assert np.array_equal(model(rows).joint_nC, wanted[0](rows).joint_nC)


def test_other_settings_are_refused_as_ever(made: Made, older: Path) -> None:
    with pytest.raises(StaleError, match=r"settings\.lr: 0\.005 -> 0\.1\n") as caught:
        run(config(made, older, run="half", lr=0.1))
    assert "draws" not in str(caught.value) and caught.value.instead == {"RUN": "half-2"}
    with pytest.raises(StaleError, match=r"settings\.labels: 3 -> 4\n"):
        run(config(made, older, run="half", labels="4"))


def test_a_list_that_names_no_image_is_refused_by_its_name(
    made: Made, older: Path, tmp_path: Path
) -> None:
    shutil.copytree(older / "half", tmp_path / "half")
    path = tmp_path / "half" / "splits" / "seed-1.labelled.txt"
    path.write_text(path.read_text().replace("\n", "x\n", 1))
    with pytest.raises(UsageError, match=r"seed-1\.labelled\.txt, line 1: 'digits' has"):
        run(config(made, tmp_path, run="half"))


def test_of_this_version_the_rule_is_what_counts(made: Made, tmp_path: Path) -> None:
    """A list that somebody changed while the run was unfinished is written anew."""
    run(config(made, tmp_path, run="whole"))
    with killed_at(25):
        run(config(made, tmp_path, run="half"))
    path = tmp_path / "half" / "splits" / "seed-1.labelled.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    run(config(made, tmp_path, run="half"))
    assert outcome(tmp_path / "half") == outcome(tmp_path / "whole")


def test_a_list_of_a_finished_run_that_was_changed_is_refused(
    made: Made, older: Path, tmp_path: Path
) -> None:
    shutil.copytree(older / "whole", tmp_path / "whole")
    path = tmp_path / "whole" / "splits" / "seed-1.labelled.txt"
    path.write_text(path.read_text().split("\n", 1)[1])
    with pytest.raises(IntegrityError, match=r"seed-1\.labelled\.txt is not the file that"):
        of_run(tmp_path / "whole", cache=made.cache)


def test_all_labels_are_the_same_ones_in_both(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = dataclasses.replace(config(made, tmp_path, method="supervised"), labels="all")
    with earlier(), killed_at(5):
        run(settings)
    capsys.readouterr()
    run(settings)
    assert "earlier version" not in capsys.readouterr().err
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["rows"]["unlabelled"] == 0


def test_one_that_knew_neither_val_nor_test_goes_on_with_a_fifth_for_each(
    made: Made, older: Path, tmp_path: Path
) -> None:
    """And what is to be typed for that stands in the refusal."""
    shutil.copytree(older / "half", tmp_path / "half")
    path = tmp_path / "half" / "config.json"
    record = durable.read_sealed(path)
    del record["settings"]["val"], record["settings"]["test"], record["sha256"]
    path.write_bytes(durable.sealed(record))
    with pytest.raises(StaleError, match=r"settings\.val: split -> auto\n") as caught:
        run(config(made, tmp_path, run="half"))
    told = str(caught.value)
    assert "VAL=split TEST=20%" in told and "--warmup 20" in told and "RUN=half" in told
    run(config(made, tmp_path, run="half", val="split", test="20%"))
    assert outcome(tmp_path / "half") == outcome(older / "whole")
