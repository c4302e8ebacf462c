"""From the words of `make finetune` to tuned views: what is learnt from, what learns
(train/finetune/ground.py); then the loop (train/finetune/tune.py), and what it leaves
(train/finetune/keep.py)."""

import logging
import os
import shlex
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from base import durable, locks, native
from base.console import NOTE, clock_text, counted
from base.errors import UNKNOWN, StaleError, UsageError
from base.limits import within_memory
from base.phrase import line_of
from cache_specs.spec import Tuned, differences
from cache_specs.tuned import FILE as SEEN
from cache_specs.tuned import digest, listed
from train.algorithm.peers import OneOfSeveral, Peers, lost_in_between, make_peers
from train.algorithm.ranks import BOARD, my_rank, ranks_of, under_torchrun
from train.data.graph import standardise
from train.data.scarce import unlearnt
from train.data.splits import spaced
from train.finetune import keep
from train.finetune.config import COLLAPSES, FinetuneConfig
from train.finetune.ground import Ground, known_of, made, put_back, read, wanted
from train.finetune.live import Needs, fit_head
from train.finetune.tune import Work, tune
from train.run.checkpoint import mend
from train.run.launch import launch
from train.run.log import Listener
from train.run.names import free_name
from train.run.rundir import keys_of, split_file
from train.run.session import stop_signals, together, watched

log = logging.getLogger(f"coview.{__name__}")
TIMEOUT_S = 3600  # that processes wait for each other: one may write, or judge, for long
LOOKED_AT = 2_000  # validation images at most that are embedded to say what was gained


def run(config: FinetuneConfig, found: dict[str, Any], say: bool = True) -> None:
    """Tune, write the views, and `say` what to type next. Raises CoviewError."""
    native.keep_memory()
    rank, gpus = my_rank(), ranks_of(config.gpus, len(config.view_list()))
    tunes = not config.dry_run and (gpus == 1 or under_torchrun())  # else it plans, or watches
    heard = stop_signals() if tunes else nullcontext(threading.Event())
    config = replace(config, gpus=gpus)
    with watched(rank) as board, heard as stop:
        config.check()  # of as many processes as torchrun has started
        ground = read(config)
        found |= {"run": str(ground.folder), "views": [*map(str, ground.tomls)]}
        found["judged"] = len(ground.split.val) > 0
        if config.dry_run and not keep.is_tuned(ground.folder):
            _rehearse(ground, found)
            return
        if tunes:
            _tune(ground, board, stop)
        elif not _is_finished(ground, rank == 0):
            launch("finetune", config, ground.cache.names, "after this step")
        if rank == 0 and BOARD not in os.environ:  # else another process tells
            _tell(ground, found, say)


def _tell(ground: Ground, found: dict[str, Any], say: bool) -> None:
    found["result"] = keep.read_done(ground.folder)
    if say:
        _say_next(ground)


def _tune(ground: Ground, board: Listener, stop: threading.Event) -> None:
    """In each of the processes. What is there is looked at under the lock."""
    leads = my_rank() == 0
    folder = durable.make_folder(ground.folder)
    with locks.lock(folder) if leads else nullcontext():
        peers = make_peers(len(ground.cache.names), ground.device, TIMEOUT_S)
        with together(peers):
            if _is_finished(ground, leads):
                return
            settled = _refuse_other(ground)
            work, needs = _made(ground, settled, peers)
            _say_what_learns(ground, work)
            _say_from_what(ground, work, needs)
            peers.any(False)  # all have looked
            if leads and not settled:
                _begin(ground, work)
            if leads:
                mend(folder)
            peers.any(False)  # begun and mended
            with within_memory("this fine-tuning", *_less(work.config)):
                tune(work, folder, ", ".join(ground.cache.names), stop, board)
            _finish(ground, work)


def _is_finished(ground: Ground, aloud: bool) -> bool:
    """Raises StaleError where what is finished is another one."""
    if not keep.is_tuned(ground.folder):
        return False
    _refuse_other(ground)
    if aloud:
        log.info(f"{ground.folder} is finished; another RUN= tunes anew")
    return True


