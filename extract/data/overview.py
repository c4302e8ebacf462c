"""What was understood of a data set: how many images of which class and split, said before anything
is embedded.

    photos: 30 images, 3 classes
                  train    val   test
      cat            10      2      2
      dog             8      2      2
      (no label)      4
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from base.console import counted
from base.phrase import quoted
from cache_specs.items import SPLITS, class_index

log = logging.getLogger(f"coview.{__name__}")
SHOWN = 12  # classes
MANY = 10  # classes, of fewer than two images each
WIDEST = 32  # letters of a class's name
NONE = "(no label)"


@dataclass(frozen=True)
class Overview:
    """counts: of (class or '', split or ''). hidden: the words that mean that there is no label,
    and how many images had each."""

    name: str
    classes: list[str]
    splits: list[str]
    counts: Counter[tuple[str, str]]
    hidden: Counter[str]

    def of(self, label: str) -> int:
        """How many images of a class there are, in all splits."""
        return sum(self.counts[label, split] for split in self.splits)

    def lines(self) -> list[str]:
        """The tree: a line for each class, of many for the first ones; a column for each split."""
        shown, few = self.classes, len(self.classes) <= SHOWN
        if not few:
            shown = shown[: SHOWN - 2]
        rows = [(_short(label), label) for label in shown]
        if self.of(""):
            rows.append((NONE, ""))
        many = "1 class" if len(self.classes) == 1 else f"{len(self.classes):,} classes"
        lines = [f"{self.name}: {counted(self.counts.total(), 'image')}, {many}", *self._rows(rows)]
        if not few:
            rest = [self.of(label) for label in self.classes[len(shown) :]]
            each = f"{min(rest):,} to {max(rest):,} images each"
            lines.insert(-1 if self.of("") else len(lines), f"  … {len(rest):,} more, {each}")
        return lines

    def _rows(self, rows: list[tuple[str, str]]) -> list[str]:
        """rows: what each is called, and its label."""
        lines, left = [], max(len(title) for title, _ in rows)
        if self.splits != [""]:
            heads = [f"  {split or 'no split':>10}" for split in self.splits]
            lines.append(f"  {'':{left}}{''.join(heads)}")
        for title, label in rows:
            numbers = [self.counts[label, split] for split in self.splits]
            cells = [f"  {number:>10,}" if number else " " * 12 for number in numbers]
            lines.append(f"  {title:{left}}{''.join(cells)}".rstrip())
        return lines

    def record(self) -> dict[str, Any]:
        """What --json says of it: {class: {split: count}}; '' is no label, and no split."""
        found = {}
        for label in [*self.classes, ""]:
            inner = {split: self.counts[label, split] for split in self.splits}
            found[label] = {split: count for split, count in inner.items() if count}
        return {"images": self.counts.total(), "classes": found, "unlabelled_words": self.hidden}


def overview(
    name: str, labels: Sequence[str], splits: Sequence[str], hidden: Counter[str]
) -> Overview:
    counts = Counter(zip(labels, splits, strict=True))
    there = {split for _, split in counts}
    ordered = [split for split in (*SPLITS[1:], "") if split in there]
    return Overview(name, class_index(list(labels))[1], ordered, counts, hidden)


def say(found: Overview) -> None:
    """The tree, and what in it may not be meant."""
    log.info("\n".join(found.lines()))
    for word, count in found.hidden.most_common(5):
        counts = "counts" if count == 1 else "count"
        log.info(
            f"{found.name}: {counted(count, 'image')} labelled {word!r} {counts} as unlabelled; to "
            f"make it a class: ARGS={_as_class(word)}"
        )
    _warn_of_several(found)
    _warn_of_strangers(found)
    _warn_of_single(found)
    if len(found.classes) == 1:
        log.warning(
            f"{found.name}: all labels are {found.classes[0]!r}, and there is no other class to "
            "learn; if that is a folder above those of the classes, name it as DATA"
        )


def _as_class(word: str) -> str:
    """--as-class and the word, quoted once for make and once for the shell."""
    if "'" in word or '"' in word:
        return quoted(f"--as-class={quoted(word)}")
    if re.fullmatch(r"[\w./]+", word):
        return f"'--as-class {word}'"
    return f"\"--as-class='{word}'\""


def _warn_of_several(found: Overview) -> None:
    """Of labels such as 'cat,dog', where cat or dog is a class too."""
    classes, several = set(found.classes), []
    for label in found.classes:
        parts = [part.strip() for part in re.split(r"[,;|/+&\[\]'\"]", label)]
        parts = [part for part in parts if part]
        if label.startswith("[") or (len(parts) > 1 and not classes.isdisjoint(parts)):
            several.append(label)
    if several:
        count = sum(map(found.of, several))
        log.warning(
            f"{found.name}: {counted(count, 'image')} with several classes in one label, such as "
            f"{several[0]!r}, which is a class of its own here. An image has one class: choose "
            "one, or leave the label empty"
        )


def _warn_of_strangers(found: Overview) -> None:
    """Where validation or test images have none of the classes that the training images have."""
    in_split = {split: set[str]() for split in (*SPLITS, "")}
    for label, split in found.counts:
        in_split[split] |= {label} - {""}
    learnt = in_split["train"] | in_split[""]
    for split in ("val", "test"):
        if learnt and in_split[split] and learnt.isdisjoint(in_split[split]):
            log.warning(
                f"{found.name}: no class of the {split} split ({_listed(in_split[split])}) is one "
                f"of the training split ({_listed(learnt)}), so no label of it can be learnt; call "
                "what is one class by one name"
            )


def _warn_of_single(found: Overview) -> None:
    """Of labels that say something of each image: a measurement, its name."""
    images, classes = sum(map(found.of, found.classes)), len(found.classes)
    if classes >= MANY and 2 * classes > images:
        log.warning(
            f"{found.name}: {classes:,} classes of {images:,} labelled images, such as "
            f"{_listed(set(found.classes))}: these look like measurements, or names of images. A "
            "class is what several images have in common: take the column, or the folders, that "
            "say it as the label"
        )


def _listed(names: set[str]) -> str:
    more = " …" if len(names) > 3 else ""
    return f"{', '.join(map(_short, sorted(names)[:3]))}{more}"


def _short(label: str) -> str:
    plain = label if label.isprintable() else repr(label)[1:-1]
    return plain if len(plain) <= WIDEST else f"{plain[: WIDEST - 1]}…"
