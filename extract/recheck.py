"""Is what was copied still what it was taken for? Between the first look at a donor and the copy hours may pass, or a kill and a new version of a library.

begin_again(view, known, agreed)    when it goes on without a canary: without the donors that do not agree with what is computed now
recheck(view, known)                before the seal: what was copied is what the donors hold, and these are undamaged
"""

from contextlib import suppress

import numpy as np

from base.errors import IntegrityError, StaleError
from cache_specs import integrity, store
from cache_specs.view import View, write_documents
from extract.reuse import Known, forget, stored, unreadable


def begin_again(view: View, known: Known, agreed: Known) -> tuple[View, Known]:
    """A view that has no canary yet, without the donors that it was begun with and that do not agree: its description then names the others alone.
    The caller holds the writer's lock. Raises StaleError where it has shards already, which may hold their rows."""
    if len(agreed.donors) == len(known.donors):
        return view, agreed
    if len(view.pending()) < view.shards:
        raise StaleError(
            f"{view.folder} has no canary.json, and its finished shards may hold rows that are not what is computed now. Delete {view.folder}, "
            "then type the same command again"
        )
    provenance = {
        key: value for key, value in view.attributes["provenance"].items() if key != "reused"
    }
    write_documents(
        view.folder,
        view.attributes
        | {"provenance": provenance | ({"reused": agreed.record()} if agreed.donors else {})},
    )
    return store.open_view(view.folder), agreed


def recheck(view: View, known: Known) -> None:
    """Raise IntegrityError, and take back the commits of the shards in question, where a copied row is not the donor's, or a shard that was copied from is
    not what was sealed: it may have changed after `rows_in` looked. Reads both from the disk, whatever is remembered. The caller holds the writer's lock."""
    wrong, damaged = set(), {}
    for shard in range(view.shards):
        first, last = view.bounds(shard)
        copied = np.flatnonzero(known.which_N[first:last] >= 0)
        if not copied.size:
            continue
        emb_RD, status_R = (
            np.empty((last - first, view.width), np.float16),
            np.empty(last - first, np.uint8),
        )
        known.copy(first, last, emb_RD, status_R)
        if emb_RD[copied].tobytes() != stored(view, shard, copied.tolist()):
            wrong.add(shard)
    for number, donor in enumerate(known.donors):
        here = np.flatnonzero(known.which_N == number)
        shards, records = known.row_N[here] // donor.rows, integrity.read_seal(donor)["shards"]
        for part in np.unique(shards).tolist():
            name = integrity.embeddings_name(part)
            try:
                recorded = records[part]["files"][name]["sha256"]
                same = integrity.sha256_of(donor.folder / name) == recorded
            except OSError as error:
                raise unreadable(donor, part, error) from error
            if not same:
                wrong |= set((here[shards == part] // view.rows).tolist())
                damaged[number] = donor
    forget(view, wrong)
    for donor in damaged.values():
        with suppress(OSError):
            (donor.folder / "verified.json").unlink()  # whoever opens it next reads it all
    if wrong:
        first = (
            f"{next(iter(damaged.values())).folder} changed while it was copied from"
            if damaged
            else "they do not hold the rows that were to be copied"
        )
        raise IntegrityError(
            f"{view.folder}: the shards {', '.join(map(str, sorted(wrong)))} are not kept: {first}. "
            + "".join(f"Type: {store.command(donor.folder)}\n" for donor in damaged.values())
            + "Then type the same command again: only these shards are made again"
        )