def _made(ground: Ground, settled: dict[str, Any], peers: Peers) -> tuple[Work, list[Needs]]:
    """With what was settled when the run was begun."""
    known = dict(settled)
    dealt = known.pop("dealt", False) if settled else None  # a run of before knows nothing of it
    try:
        return made(replace(ground, config=replace(ground.config, **known), dealt=dealt), peers)
    except UsageError as error:
        if settled and "--chunk" in error.instead:
            error.instead["RUN"] = UNKNOWN  # it is another run
        raise


def _begin(ground: Ground, work: Work) -> None:
    """The run's folder, with what was settled: a run that goes on keeps to it."""
    config = work.config
    settled = {"chunk": config.chunk, "threads": config.threads, "processes": config.gpus}
    settled["dealt"] = work.dealt
    durable.make_folder(ground.folder / "splits")
    keys = keys_of(ground.cache.items, ground.split)
    durable.write(split_file(ground.folder, config.seed()), keys, "run.split")
    durable.write(ground.folder / SEEN, listed(ground.seen), "tuned")
    path = ground.folder / "config.json"
    durable.write(path, durable.sealed({**_wanted(ground), "settled": settled}), "run.config")


def _wanted(ground: Ground) -> dict[str, Any]:
    """What a run is known by."""
    return {
        "settings": ground.config.settings(),
        "fingerprints": ground.cache.fingerprints,
        "device_type": ground.device.type,
        "finetune": True,
    }


def _refuse_other(ground: Ground) -> dict[str, Any]:
    """What was settled when the run was begun; nothing of a new one. Raises StaleError where the
    folder holds a run of other settings or data, or one that goes on in other processes."""
    path = ground.folder / "config.json"
    if not path.is_file():
        return {}
    try:
        begun = durable.read_sealed(path)
    except (OSError, ValueError) as error:
        durable.reraise_unless_gone(path, error)
        begun = {}
    now = _wanted(ground)
    kept = {key: begun.get(key) for key in now}
    if kept["settings"]:  # with those that are younger than the run
        kept["settings"] = {**FinetuneConfig().settings(), **kept["settings"]}
    if kept["settings"] and kept["fingerprints"] == now["fingerprints"]:
        kept["settings"]["data"] = now["settings"]["data"]  # the same images, whatever DATA says
    changed = differences(kept, now)
    if changed:
        free = Path(free_name(ground.folder)).name
        raise StaleError(
            f"{ground.folder} was made with other settings or data:\n  "
            + "\n  ".join(changed)
            + f"\nGive this one another name (RUN={free}), or repeat the old settings to resume it",
            instead={"RUN": free},
        )
    processes = begun["settled"].pop("processes", 1)
    if processes != ground.config.gpus and not keep.is_tuned(ground.folder):
        raise StaleError(
            f"{ground.folder} was begun with GPUS={processes}, of which its checkpoints are: go on "
            "so, or give this one another name",
            instead={"GPUS": str(processes)},
        )
    return begun["settled"]


def _say_what_learns(ground: Ground, work: Work) -> None:
    """Each process of its own views."""
    if work.peers.replica:
        return
    for view, live in zip(work.peers.mine, work.lives, strict=True):
        name = ground.cache.names[view]
        numbers = sum(one.parameter.numel() for one in live.learnt)
        whole = sum(parameter.numel() for parameter in live.backbone.parameters())
        head = live.head.weight.numel() + live.head.bias.numel()
        log.info(
            f"{name}, mode {ground.config.mode}: {counted(len(live.learnt), 'tensor')} of the "
            f"backbone learn, {numbers:,} of {whole:,} numbers, and a head of {head:,}"
        )


