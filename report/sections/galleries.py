"""Galleries of a report: what the model thinks of images, and the images worth a look, with their
pictures."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from base.errors import CoviewError
from cache_specs.items import read_items
from predict.from_run import of_run, out_of_fold_of
from report.asked import Asked, ask, first_two, known_rows, to_label, unseen
from report.html.page import Card, Html, Section, command, gallery, join, note, tag
from report.pictures import Picture, Pictures, card_of
from report.run import Run
from report.sections import choose
from report.sections.maps import POINTS, maps
from train.data.reader import Cache
from train.data.splits import spaced
from train.run.summary import kind_of

SHOWN = 24  # pictures of a gallery
ERRORS = 240  # of the gallery that the confusion matrix filters, whose first SHOWN are seen


@dataclass(frozen=True, eq=False)
class Look:
    """What the galleries are made of. rest: the images that no seed's probes had a label of;
    labelled: of the first seed; known: of any; kind: what the images of val are called; of: how
    many images are not for test."""

    cache: Cache
    views: list[str]
    val: Asked
    rest: Asked
    labelled: np.ndarray
    known: np.ndarray
    kind: str
    of: int
    pictures: Pictures

    def card(
        self,
        asked: Asked,
        at: int,
        lines: Sequence[object],
        found: dict[int, Picture],
        **values: object,
    ) -> Card:
        """The card of asked.rows[at]: the lines, what each view says, the picture if there is
        one."""
        row, names = int(asked.rows[at]), self.cache.items.classes
        told = list(lines)
        if len(asked.says.views_VnC) > 1:
            for view, p_C in zip(self.views, asked.says.views_VnC[:, at], strict=True):
                told.append(f"{view}: {names[p_C.argmax()]} {p_C.max():.2f}")
        return card_of(self.cache.items.keys[row], found.get(row), told, tuple(values.items()))


def look(run: Run, cache: Path, root: Path, device: str) -> Look:
    """Open what the run was trained on and ask the shown method's model. Raises CoviewError where
    either is gone or changed."""
    model, opened, splits = of_run(run.folder, run.method, device, cache)
    if splits[0].folds:
        out = out_of_fold_of(run.folder, run.method, splits, device)
        val = Asked(out.rows, out.opinions(model.temperature), len(out.rows))
    else:
        val = ask(model, opened, splits[0].val)
    return Look(
        opened,
        list(opened.names),
        val,
        ask(model, opened, unseen(splits)),
        splits[0].labelled,
        known_rows(splits),
        kind_of(run.summary, "val"),
        len(np.unique(np.concatenate([splits[0].val, unseen(splits), splits[0].labelled]))),
        Pictures(cache / opened.items.folder_name, opened.items, root),
    )


def class_names(run: Run, cache: Path) -> list[str]:
    """From the item list of what the run was trained on; where that is gone, numbers."""
    prints = run.summary["fingerprints"]
    for record in sorted(cache.glob(f"*-{prints['items'][:8]}/dataset.json")):
        with contextlib.suppress(CoviewError):
            items = read_items(record.parent, prints["labels"])
            if items.labels_fingerprint == prints["labels"]:
                return items.classes
    return [f"class {c}" for c in range(run.summary["classes"])]


def error_gallery(seen: Look, seeds: int) -> Html:
    """The most confident errors of the images by which was chosen; assets/report.js shows those of
    a confusion cell."""
    asked, names, kind = seen.val, seen.cache.items.classes, seen.kind
    label_n = seen.cache.items.label[asked.rows]
    chosen = choose.errors(asked.says.joint_nC, label_n, ERRORS)
    found = seen.pictures(asked.rows[chosen])
    pred_n, sure_n = asked.says.joint_nC.argmax(-1), asked.says.joint_nC.max(-1)
    cards = []
    for at in chosen:
        label, pred = int(label_n[at]), int(pred_n[at])
        lines = [bold("label", names[label]), bold("called", names[pred], sure_n[at])]
        cards.append(seen.card(asked, at, lines, found, t=label, p=pred))
    wrong = int((pred_n != label_n).sum())
    together = " by the seeds together" if seeds > 1 else ""
    told = (
        f"{wrong:,} of {len(asked.rows):,} {kind} images{asked.sampled} are called "
        f"wrongly{together}; {len(cards):,} of them are here, at most 6 of a kind."
    )
    more = tag("button", "more", type="button", id="errors-more", hidden=len(cards) <= SHOWN)
    return join(
        [
            tag("h3", f"Most confident errors, {kind}"),
            note(told),
            tag(
                "p",
                tag("span", id="errors-told", aria_live="polite"),
                tag("button", "all", type="button", id="errors-all", hidden=True),
                more,
                class_="controls",
            ),
            gallery(cards, empty="There are none.", id="errors", data_shown=SHOWN),
        ]
    )


def disagreement_gallery(seen: Look) -> Html:
    asked = seen.rest if len(seen.rest.rows) else seen.val
    if len(asked.says.views_VnC) < 2:
        return Html("")
    chosen = choose.disagreeing(asked.says.views_VnC, SHOWN)
    found = seen.pictures(asked.rows[chosen])
    names, cards = seen.cache.items.classes, []
    for at in chosen:
        joint_C = asked.says.joint_nC[at]
        line = bold("joint", names[joint_C.argmax()], joint_C.max())
        cards.append(seen.card(asked, at, [line], found))
    about = note(
        f"Of {len(asked.rows):,} unlabelled images{asked.sampled}, those of which two views are "
        "surest, of different classes; at most 4 of a pair of classes."
    )
    return join([tag("h3", "Where the views disagree"), about, gallery(cards)])


def next_section(seen: Look) -> Section | None:
    """Label these next: what `coview suggest --run` lists. Unseen by the training either way."""
    asked, items = seen.rest, seen.cache.items
    chosen = to_label(asked, seen.cache, seen.known, SHOWN)
    if not len(chosen.rows):
        return None
    found = seen.pictures(chosen.rows)
    cards = []
    for at in chosen.at:
        joint_C = asked.says.joint_nC[at]
        first, second = first_two(joint_C)
        line = f"{items.classes[first]} {joint_C[first]:.2f} or "
        line += f"{items.classes[second]} {joint_C[second]:.2f}?"
        cards.append(seen.card(asked, at, [line], found))
    keys = command("\n".join(items.keys[row] for row in chosen.rows))
    copied = tag("details", tag("summary", "their keys, to copy"), keys, class_="values")
    body = join([gallery(cards), copied])
    return Section("next", "Label these next", body, f"{chosen.why} {chosen.then}")


def suspects_section(seen: Look) -> Section:
    """Suspected wrong labels, by probabilities of probes that never saw the label: validation, and
    training images whose label no seed was given. Not test: who corrects the labels there that the
    model disputes makes its accuracy look better than it is."""
    items, val, rest = seen.cache.items, seen.val, seen.rest
    known = np.flatnonzero(items.label[rest.rows] >= 0)
    joint_nC = np.concatenate([val.says.joint_nC, rest.says.joint_nC[known]])
    label_n = np.concatenate([items.label[val.rows], items.label[rest.rows[known]]])
    chosen, rule = choose.wrong_labels(joint_nC, label_n, SHOWN)
    found = seen.pictures(np.concatenate([val.rows, rest.rows[known]])[chosen])
    cards = []
    for i in chosen:
        label, rather = label_n[i], joint_nC[i].argmax()
        lines = [
            bold("label", items.classes[label], joint_nC[i, label]),
            bold("rather", items.classes[rather], joint_nC[i, rather]),
        ]
        if i < len(val.rows):
            cards.append(seen.card(val, i, [*lines, seen.kind], found))
        else:
            cards.append(seen.card(rest, known[i - len(val.rows)], [*lines, "training"], found))
    return Section(
        "suspects",
        "Suspected labels",
        gallery(cards, empty="No label is suspected."),
        f"The labels that look most wrong among {len(label_n):,}, by probes that were not given "
        f"them ({seen.kind} and hidden training; not test), by {rule}. With few labels many of "
        "these are the model's errors: look before you correct.",
    )


def map_section(seen: Look) -> Section:
    """The validation and unlabelled images that the model was asked about, and the labelled
    ones."""
    rows = np.concatenate([seen.val.rows, seen.rest.rows])
    pred_n = np.concatenate([seen.val.says.joint_nC, seen.rest.says.joint_nC]).argmax(-1)
    others = ~np.isin(rows, seen.labelled)  # those that judge out-of-fold are ringed
    rows, pred_n = rows[others], pred_n[others]
    few = spaced(np.argsort(rows, kind="stable"), POINTS - min(len(seen.labelled), POINTS // 5))
    ringed = spaced(seen.labelled, POINTS // 5)
    rows_n = np.concatenate([rows[few], ringed])
    of_n = np.concatenate([pred_n[few], seen.cache.items.label[ringed]])
    labelled_n = np.arange(len(rows_n)) >= len(few)
    return maps(
        seen.views,
        [emb_ND[rows_n] for emb_ND in seen.cache.emb],
        of_n,
        seen.cache.items.classes,
        labelled_n,
        seen.of,
    )


def bold(word: str, name: str, share: float | None = None) -> Html:
    """label CAT 0.93"""
    return tag("span", f"{word} ", tag("b", name), "" if share is None else f" {share:.2f}")
