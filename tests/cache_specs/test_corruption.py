"""Every kind of harm to every file of a cache is found before a row of it is used, named, and
mended at the cost of the harmed shards alone."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import faults
import pytest
from conftest import VIEW_TOML
from faults import ROWS, SHARDS, WIDTH, computed, contents

from base import durable
from base.errors import CoviewError, IntegrityError, UsageError
from cache_specs import integrity, mend, store
from cache_specs.items import read_items
from cache_specs.store import View
from train.data.reader import open_cache

DOCUMENTS = (
    "zarr.json",
    "embeddings/zarr.json",
    "status/zarr.json",
    "complete.json",
    *(f"commits/{shard:05d}.json" for shard in range(SHARDS)),
)
ITEMS = ("../dataset.json", "../items.parquet")


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intact") / "run"
    folder.mkdir()
    faults.extract(folder)
    (folder / "v.toml").write_text(VIEW_TOML.format(width=WIDTH))
    return folder


@pytest.fixture(scope="module")
def original(intact: Path) -> dict[str, bytes]:
    return contents(intact)


@pytest.fixture
def folder(intact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(intact, tmp_path / "run")


@pytest.fixture
def foreign(tmp_path: Path) -> View:
    """A view of the same shape with other weights and other rows."""
    (tmp_path / "other").mkdir()
    like = faults.create(tmp_path / "other")
    view = store.create_view(
        like.folder.parent,
        "other",
        faults.declared(),
        "f" * 64,
        ("1" * 64, like.n),
        ROWS,
        {"batch": 1},
    )
    emb_ND, status_N = faults.rows()
    for shard in range(SHARDS - 1):
        first, last = view.bounds(shard)
        store.write_shard(view, shard, emb_ND[first:last] + 1, status_N[first:last])
    return view


def view_of(folder: Path) -> View:
    return store.open_view(next((folder / "cache").glob("d-*/v-*")))


def view_folder(folder: Path) -> Path:
    return next((folder / "cache").glob("d-*/v-*"))


def train_says(folder: Path) -> str:
    """The refusal that `make train` gives; '' where it would train, and then on the right rows."""
    try:
        cache = open_cache(folder / "cache", "d", [str(folder / "v.toml")])
    except CoviewError as error:
        assert isinstance(error, IntegrityError), f"{type(error).__name__}: {error}"
        return str(error)
    emb_ND, status_N = faults.rows()
    assert cache.emb[0].tobytes() == emb_ND.tobytes() and (cache.ok == (status_N == 0)).all(), (
        "wrong rows are trained on"
    )
    return ""


def mends(folder: Path, original: dict[str, bytes], lost: list[int], name: str = "") -> None:
    """make repair: the original bytes again, `lost` embedded again and nothing else."""
    log = Path(f"{folder}.log")
    log.unlink(missing_ok=True)
    assert faults.mend(folder) == lost, name
    faults.extract(folder, log=log)
    after = contents(folder)
    assert (
        after.keys() == original.keys()
        and [name for name in after if after[name] != original[name]] == []
    ), name
    assert computed(folder) == lost and not train_says(folder), name


# --- one harm after the other


def _flipped(file: Path, other: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _truncated(file: Path, other: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def _emptied(file: Path, other: Path) -> None:
    os.truncate(file, 0)


def _zeroed(file: Path, other: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def _appended(file: Path, other: Path) -> None:
    with file.open("ab") as handle:
        handle.write(b"\0")


def _missing(file: Path, other: Path) -> None:
    file.unlink()


def _copied(file: Path, other: Path) -> None:
    shutil.copyfile(other, file)


HARMS = [_flipped, _truncated, _emptied, _zeroed, _appended, _missing, _copied]
Harm = Callable[[Path, Path], None]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["embeddings/c/{}/0", "status/c/{}"])
def test_a_harmed_shard_is_found_named_and_computed_again(folder, original, harm, name):
    view = view_of(folder)
    harm(view.folder / name.format(0), view.folder / name.format(1))
    said = train_says(folder)
    assert (
        f"{view.folder}: shard 0 (rows 0 to {ROWS - 1}) is damaged: {name.format(0)}" in said
        and f"Type: {store.command(view.folder)}" in said
    )
    assert [(problem.file, problem.shard) for problem in mend.problems(view)] == [
        (view.folder / name.format(0), 0)
    ]
    mends(folder, original, [0])


def test_two_shards_exchanged_are_found_and_computed_again(folder, original):
    view = view_of(folder)
    one, two = view.embeddings_file(1), view.embeddings_file(2)
    one.rename(one.with_name("x"))
    two.rename(one)
    one.with_name("x").rename(two)
    assert (
        f"shard 1 (rows {ROWS} to {2 * ROWS - 1}) is damaged: embeddings/c/1/0 has changed"
        in train_says(folder)
    )
    assert {problem.file for problem in mend.problems(view)} == {one, two}
    mends(folder, original, [1, 2])


@pytest.mark.parametrize(
    "names",
    [
        ("embeddings/c/{}/0", "status/c/{}"),
        ("embeddings/c/{}/0", "status/c/{}", "commits/{:05d}.json"),
    ],
    ids=["without its commit", "with its commit"],
)
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_a_shard_of_another_view_is_found_and_computed_again(
    folder, foreign, original, names, finished
):
    view = view_of(folder)
    if not finished:
        (view.folder / "complete.json").unlink()
    for name in names:
        shutil.copyfile(foreign.folder / name.format(1), view.folder / name.format(1))
    if finished:
        assert (
            f"shard 1 (rows {ROWS} to {2 * ROWS - 1}) is damaged: "
            "embeddings/c/1/0 has changed since it was written"
        ) in train_says(folder)
    elif len(names) == 3:
        with pytest.raises(
            IntegrityError,
            match=(
                r"shard 1 .*commits/00001\.json: "
                r"it is the record of shard 1 of another view\. .* Type: make repair"
            ),
        ):
            integrity.check_commits(view)
    assert view.folder / names[-1 if len(names) == 3 else 0].format(1) in {
        problem.file for problem in mend.problems(view)
    }
    mends(folder, original, [1])


@pytest.mark.parametrize(
    "name",
    [
        "embeddings/c/3/0",
        "embeddings/c/1x",
        "status/c/3",
        "status/c/00",
        "commits/00003.json",
        "commits/1.json",
    ],
)
def test_a_file_too_many_is_found_and_put_aside(folder, original, name):
    view = view_of(folder)
    (view.folder / name).parent.mkdir(exist_ok=True)
    (view.folder / name).write_bytes(b"0")
    named = view.folder / name.removesuffix("/0")
    assert (
        f"{named} does not belong to this view. Type: {store.command(view.folder)}"
        in train_says(folder)
    )
    assert [problem.file for problem in mend.problems(view)] == [named]
    mends(folder, original, [])
    kept = [
        path for path in (view.folder / "strays").rglob("*") if path.is_file()
    ]  # it may be somebody's copy
    assert [path.read_bytes() for path in kept] == [b"0"]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_harmed_description_commit_or_seal_is_found_named_and_written_again_from_the_others(
    folder, original, harm, name
):
    here = view_folder(folder)
    others = [
        other for other in DOCUMENTS if other != name and other.split("/")[0] == name.split("/")[0]
    ]  # of a commit another commit
    harm(
        here / name,
        here
        / (others[0] if others else "zarr.json" if name != "zarr.json" else "status/zarr.json"),
    )
    if harm is _missing and name == "complete.json":
        with pytest.raises(UsageError, match=r"the view 'v' is not finished \(3 of 3 shards"):
            open_cache(folder / "cache", "d", [str(folder / "v.toml")])
    else:
        said = train_says(folder)
        assert name in said and str(here) in said and f"Type: {store.command(here)}" in said
        if "zarr.json" not in name:
            assert [problem.file for problem in mend.problems(view_of(folder))] == [here / name]
    mends(folder, original, [])


@pytest.mark.parametrize("harm", [harm for harm in HARMS if harm is not _copied])
@pytest.mark.parametrize("name", ITEMS)
def test_a_harmed_item_list_is_found_named_and_written_again_by_the_next_extraction(
    folder, original, harm, name
):
    file = view_folder(folder) / name
    harm(file, file)
    if harm is not _missing or "dataset" not in name:
        said = train_says(folder)
        assert (
            file.name in said
            and str(file.resolve().parent) in said
            and "Type: make extract VIEW=… DATA=…" in said
        )
    faults.extract(folder, log=Path(f"{folder}.log"))
    assert contents(folder) == original and computed(folder) == [] and not train_says(folder)


@pytest.mark.parametrize("keep", store.DOCUMENTS)
def test_one_of_three_descriptions_is_enough_to_write_the_others(folder, original, keep):
    for name in set(store.DOCUMENTS) - {keep}:
        _zeroed(view_folder(folder) / name, view_folder(folder))
    assert "zarr.json" in train_says(folder)
    mends(folder, original, [])


def test_with_no_description_left_nobody_guesses(folder):
    for name in store.DOCUMENTS:
        _zeroed(view_folder(folder) / name, view_folder(folder))
    with pytest.raises(
        IntegrityError,
        match=(
            r"all three zarr\.json are damaged, so nothing says what the rows "
            r"are\. Delete .* and type: make extract"
        ),
    ):
        faults.mend(folder)


@pytest.mark.parametrize("name", store.DOCUMENTS)
def test_a_description_of_the_same_view_of_other_images_is_not_believed(folder, original, name):
    """An intact document with the same spec and weights, so with the same folder name:
    the other two outvote it."""
    document = durable.read_sealed(view_folder(folder) / name)
    document["attributes"]["items_fingerprint"] = "2" * 64
    (view_folder(folder) / name).write_bytes(durable.sealed(document))
    assert f" {name} is that of another view" in train_says(folder)
    mends(folder, original, [])


def test_harm_to_many_files_at_once_costs_only_the_harmed_shards(folder, original):
    view = view_of(folder)
    for name in (
        "zarr.json",
        "status/zarr.json",
        "commits/00000.json",
        "commits/00001.json",
        "embeddings/c/1/0",
    ):
        _flipped(view.folder / name, view.folder)
    (view.folder / "status/c/7").write_bytes(b"0")
    assert train_says(folder)
    mends(folder, original, [1])


# --- single bits and single bytes


def flipped(chance: random.Random, folder: Path, before: dict[str, bytes]) -> tuple[str, str]:
    """Flip one bit; each file is as likely as any other. Returns the
    file's name and what was done."""
    name = chance.choice(sorted(before))
    place, bit = chance.randrange(len(before[name])), chance.randrange(8)
    data = bytearray(before[name])
    data[place] ^= 1 << bit
    (folder / name).write_bytes(data)
    return name, f"bit {bit} of byte {place} of {name}"