def _say_from_what(ground: Ground, work: Work, needs: list[Needs]) -> None:
    """One process, for all."""
    config, peers = work.config, work.peers
    if peers.rank:
        return
    shots, others = len(ground.split.labelled) / ground.classes, ""
    if peers.count > 1:
        others = f" and {counted(len(ground.split.unlabelled), 'unlabelled one')}"
    each = " a process" if peers.ranks > 1 else ""
    need = wanted(config, needs, config.chunk, ground.device) / 1e9
    log.info(
        f"from {counted(len(ground.split.labelled), 'labelled image')}{others} of {ground.classes} "
        f"classes, {config.steps:,} steps of {config.batch} images, {config.chunk} at a time, in "
        f"some {need:.2g} GB{each}. Dropout, drop-path and the statistics of BatchNorm "
        "stay as they are when images are embedded"
    )
    if work.dealt:
        log.info(
            f"too large for one process: each of {peers.replicas} has a part of every parameter "
            "(FSDP2)"
        )
    if config.mode == "full" and shots < COLLAPSES:
        log.warning(
            f"{shots:.3g} labels a class: all parameters of a backbone are more than so few can "
            "teach, and what it knew is often lost. MODE=lora learns less, and keeps it; and see "
            "what the frozen view gives: make train"
        )
    lacking = unlearnt(ground.cache.items, ground.split).text(ground.classes)
    if lacking:
        log.warning(lacking)


def _rehearse(ground: Ground, found: dict[str, Any]) -> None:
    """What each process needs, and how long the slowest would take, by one step after the first: by
    one process for all, each alone, as if the others were there."""
    if my_rank():
        return
    config, settled, seconds = ground.config, _refuse_other(ground), []
    views = len(ground.cache.names)
    for rank in range(min(config.gpus, views)):
        work, needs = _made(ground, settled, OneOfSeveral(views, config.gpus, rank))
        _say_what_learns(ground, work)
        _say_from_what(ground, work, needs)
        if work.dealt:
            found["seconds"] = None
            log.info("how long it takes is seen when all of them run; nothing was written")
            return
        work.learn(work.batch(0))
        begun = time.monotonic()
        work.learn(work.batch(1))
        seconds.append((time.monotonic() - begun) * work.config.steps)
    found["seconds"] = round(max(seconds), 1)
    waiting = ", besides what processes wait for each other" if config.gpus > 1 else ""
    log.info(f"it would take about {clock_text(max(seconds))}{waiting}; nothing was written")


