"""make verify [VIEW=clip] [DATA=photos/] [ARGS='--recompute 4']     (python -m upkeep.verify --view clip)

Reads every byte of the views (without VIEW, of all): descriptions, item list, sizes, both digests, counts, and that each row is what its
status says. `--recompute K` also embeds K random rows of each shard again, from the images, and compares. Prints a line a view; exits
with 5 and the list of what is wrong, and the command that mends it.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.errors import CoviewError, IntegrityError, StaleError, UsageError
from upkeep.config import VerifyConfig

if TYPE_CHECKING:
    from cache_specs.spec import ViewSpec
    from cache_specs.view import View
    from extract.data.datasets import Dataset


def verify(config: VerifyConfig, records: list[dict[str, Any]] | None = None) -> None:
    """Print a line for every view; fill `records`. Raises CoviewError (IntegrityError where anything is damaged) after the last one."""
    from cache_specs import store
    from cache_specs.lookup import find_views

    failures: list[tuple[Path, CoviewError]] = []
    told = [] if records is None else records
    folders = find_views(Path(config.cache), config.view, config.data)
    for folder in folders:
        stored = ""
        try:
            stored = _verify_one(folder, config)
            stored += _again(folder, config)
            print(f"{folder}: {stored}", flush=True)
            told.append({"folder": str(folder), "ok": True, "text": stored, "error": None})
        except CoviewError as error:
            print(
                f"{folder}: {'NOT OK' if not stored or isinstance(error, IntegrityError) else f'{stored}, but NOT computed again'}",
                flush=True,
            )
            failures.append((folder, error))
            told.append({"folder": str(folder), "ok": False, "text": stored, "error": str(error)})
    for folder in (
        lost
        for dataset in sorted({folder.parent for folder in folders})
        for lost in store.lost_folders(dataset)
    ):
        print(f"{folder}: NOT OK", flush=True)
        failures.append(
            (
                folder,
                IntegrityError(
                    f"{folder} holds shards, but its zarr.json, commits and seal are gone: put them back, or remove the folder"
                ),
            )
        )
    if failures:
        failed = CoviewError(
            "\n".join(str(error) for _, error in failures)
            + f"\n{len(failures)} failed, of {len(folders)} views"
        )
        codes = {error.exit_code for _, error in failures}
        failed.exit_code = (
            IntegrityError.exit_code if IntegrityError.exit_code in codes else max(codes)
        )
        raise failed


def _verify_one(folder: Path, config: VerifyConfig) -> str:
    from cache_specs import integrity, mend, store
    from cache_specs.items import read_items

    items = read_items(folder.parent)
    view = store.open_view(folder)
    store.refuse_other_images(view, items.fingerprint, len(items))
    begun = time.monotonic()
    found = list(mend.problems(view))
    seconds = time.monotonic() - begun
    if found:
        with suppress(OSError):
            (folder / "verified.json").unlink()  # whoever opens it next reads it all
        lines = [
            f"  {problem.file.relative_to(folder)}{_rows(view, problem.shard)}: {problem.what}"
            for problem in found
        ]
        raise IntegrityError(
            f"{folder} is damaged:\n"
            + "\n".join(lines)
            + f"\nOnly that is computed again.\nType: {store.command(folder)}"
        )
    done = view.shards - len(view.pending())
    size = done * (view.embeddings_bytes + view.status_bytes)
    read = f"{view.n:,} rows x {view.width}, {done} of {view.shards} shards, {size / 1e6:,.1f} MB read in {seconds:.1f} s ({size / 1e9 / seconds:.2f} GB/s)"
    if not view.is_complete:
        missing = "only its seal is missing" if done == view.shards else "undamaged"
        return f"unfinished, {missing}: {read}; to go on: {store.command(folder, 'extract')}"
    bad = int((integrity.check(view, verified=time.strftime("%Y-%m-%d %H:%M")) > 0).sum())
    return f"ok: {read}, {bad} bad rows"


def _again(folder: Path, config: VerifyConfig) -> str:
    from cache_specs import store

    view = store.open_view(folder)
    if not config.recompute or len(view.pending()) == view.shards:
        return ""
    imported = view.attributes["spec"]["backend"] == store.IMPORTED
    return (
        ", imported, so there is nothing to compute it from"
        if imported
        else ", " + _recompute(view, config)
    )


def _rows(view: "View", shard: int | None) -> str:
    return (
        ""
        if shard is None
        else f" (shard {shard}, rows {view.bounds(shard)[0]} to {view.bounds(shard)[1] - 1})"
    )


def images_of(
    view: "View", asked: str, weights: str | None, root: str
) -> tuple["ViewSpec", dict[str, Path], "Dataset"]:
    """The spec, the weights and the images that a view was made of, found again. Raises CoviewError naming what is gone or changed."""
    from cache_specs import store
    from cache_specs.sources import is_gone, read_source
    from cache_specs.spec import load_spec, view_names
    from extract.data.datasets import open_dataset
    from extract.models.weights import find_weights

    if view.attributes["spec"]["backend"] == store.IMPORTED:
        raise UsageError(
            f"{view.folder} was imported, not computed from images: there is nothing to compute its rows from; "
            "leave --recompute out"
        )
    toml = (
        asked
        if asked.endswith(".toml")
        else view.name
        if view.name in view_names()
        else view.attributes["provenance"]["spec_file"]
    )
    spec = load_spec(toml)
    files, weights_sha256 = find_weights(spec, weights)
    store.refuse_changed(view, spec.declared(), weights_sha256)
    source = read_source(view.folder.parent)
    if not source:
        raise IntegrityError(
            f"{view.folder.parent / 'dataset.json'} does not say where the images are; type: make extract VIEW={toml} DATA=… with them"
        )
    if is_gone(source):
        raise UsageError(
            f"the images of {view.folder.parent.name} were in {source}, which is gone. If they were moved, type first: "
            f"make extract VIEW={toml} DATA=…, where they are now; it notes the place and embeds nothing"
        )
    return (
        spec,
        files,
        _as_listed(
            open_dataset(source, Path(root), view.folder.parent.name.rpartition("-")[0]),
            view.folder.parent,
        ),
    )


def _as_listed(dataset: "Dataset", folder: Path) -> "Dataset":
    """The images under the keys of the item list: those of an older version have other names now, and the current version's list says which."""
    import dataclasses

    import numpy as np

    from cache_specs.items import read_items
    from cache_specs.versions import current, dataset_folders
    from extract.data.readers import Reordered

    now = current(dataset_folders(folder.parent, dataset.name))
    if now in (None, folder):
        return dataset
    try:
        items, listed = read_items(folder), read_items(now)
    except IntegrityError:  # whoever needs the list says so
        return dataset
    row_of = {sha: row for row, sha in enumerate(listed.sha256) if sha}
    if dataset.keys != listed.keys or not row_of.keys() >= set(items.sha256):
        return dataset
    return dataclasses.replace(
        dataset,
        keys=items.keys,
        read=Reordered(dataset.read, np.array([row_of[sha] for sha in items.sha256])),
    )