def flips(
    folder: Path, original: dict[str, bytes], number: int, repair_every: int, seed: int
) -> None:
    """Flip one bit after the other in a finished view: train refuses it and names the file, and the
    repair gives the old bytes."""
    chance, inside = random.Random(seed), str(view_folder(folder).relative_to(folder)) + "/"
    for trial in range(number):
        name, where = flipped(chance, folder, original)
        said = train_says(folder)
        assert said, f"{where} went unseen"
        assert (
            name.removeprefix(inside).split("/", 2 * (not name.startswith(inside)))[-1] in said
            and "Type: make " in said
        ), (where, said)
        if name.startswith(inside) and not name.endswith("zarr.json"):
            assert folder / name in [problem.file for problem in mend.problems(view_of(folder))], (
                where
            )
        if trial % repair_every == 0:
            mends(
                folder,
                original,
                [int(name.split("/c/")[1].split("/")[0])] if "/c/" in name else [],
                where,
            )
        (folder / name).write_bytes(original[name])
    assert not train_says(folder) and contents(folder) == original


def flips_in_an_unfinished_view(
    folder: Path, original: dict[str, bytes], number: int, seed: int
) -> None:
    """The next extraction refuses it, or ends with the right bytes; the repair always does."""
    chance, before = random.Random(seed), contents(folder)
    for _ in range(number):
        _, where = flipped(chance, folder, before)
        try:
            faults.extract(folder)
        except IntegrityError as error:
            assert "Type: make " in str(error) and faults.refused(folder), (where, error)
        else:
            assert contents(folder) == original, f"{where} was sealed"
        faults.mend(folder)
        faults.extract(folder)
        assert contents(folder) == original, where
        begin_again(folder, before)


