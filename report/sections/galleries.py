"""Galleries of a report: what the model thinks of images, and the images worth a look, with their pictures."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from base.errors import CoviewError
from cache_specs.items import read_items
from report.html.page import Card, Html, Section, command, gallery, join, note, tag
from report.pictures import Picture, Pictures
from report.run import Run
from report.sections import choose
from report.sections.maps import POINTS, maps

if TYPE_CHECKING:
    from predict.from_run import Opinions
    from train.data.reader import Cache

MOST = 10_000  # images of each split that the model is asked about; of more, evenly spaced ones
MOST_CELLS = 4e8  # probabilities of one split in memory
SHOWN = 24  # pictures of a gallery
ERRORS = 240  # of the gallery that the confusion matrix filters, whose first SHOWN are seen


@dataclass(frozen=True, eq=False)
class Asked:
    """Rows of the data set and what the model says of them; `of`: of how many they are a sample."""

    rows: np.ndarray
    says: "Opinions"
    of: int


@dataclass(frozen=True, eq=False)
class Look:
    """What the galleries are made of. hidden_rows: those that no seed's probes had a label of; labelled: of the first seed."""

    cache: "Cache"
    views: list[str]
    val: Asked
    rest: Asked
    labelled: np.ndarray
    pictures: Pictures

    def card(
        self,
        asked: Asked,
        at: int,
        lines: Sequence[object],
        found: dict[int, Picture],
        **values: object,
    ) -> Card:
        """The card of asked.rows[at]: the lines, what each view says, the picture if there is one."""
        row, names = int(asked.rows[at]), self.cache.items.classes
        picture = found.get(row)
        own = (
            []
            if len(asked.says.views_VnC) < 2
            else [
                f"{view}: {names[p_C.argmax()]} {p_C.max():.2f}"
                for view, p_C in zip(self.views, asked.says.views_VnC[:, at], strict=True)
            ]
        )
        return Card(
            self.cache.items.keys[row],
            *((picture.uri, picture.width, picture.height) if picture else ()),
            lines=[*lines, *own],
            values=tuple(values.items()),
        )


