"""The names of the classes as the views of a cache see them: what zero-shot compares with, and what
there is where nobody has labelled anything."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from base.phrase import quoted
from cache_specs import store
from cache_specs.lookup import text_of
from cache_specs.spec import load_spec, view_names
from cache_specs.text import read_text
from train.data.reader import Cache
from train.data.towers import constants, surest, told, towers_of

TEXT = "zero-shot"  # the method
TAKEN = 16  # images of a class that are taken for labelled where none is
PRINT = "text of "  # before a view's name, of the fingerprint of its names


def with_texts(cache: Cache) -> Cache:
    """The cache with the names that were encoded for its views, which then are part of what a run
    was made of. Raises IntegrityError (damaged) or StaleError (of other classes, by another
    tower)."""
    texts, prints = {}, dict(cache.fingerprints)
    for name, folder in zip(cache.names, cache.folders, strict=True):
        view = store.open_view(folder)
        text = read_text(view)
        if text is not None:
            text.refuse_other_classes(view, cache.items.classes)
            text.refuse_another_tower(view, text_of(view))
            texts[name], prints[f"{PRINT}{name}"] = text, text.sha256
    return dataclasses.replace(cache, texts=texts, fingerprints=prints)


def labelled_by_names(cache: Cache) -> Cache:
    """The cache as if nobody had labelled any image but those of test: labelled are, of each class,
    the TAKEN training images of which the names are surest, constants of the classes added as in
    train/data/names.py. The class names have to be there. Raises StaleError where those of several
    views are of other classes."""
    items = with_classes(cache).items
    towers = towers_of([cache.texts.get(name) for name in cache.names])
    testing = np.array([split == "test" for split in items.split])
    rows = np.flatnonzero(cache.ok & ~testing)
    log_p_nC = told(cache.emb, towers, items.classes, rows)
    classes = len(items.classes)
    bias_C = constants(log_p_nC, np.full(classes, 1 / classes))
    first_n, sure_n = surest(log_p_nC, bias_C)
    label = np.where(testing, items.label, -1).astype(items.label.dtype)
    for number in range(classes):
        own = np.flatnonzero(first_n == number)
        order = np.argsort(-sure_n[own], kind="stable")
        label[rows[own[order[:TAKEN]]]] = number
    split = ["test" if test else "train" for test in testing]
    items = dataclasses.replace(items, label=label, split=split)
    return dataclasses.replace(cache, items=items, taken=int((label[rows] >= 0).sum()))


def with_classes(cache: Cache) -> Cache:
    """The cache whose classes, if it has none, are those that were named. Raises StaleError."""
    if cache.items.classes or not cache.texts:
        return cache
    classes = list(dict.fromkeys(one for text in cache.texts.values() for one in text.prompts))
    for name, folder in zip(cache.names, cache.folders, strict=True):
        if name in cache.texts:
            cache.texts[name].refuse_other_classes(store.open_view(folder), classes)
    return dataclasses.replace(cache, items=dataclasses.replace(cache.items, classes=classes))


def without_texts(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Of the images, the labels and the views alone."""
    return {key: value for key, value in fingerprints.items() if not key.startswith(PRINT)}


def how_to_encode(cache: Cache) -> str:
    """What to type so that a view has names."""
    able = []
    for name, folder in zip(cache.names, cache.folders, strict=True):
        if text_of(store.open_view(folder)) is not None:
            able.append(name)
    if not able:
        some = [name for name in view_names() if load_spec(name).text is not None]
        return (
            f"None of the views has a text tower. Those that have one: {', '.join(some)}. Name one "
            "of them in VIEWS, or leave zero-shot out"
        )
    word = "VIEWS" if len(able) > 1 else "VIEW"
    data = quoted(cache.source or cache.items.name)
    return (
        f"Type first: make extract {word}={quoted(','.join(able))} DATA={data} CLASSES=own   (or a "
        "file with a line a class: CLASSES=names.txt)"
    )