def begin_again(folder: Path, before: dict[str, bytes]) -> None:
    """Bring the cache back to the files it had."""
    for name in contents(folder).keys() - before.keys():
        (folder / name).unlink()
    for name, data in before.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture
def unfinished(folder: Path) -> Path:
    """Two of three shards."""
    for name in ("complete.json", "verified.json", "commits/00002.json"):
        (view_folder(folder) / name).unlink(missing_ok=True)
    return folder


def test_a_flipped_bit_anywhere_is_found(folder, original):
    flips(folder, original, 150, repair_every=10, seed=1)


@pytest.mark.many
def test_a_thousand_flipped_bits_are_found_and_mended(folder, original):
    flips(folder, original, 1000, repair_every=1, seed=2)


def test_a_flipped_bit_in_an_unfinished_view_is_never_sealed(unfinished, original):
    flips_in_an_unfinished_view(unfinished, original, 25, seed=3)


@pytest.mark.many
def test_a_thousand_flipped_bits_in_an_unfinished_view_are_never_sealed(unfinished, original):
    flips_in_an_unfinished_view(unfinished, original, 1000, seed=4)


def other_bytes(folder: Path, name: str, step: int) -> int:
    """Give every step-th byte of a file some other values: each is refused.
    Returns the number of trials."""
    file = view_folder(folder) / name
    before, trials = file.read_bytes(), 0
    for place in range(0, len(before), step):
        for value in {before[place] ^ 1, before[place] ^ 0x20, 0x20, 0x0A, 0x30, 0} - {
            before[place]
        }:
            file.write_bytes(before[:place] + bytes([value]) + before[place + 1 :])
            trials += 1
            with pytest.raises(IntegrityError):
                read_items(view_folder(folder).parent) if name in ITEMS else integrity.check(
                    view_of(folder)
                )
    file.write_bytes(before)
    assert not train_says(folder)
    return trials


