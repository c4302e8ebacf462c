"""A trained model applied to embeddings: the probes of all seeds, the graphs, the pool, a temperature.

    model, cache, splits = of_run(Path("runs/demo"))        from a finished run and the cache that it was trained on
    model = open_model(Path("model"))                       from a folder that `make export-model` wrote, without either
    model([clip_nD, dinov2_nD]).joint_nC                    probabilities of n images, of which each view has one embedding

The joint is the mean of the seeds' distributions, at one temperature for all, fitted on the run's validation rows. A graph (train/data/graph.py) says of
an image that is no node of it the mean of what its nearest nodes know, and of one that is, what that node knows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from base.errors import IntegrityError, StaleError, UsageError, did_you_mean, nearest
from base.phrase import quoted
from cache_specs import store
from cache_specs.spec import differences
from predict.model import Expert, Model, Opinions, View, features
from train.algorithm.probe import Params
from train.data.feed import Input
from train.data.graph import Graph, nodes_of
from train.data.reader import Cache, open_cache
from train.data.splits import Split, make_split
from train.jobs import groups_of
from train.methods import PLANS, TITLES
from train.run.probe_files import read_tensors
from train.run.rundir import finished
from train.run.summary import read_summary

PRIVATE = ("views", "data", "labels")  # settings that may hold paths of this machine, or keys
__all__ = ["Model", "Opinions", "choose", "of_run", "open_model"]


def of_run(
    run: Path, method: str = "", device: str = "cpu", cache: Path = Path("cache")
) -> tuple[Model, Cache, list[Split]]:
    """The model of a finished run's METHOD, the cache that it was trained on and the seeds' splits.

    method "": mct-graph if it is there, else the one with the best joint on validation; the test split has no say. Raises UsageError (no such run, not
    finished, a method that keeps no model), StaleError (the cache or its labels are other ones), IntegrityError (a damaged probe).
    """
    run, cache = Path(run), Path(cache)
    config, summary = finished(run), read_summary(run)
    settings, trained_on = config["settings"], config["fingerprints"]
    views = settings["views"].split(",")
    method = choose(summary, method)
    folders = sorted(cache.glob(f"*-{trained_on['items'][:8]}/dataset.json"))
    if not folders:
        raise UsageError(
            f"RUN={run.name} was trained on {summary['dataset']}-{trained_on['items'][:8]}, which is not in {cache}/. Name the cache it is in: "
            f"CACHE=…, or make it again: make extract VIEW={quoted(views[0].strip())} DATA={quoted(settings['data'])}"
        )
    names = [
        path.parent.name for path in folders
    ]  # the same images may be there under another name too
    mine = next((name for name in names if name.rpartition("-")[0] == summary["dataset"]), names[0])
    opened = open_cache(cache, mine, [name.strip() for name in views], labels=trained_on["labels"])
    if changed := differences(trained_on, opened.fingerprints):
        raise StaleError(
            f"{cache / mine} is not what {run} was trained on any more:\n  "
            + "\n  ".join(changed)
            + "\nTrain on what it is now, under another RUN, or name the cache of then with CACHE=…"
        )
    splits = [_split(run, opened, settings["labels"], seed) for seed in summary["seeds"]]
    where, found = torch.device(device), summary["methods"][method]
    names = ["concat"] if method == "concat" else opened.names
    probes, pool = [_tensors(run, method, name, found, where) for name in names], None
    experts = []
    if PLANS[method].graphs:
        pool = _tensors(run, method, "pool", found, where)
        experts = experts_of(opened, splits, pool, probes, where)
    about = {key: summary[key] for key in ("dataset", "labels_text", "rows", "fingerprints")} | {
        "run": run.name,
        "scores": found,
        "settings": {key: value for key, value in settings.items() if key not in PRIVATE},
    }
    if not isinstance(settings["labels"], str):
        about["labels_text"] = "a list of labelled images"
    model = Model(
        [
            _view(cache / mine, name, emb_ND.shape[1])
            for name, emb_ND in zip(opened.names, opened.emb, strict=True)
        ],
        opened.items.classes,
        method,
        summary["seeds"],
        summary["joint"],
        probes,
        experts,
        None if pool is None else pool["weight"],
        1.0,
        about,
    )
    val = splits[0].val
    return (
        model.calibrated([emb_ND[val] for emb_ND in opened.emb], opened.items.label[val]),
        opened,
        splits,
    )


def choose(summary: dict[str, Any], method: str) -> str:
    """The method that is asked for, or the one that a user should take. Raises UsageError naming those that keep a model."""
    trained = [name for name in TITLES if name in summary["methods"]]
    kept = [name for name in trained if name in PLANS]
    advice = (
        f"Those of this run that keep one: {', '.join(kept)}"
        if kept
        else "None of this run does: train one under another RUN, with METHOD=mct-graph or METHOD=supervised"
    )
    best = kept and (
        "mct-graph"
        if "mct-graph" in kept
        else max(kept, key=lambda name: summary["methods"][name]["joint"]["val_top1"]["mean"])
    )
    if method and method not in trained:
        near = nearest(method, trained)
        raise UsageError(
            f"METHOD={method}: the run did not train it{did_you_mean(method, trained)}",
            instead={"METHOD": near or None},
        )
    if (method and method not in kept) or not kept:
        raise UsageError(
            f"METHOD={method or ','.join(trained)} keeps no model, only its scores on the run's own validation and test images. {advice}",
            instead={"METHOD": best} if best else None,
        )
    scores = {name: summary["methods"][name]["joint"]["val_top1"]["mean"] for name in kept}
    if (
        not method
        and best != "mct-graph"
        and (tied := [name for name in kept if name != best and scores[name] == scores[best]])
    ):
        print(
            f"{best} is taken; on validation {', '.join(tied)} {'is' if len(tied) == 1 else 'are'} as good: METHOD={tied[0]} takes "
            f"{'that' if len(tied) == 1 else 'the first'}",
            flush=True,
        )
    return method or best


def experts_of(
    cache: Cache,
    splits: Sequence[Split],
    pool: Params,
    probes: Sequence[Params],
    device: torch.device,
) -> list[Expert]:
    """The graphs of a run with what their nodes know: as the run wrote it down, or, where that was too much to keep, solved again with what it chose."""
    found, nodes_E = [], [nodes_of(split) for split in splits]
    nodes = np.unique(np.concatenate(nodes_E))
    for number, group in enumerate(groups_of(len(cache.names))):
        k_E, alpha_E = (pool[f"chosen.{key}"][number].tolist() for key in ("neighbours", "alpha"))
        kept = (
            [pool[f"told.{number}.{e}"] for e in range(len(splits))] if "told.0.0" in pool else []
        )
        told = (
            kept
            if [len(told_nC) for told_nC in kept] == [len(rows) for rows in nodes_E]
            else [
                p_nC
                for _, p_nC, *_ in Graph(
                    [cache.emb[view] for view in group],
                    cache.items.label,
                    splits,
                    len(cache.items.classes),
                    device,
                    list(zip(k_E, alpha_E, strict=True)),
                ).solved_E
            ]
        )
        member_EM = torch.zeros(len(splits), len(nodes), dtype=torch.bool, device=device)
        told_EMC = torch.zeros(len(splits), len(nodes), len(cache.items.classes), device=device)
        for e, told_nC in enumerate(told):
            at = torch.from_numpy(np.searchsorted(nodes, nodes_E[e])).to(device)
            member_EM[e, at], told_EMC[e, at] = True, told_nC
        x_V = [
            Input([cache.emb[view]], probes[view]["input_mean"], probes[view]["input_std"])(nodes)
            for view in group
        ]
        found.append(Expert(group, features(x_V), member_EM, told_EMC, k_E))
    return found


def open_model(folder: Path, device: str = "cpu") -> Model:
    """The model in a folder that `make export-model` wrote. Raises UsageError (no such folder, or none of ours) or IntegrityError naming the damaged file."""
    from predict.bundle.folder import read_model

    return read_model(Path(folder), torch.device(device))


def _split(run: Path, cache: Cache, labels: str | list[str], seed: int) -> Split:
    """As it was: by the rule, or, of LABELS=file, by the keys that the run wrote down. Raises StaleError where the rule gives other rows now."""
    written = run / "splits" / f"seed-{seed}.labelled.txt"
    split = make_split(
        cache.items, cache.ok, labels if isinstance(labels, str) else str(written), seed
    )
    try:
        same = written.read_text(encoding="utf-8") == "".join(
            f"{cache.items.keys[row]}\n" for row in split.labelled
        )
    except (OSError, ValueError):
        same = False
    if not same:
        raise StaleError(
            f"{written} does not name the labelled images that LABELS={labels} gives for seed {seed}: it was changed, or the run is of another "
            "version. Train again under another RUN"
        )
    return split


def _tensors(
    run: Path, method: str, name: str, found: dict[str, Any], device: torch.device
) -> Params:
    tensors, sha256 = read_tensors(run, method, name, device)
    if sha256 != found["probes"][name]:
        raise IntegrityError(
            f"{run / 'probes' / method / name}.safetensors is not the file that {run / 'summary.json'} was made of (sha256 {sha256[:12]}, "
            f"expected {found['probes'][name][:12]}); train again under another RUN"
        )
    return tensors


def _view(dataset: Path, name: str, width: int) -> View:
    attributes = store.find_view(dataset, name, "").attributes
    provenance = attributes["provenance"]
    return View(
        name,
        width,
        attributes["spec"],
        attributes["weights_sha256"],
        provenance.get("spec_file", ""),
        provenance.get("batch", 64),
    )
