"""The names of the classes as the views of a cache see them: what zero-shot compares with."""

import dataclasses
from collections.abc import Mapping

from base.phrase import quoted
from cache_specs import store
from cache_specs.lookup import text_of
from cache_specs.spec import load_spec, view_names
from cache_specs.text import read_text
from train.data.reader import Cache

TEXT = "zero-shot"  # the method
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