@pytest.mark.parametrize("name", [*DOCUMENTS, *ITEMS])
def test_another_byte_in_a_small_file_is_refused_in_a_sample_of_places(folder, name):
    assert other_bytes(folder, name, 60) > 25


@pytest.mark.many
@pytest.mark.parametrize("name", [*DOCUMENTS, *ITEMS])
def test_another_byte_at_any_place_of_a_small_file_is_refused(folder, name):
    assert other_bytes(folder, name, 1) > 1000


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize(
    "name", ["embeddings/c/0/0", "status/c/1", "commits/00001.json", "zarr.json"]
)
def test_a_harmed_unfinished_view_is_refused_or_computed_again_and_never_sealed(
    unfinished, original, harm, name
):
    file = view_folder(unfinished) / name
    harm(
        file,
        view_folder(unfinished)
        / {
            "embeddings/c/0/0": "embeddings/c/1/0",
            "status/c/1": "status/c/0",
            "commits/00001.json": "commits/00000.json",
            "zarr.json": "status/zarr.json",
        }[name],
    )
    try:
        faults.extract(unfinished)
    except IntegrityError as error:
        assert (
            name in str(error)
            and "Type: make repair VIEW=v DATA=d-" in str(error)
            and faults.refused(unfinished)
        )
    else:
        assert harm is _missing or contents(unfinished) == original
    faults.mend(unfinished)
    faults.extract(unfinished)
    assert contents(unfinished) == original and not train_says(unfinished)


def of_before(view: View) -> None:
    """The view as versions wrote it that recorded a third digest of each file."""
    for shard in range(view.shards):
        record = durable.read_sealed(view.commit_file(shard))
        for file in record["files"].values():
            file["xxh3"] = "0123456789abcdef" * 2
        view.commit_file(shard).write_bytes(durable.sealed(record))
    sealed = durable.read_sealed(view.folder / "complete.json")
    records = [durable.read_sealed(view.commit_file(shard)) for shard in range(view.shards)]
    (view.folder / "complete.json").write_bytes(durable.sealed({**sealed, "shards": records}))
    (view.folder / "verified.json").unlink(missing_ok=True)


def test_a_view_whose_records_hold_a_third_digest_opens_verifies_and_is_repaired(tmp_path):
    """The sha256 of each file was always recorded, and the root hash is made of it alone: a view of
    then and one of now are the same, and a repaired one may have records of both kinds."""
    view = faults.extract(tmp_path)
    assert "xxh3" not in view.commit_file(0).read_text()
    root, status_N = integrity.root(view), integrity.check(view)
    of_before(view)
    assert "xxh3" in view.commit_file(0).read_text()
    assert integrity.root(view) == root and not list(mend.problems(view))
    assert integrity.check(view).tolist() == status_N.tolist()
    assert integrity.check(view, verified="now").tolist() == status_N.tolist()
    file = view.embeddings_file(1)
    data = bytearray(file.read_bytes())
    data[7] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"shard 1 .*has changed since it was written"):
        integrity.check(view)
    assert [problem.what for problem in mend.problems(view)] == ["has changed since it was written"]
    (view.folder / "commits" / "00002.json").unlink()  # it is written again from the seal
    with store.writer_lock(view.folder):
        view, _, lost = mend.mend(view.folder)
        assert lost == [1] and "xxh3" in view.commit_file(2).read_text()
        emb_ND, status_N = faults.rows()
        first, last = view.bounds(1)
        store.write_shard(view, 1, emb_ND[first:last], status_N[first:last])
        integrity.seal(view)
    assert "xxh3" not in view.commit_file(1).read_text()
    assert integrity.root(view) == root and not list(mend.problems(view))
    assert integrity.check(view).tolist() == status_N.tolist()