def _less(config: FinetuneConfig) -> tuple[str, dict[str, str | None]]:
    if config.chunk < 2:
        return "Tune less (MODE=lora), or forget what is inside of the blocks", {
            "--checkpointing": ""
        }
    return "Keep fewer images in memory at a time; it is another run", {
        "--chunk": str(config.chunk // 2),
        "RUN": UNKNOWN,
    }


def _finish(ground: Ground, work: Work) -> None:
    """Write the views, each by the process that has it; then one seals what all have written."""
    peers = work.peers
    if peers.replica and not work.dealt:
        return
    work.show()
    with lost_in_between() if work.dealt else nullcontext():
        gained = [_gained(ground, work, place) for place in range(len(peers.mine))]
    if work.dealt:
        put_back(ground, work)
    if peers.replica:
        return
    for place in range(len(peers.mine)):
        _write(ground, work, place)
    gained_V = peers.exchange(gained)  # from here on everything is written
    if peers.rank == 0:
        _seal(ground, gained_V)


def _seal(ground: Ground, gained_V: Sequence[torch.Tensor]) -> None:
    """The record of all views, and no checkpoints any more."""
    told: dict[str, dict[str, Any]] = {}
    for toml, folder, gain in zip(ground.tomls, ground.cache.folders, gained_V, strict=True):
        before, tuned, images = gain.tolist()
        told[toml.stem] = {"parent": folder.name, "labels": len(ground.seen)}
        if images:
            told[toml.stem]["val"] = {"images": int(images), "before": before, "tuned": tuned}
    files = keep.files_of(ground.tomls, ground.originals)
    keep.finish(ground.folder, {"views": told, "files": files})
    shutil.rmtree(ground.folder / "checkpoints")  # several times what learnt


def _write(ground: Ground, work: Work, place: int) -> None:
    """One of this process's views."""
    config, cache, view = ground.config, ground.cache, work.peers.mine[place]
    parent, original, seen = cache.folders[view].name, ground.originals[view], ground.seen
    with_others = [name for name in cache.names if name != cache.names[view]]
    settings = {**config.told(), **({"with": with_others} if with_others else {})}
    tuned = Tuned(parent, config.mode, len(seen), digest(seen), settings)
    spec = keep.tuned_spec(original.spec, ground.tomls[view], tuned)
    some = work.pictures[place].as_extracted(ground.split.labelled[:16].tolist())
    keep.write_tuned(spec, original, work.lives[place], some)


def _gained(ground: Ground, work: Work, place: int) -> torch.Tensor:
    """(3,) float64, on the device: top-1 of head and backbone on validation images that the data
    name, before and after, and how many these are; none that a backbone has learnt from. Nothing is
    chosen by it, and the test split is not touched."""
    view = work.peers.mine[place]
    learnt: set[str] = set().union(*ground.cache.seen.values())
    fresh = [row for row in ground.split.val if ground.cache.items.sha256[row] not in learnt]
    rows = spaced(np.array(fresh, np.int64), LOOKED_AT)
    if not len(rows):
        return torch.zeros(3, dtype=torch.float64, device=ground.device)
    label_N, emb_ND = ground.cache.items.label, ground.cache.emb[view]
    own, known = ground.split.labelled, known_of(ground, view)
    head = fit_head(standardise(emb_ND, own, *known), label_N[own], ground.classes)
    with torch.no_grad():  # what is dealt out knows no inference_mode
        x_nD = torch.from_numpy(standardise(emb_ND, rows, *known))
        before = float((head(x_nD).argmax(1).numpy() == label_N[rows]).mean())
        right = 0
        for part in np.array_split(rows, max(1, len(rows) // work.config.batch)):
            pixels = work.pictures[place].as_extracted(part.tolist()).to(ground.device)
            first = work.lives[place](pixels).argmax(1).cpu().numpy()
            right += int((first == label_N[part]).sum())
    told = before, right / len(rows), len(rows)
    return torch.tensor(told, dtype=torch.float64, device=ground.device)


def _say_next(ground: Ground) -> None:
    told = keep.read_done(ground.folder)["views"]
    for name, one in told.items():
        if val := one.get("val"):
            log.info(
                f"{name}: of {counted(val['images'], 'validation image')} the view as it was has "
                f"{100 * val['before']:.1f} % right with its head, tuned {100 * val['tuned']:.1f} %"
            )
    labels = counted(next(iter(told.values()))["labels"], "image")
    log.log(
        NOTE,
        f"{', '.join(map(str, ground.tomls))}: a view as any other now, which has learnt from the "
        f"labels of {labels} and is not judged by them. To embed all images, and train, type:\n  "
        + "\n  ".join(_following(ground)),
    )


def _following(ground: Ground) -> list[str]:
    """The commands that embed with the tuned views, and train on them."""
    config, found = ground.config, []
    data = {"DATA": config.data}
    if config.cache != FinetuneConfig.cache:
        data["CACHE"] = config.cache
    more = {"ARGS": f"--root {shlex.quote(config.root)}"}
    for toml in ground.tomls:
        elsewhere = more if config.root != FinetuneConfig.root else {}
        found.append(line_of("extract", {"VIEW": str(toml), **data, **elsewhere}))
    names = [toml.stem for toml in ground.tomls]
    if len(names) == 1:
        names.append(UNKNOWN)
    words = {"VIEWS": ",".join(names), **data, "LABELS": config.labels}
    words |= {"SEEDS": str(config.seed()), "VAL": config.val, "TEST": config.test}
    if config.val in ("auto", "cross") and not len(ground.split.val):
        words["VAL"] = "none"  # the labels that would be cross-fitted are known
    return [*found, line_of("train", {w: v for w, v in words.items() if v != "auto"})]