def look(run: Run, cache: Path, root: Path, device: str) -> Look:
    """Open what the run was trained on and ask the shown method's model. Raises CoviewError where either is gone or changed."""
    from predict.from_run import of_run

    model, opened, splits = of_run(run.folder, run.method, device, cache)
    never = splits[0].unlabelled
    for split in splits[1:]:
        never = np.intersect1d(never, split.unlabelled)
    width = len(opened.items.classes) * (len(opened.names) + 1)

    def asked(rows: np.ndarray) -> Asked:
        few = spaced(rows, int(min(MOST, max(1, MOST_CELLS // width))))
        return Asked(few, model([emb_ND[few] for emb_ND in opened.emb]), len(rows))

    dataset = cache / opened.items.folder_name
    return Look(
        opened,
        list(opened.names),
        asked(splits[0].val),
        asked(never),
        splits[0].labelled,
        Pictures(dataset, opened.items, root),
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


def spaced(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of them, evenly spaced."""
    return (
        rows
        if len(rows) <= most
        else rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(np.int64))]
    )


def error_gallery(seen: Look, seeds: int) -> Html:
    """The most confident errors on validation; assets/report.js shows those of a confusion cell."""
    asked, names = seen.val, seen.cache.items.classes
    label_n = seen.cache.items.label[asked.rows]
    chosen = choose.errors(asked.says.joint_nC, label_n, ERRORS)
    found = seen.pictures(asked.rows[chosen])
    pred_n, sure_n = asked.says.joint_nC.argmax(-1), asked.says.joint_nC.max(-1)
    cards = [
        seen.card(
            asked,
            at,
            [bold("label", names[label_n[at]]), bold("called", names[pred_n[at]], sure_n[at])],
            found,
            t=int(label_n[at]),
            p=int(pred_n[at]),
        )
        for at in chosen
    ]
    wrong = int((pred_n != label_n).sum())
    told = f"{wrong:,} of {len(asked.rows):,} validation images{_sampled(asked)} are called wrongly{' by the seeds together' * (seeds > 1)}"
    return join(
        [
            tag("h3", "Most confident errors on validation"),
            note(f"{told}; {len(cards):,} of them are here, at most 6 of a kind."),
            tag(
                "p",
                tag("span", id="errors-told", aria_live="polite"),
                tag("button", "all", type="button", id="errors-all", hidden=True),
                tag("button", "more", type="button", id="errors-more", hidden=len(cards) <= SHOWN),
                class_="controls",
            ),
            gallery(cards, empty="There are none.", id="errors", data_shown=SHOWN),
        ]
    )


def disagreement_gallery(seen: Look) -> Html:
    asked = seen.rest if len(seen.rest.rows) else seen.val
    chosen = choose.disagreeing(asked.says.views_VnC, SHOWN)
    if len(asked.says.views_VnC) < 2:
        return Html("")
    found = seen.pictures(asked.rows[chosen])
    names, joint_nC = seen.cache.items.classes, asked.says.joint_nC
    cards = [
        seen.card(
            asked, at, [bold("joint", names[joint_nC[at].argmax()], joint_nC[at].max())], found
        )
        for at in chosen
    ]
    about = note(
        f"Of {len(asked.rows):,} unlabelled images{_sampled(asked)}, those of which two views are surest, of different classes; at most 4 of a pair "
        "of classes."
    )
    return join([tag("h3", "Where the views disagree"), about, gallery(cards)])


def next_section(seen: Look) -> Section | None:
    """Label these next. Chosen among the images that have no label at all, if there are any, otherwise among those whose label is hidden: unseen either way."""
    asked, items = seen.rest, seen.cache.items
    bare = np.flatnonzero(items.label[asked.rows] < 0)
    pool = bare if len(bare) else np.arange(len(asked.rows))
    if not len(pool):
        return None
    joint_nC, views_VnC = asked.says.joint_nC[pool], asked.says.views_VnC[:, pool]
    emb_nD = np.concatenate([_unit(emb_ND[asked.rows[pool]]) for emb_ND in seen.cache.emb], 1)
    chosen = pool[choose.label_next(joint_nC, views_VnC, emb_nD, SHOWN)]
    found = seen.pictures(asked.rows[chosen])
    names = items.classes
    cards = []
    for at in chosen:
        top2 = np.argsort(-asked.says.joint_nC[at], kind="stable")[:2]
        cards.append(
            seen.card(
                asked,
                at,
                [f"{' or '.join(f'{names[c]} {asked.says.joint_nC[at, c]:.2f}' for c in top2)}?"],
                found,
            )
        )
    keys = "\n".join(items.keys[row] for row in asked.rows[chosen])
    kind = (
        "disagreement of the views × uncertainty of the joint"
        if len(asked.says.views_VnC) > 1
        else "uncertainty"
    )
    what = "images without a label" if len(bare) else "unlabelled images"
    return Section(
        "next",
        "Label these next",
        join(
            [
                gallery(cards),
                tag(
                    "details", tag("summary", "their keys, to copy"), command(keys), class_="values"
                ),
            ]
        ),
        f"Chosen by {kind} among {len(pool):,} {what}{_sampled(asked)}, then spread out so that no two ask the same. No hidden label has a say. "
        "To label them, move the files into their classes' folders, or write their labels into the table that DATA is; then type the same "
        "make extract once more for each view, which embeds no image again, and train under another RUN.",
    )


def suspects_section(seen: Look) -> Section | None:
    """Suspected wrong labels, by probabilities of probes that never saw the label: validation, and training images whose label no seed was given. Not test:
    who corrects the labels there that the model disputes makes its accuracy look better than it is."""
    items = seen.cache.items
    known = np.flatnonzero(items.label[seen.rest.rows] >= 0)
    parts = [
        ("validation", seen.val, np.arange(len(seen.val.rows))),
        ("training", seen.rest, known),
    ]
    joint_nC = np.concatenate([asked.says.joint_nC[at] for _, asked, at in parts])
    where = [(split, asked, int(i)) for split, asked, at in parts for i in at]
    label_n = np.concatenate([items.label[asked.rows[at]] for _, asked, at in parts])
    chosen, rule = choose.wrong_labels(joint_nC, label_n, SHOWN)
    found = seen.pictures([where[i][1].rows[where[i][2]] for i in chosen])
    cards = [
        seen.card(
            where[i][1],
            where[i][2],
            [
                bold("label", items.classes[label_n[i]], joint_nC[i, label_n[i]]),
                bold("rather", items.classes[joint_nC[i].argmax()], joint_nC[i].max()),
                where[i][0],
            ],
            found,
        )
        for i in chosen
    ]
    return Section(
        "suspects",
        "Suspected labels",
        gallery(cards, empty="No label is suspected."),
        f"The labels that look most wrong among {len(label_n):,} that no probe was given (validation and hidden training; not test), by {rule}. "
        "With few labels many of these are the model's errors: look before you correct.",
    )


def map_section(seen: Look) -> Section:
    """The validation and unlabelled images that the model was asked about, and the labelled ones."""
    rows = np.concatenate([seen.val.rows, seen.rest.rows])
    pred_n = np.concatenate([seen.val.says.joint_nC, seen.rest.says.joint_nC]).argmax(-1)
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
        seen.val.of + seen.rest.of + len(seen.labelled),
    )


def bold(word: str, name: str, share: float | None = None) -> Html:
    """label CAT 0.93"""
    return tag("span", f"{word} ", tag("b", name), "" if share is None else f" {share:.2f}")


def _unit(x_nD: np.ndarray) -> np.ndarray:
    x = x_nD.astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _sampled(asked: Asked) -> str:
    return f" (evenly spaced ones of {asked.of:,})" if len(asked.rows) < asked.of else ""