def _recompute(view: "View", config: VerifyConfig) -> str:
    import numpy as np
    import torch

    from cache_specs import store
    from cache_specs.items import read_items
    from cache_specs.view import STATUS
    from extract import canary
    from extract.embed import finish
    from extract.images import OK, Batches
    from extract.models.backbones import load_backbone
    from extract.prepare import devices

    spec, files, dataset = images_of(view, config.view, config.weights, config.root)
    items, device = read_items(view.folder.parent), devices(config.device, 1)[0]
    backbone, chance = load_backbone(spec, files, device), np.random.default_rng(config.seed)
    if dataset.keys != items.keys:
        raise StaleError(
            f"the images of {dataset.name} are not those of the item list any more. Put them back; or this makes a version of what they are "
            f"now: {store.command(view.folder, 'extract')}"
        )
    batch = view.attributes["provenance"]["batch"]
    rows = np.concatenate(
        [
            np.sort(
                chance.choice(
                    np.arange(*view.bounds(shard)),
                    min(config.recompute, len(range(*view.bounds(shard)))),
                    replace=False,
                )
            )
            for shard in range(view.shards)
            if view.commit_file(shard).is_file()
        ]
    ).tolist()
    tolerance, farthest, wrong, changed = canary.STORED[spec.compute_dtype], 0.0, [], []
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        pixels, status = Batches(dataset.read, items.sha256, spec.preprocess, [part], batch)[0]
        with torch.inference_mode():
            pixels = pixels.to(device)
            emb, status = finish(backbone, backbone(pixels), pixels, status)
        stored, stored_status = store.read_rows(view, part)
        far = np.where(
            stored_status == OK,
            canary.distance(stored.astype(np.float32), emb[: len(part)].astype(np.float32)),
            0,
        )
        gone = (status[: len(part)] == STATUS.index("missing")) & (
            stored_status == OK
        )  # its bytes are not those of the item list
        changed += [items.keys[row] for row, is_gone in zip(part, gone, strict=True) if is_gone]
        differ = ~gone & ((far > tolerance) | (status[: len(part)] != stored_status))
        farthest = max(farthest, float(far[~gone].max(initial=0)))
        wrong += [
            f"  row {row} ({items.keys[row]}): status {store.STATUS[stored_status[i]]} -> {store.STATUS[status[i]]}, relative distance {far[i]:.2g}"
            for i, row in enumerate(part)
            if differ[i]
        ]
    if wrong:
        shards = ",".join(map(str, sorted({int(line.split()[1]) // view.rows for line in wrong})))
        raise IntegrityError(
            f"{view.folder}: {len(wrong)} of {len(rows)} rows are not what is computed from the images now (allowed distance {tolerance}):\n"
            + "\n".join(wrong[:20])
            + f"\nTo compute their shards again: {store.command(view.folder)} ARGS='--shards {shards}'"
        )
    if changed:
        raise StaleError(
            f"{view.folder}: {len(changed)} of {len(rows)} images are gone or have changed since they were embedded, first {changed[0]!r}; the "
            "stored rows are undamaged. Put the images back; or make extract … ARGS=--changed makes a version of what they are now, in which "
            "only they are embedded"
        )
    return f"{len(rows)} rows computed again: largest relative distance {farthest:.2g}, allowed {tolerance}"


def command(config: VerifyConfig, found: dict[str, Any]) -> None:
    """make verify."""
    found["views"] = []
    verify(config, found["views"])
