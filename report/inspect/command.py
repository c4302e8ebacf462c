"""make inspect VIEWS=clip,dinov2 DATA=photos/ [LABELS=4] [TO=page.html]     (python -m report.inspect --views clip,dinov2 --data photos/)

Before training: dead dimensions, lengths, images that stand on both sides of the border between training, validation and test, what the nearest
neighbours of each view know, how alike the views are, and whether two views err on different images. Prints a summary and writes one page. The labels
of the test images are not looked at. What takes long on large sets is done on evenly spaced rows, and each number says of how many.
"""

import itertools
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.errors import UsageError
from base.phrase import line_of, quoted
from report.config import InspectConfig

if TYPE_CHECKING:
    import numpy as np

    from cache_specs.items import Items
    from report.inspect.measures import Near, Overlap
    from train.data.reader import Cache
    from train.data.splits import Split

ASKED, BANK, SHOWN = (
    10_000,
    65_536,
    12,
)  # rows of the nearest-neighbour vote at most; pairs on the page
ALIKE, SAME_ERRORS, LITTLE = (
    0.95,
    0.8,
    0.02,
)  # rules of thumb: CKA and kappa of views too alike; share of images from which little is to be learnt
ENOUGH = 30  # validation images for a verdict


def look(cache: "Cache", split: "Split") -> dict[str, Any]:
    """All findings, as plain values."""
    import numpy as np

    from report.inspect import measures

    label, classes = cache.items.label, len(cache.items.classes)
    role = np.full(len(cache.items), "", object)
    for name in ("labelled", "unlabelled", "val", "test"):
        role[getattr(split, name)] = name
    used = np.flatnonzero(role != "")
    found: dict[str, Any] = {
        "dataset": cache.items.name,
        "rows": {
            name: len(getattr(split, name)) for name in ("labelled", "unlabelled", "val", "test")
        },
        "unusable": int((~cache.ok).sum()),
        "classes": classes,
        "views": [],
    }
    bank, asked = measures.spaced(split.labelled, BANK), measures.spaced(split.val, ASKED)
    k = int(np.clip(np.median(np.bincount(label[bank], minlength=classes)), 1, 5))
    chance = float((label[asked] == np.bincount(label[bank], minlength=classes).argmax()).mean())
    found |= {"k": k, "asked": len(asked), "bank": len(bank), "chance": chance}
    means, right = [], []
    for name, emb_ND in zip(cache.names, cache.emb, strict=True):
        print(f"{name}: one pass over {len(used):,} rows", file=sys.stderr, flush=True)
        seen = measures.dimensions(emb_ND, used)
        means.append(seen.mean_D)
        middle, usual = (
            np.median(seen.norm_n),
            np.median(np.abs(seen.norm_n - np.median(seen.norm_n))),
        )
        odd = np.flatnonzero(np.abs(seen.norm_n - middle) > 10 * max(1.4826 * usual, 1e-6 * middle))
        counts, edges = np.histogram(seen.norm_n, 30)
        right.append(
            measures.vote(label, measures.nearest(emb_ND, seen.mean_D, bank, asked, k)[1], classes)
            == label[asked]
        )
        alone = measures.spaced(bank, ASKED)
        own = (
            measures.vote(label, measures.nearest(emb_ND, seen.mean_D, bank, alone, k)[1], classes)
            == label[alone]
        )
        found["views"].append(
            {
                "view": name,
                "width": emb_ND.shape[1],
                "constant": seen.constant.tolist(),
                "weak": seen.weak.tolist(),
                "effective": seen.effective,
                "norm": {
                    "median": float(middle),
                    "least": float(seen.norm_n.min()),
                    "most": float(seen.norm_n.max()),
                    "zero": int((seen.norm_n == 0).sum()),
                    "odd": [cache.items.keys[used[row]] for row in odd[:SHOWN]],
                    "odd_count": len(odd),
                    "counts": counts.tolist(),
                    "edges": edges.tolist(),
                },
                "knn_val": float(right[-1].mean()),
                "knn_left_out": float(own.mean()),
                "left_out": len(alone),
            }
        )
    found["copies"] = _copies(cache.items, used, role, label)
    held = np.union1d(split.val, split.test)
    print(f"near-duplicates of {len(held):,} held-out rows", file=sys.stderr, flush=True)
    near = measures.near_duplicates(cache.emb, means, held, used, role)
    found["near"] = _near(near, cache.items, role, len(held))
    sample = measures.spaced(used, measures.SAMPLE)
    small = [np.take(emb_ND, sample, axis=0).astype(np.float32) for emb_ND in cache.emb]
    found["pairs"] = [
        _pair(
            found["views"][a],
            found["views"][b],
            measures.cka(small[a], small[b]),
            len(sample),
            measures.overlap(right[a], right[b]),
            chance,
        )
        for a, b in itertools.combinations(range(len(small)), 2)
    ]
    return found


def _copies(
    items: "Items", used: "np.ndarray", role: "np.ndarray", label: "np.ndarray"
) -> dict[str, Any]:
    """Images byte for byte alike, whose labels differ (the test's are not asked), and how many held-out ones are also elsewhere."""
    from report.inspect.measures import copies

    groups = copies(items.sha256, used)
    crossing: dict[str, int] = {}
    for group in groups:
        for one in ("test", "val"):
            for other in ("labelled", "unlabelled", "val"):
                if (
                    one != other
                    and any(role[row] == other for row in group)
                    and (count := sum(role[row] == one for row in group))
                ):
                    crossing[f"{one} in {other}"] = crossing.get(f"{one} in {other}", 0) + count
    torn = [
        group
        for group in groups
        if len({int(label[row]) for row in group if role[row] in ("labelled", "val")}) > 1
    ]
    leaks = [
        group
        for group in groups
        if len({role[row] for row in group} & {"val", "test"})
        and len({role[row] for row in group}) > 1
    ]
    return {
        "groups": len(groups),
        "images": sum(map(len, groups)),
        "crossing": crossing,
        "labels_differ": len(torn),
        "shown": [
            [{"row": row, "key": items.keys[row], "role": role[row]} for row in group[:4]]
            for group in (leaks + torn)[:SHOWN]
        ],
    }


def _near(near: "Near", items: "Items", role: "np.ndarray", held: int) -> dict[str, Any]:
    others = [
        (one, other, cosines)
        for one, other, cosines in near.pairs
        if not items.sha256[one] or items.sha256[one] != items.sha256[other]
    ]
    crossing: dict[str, set[int]] = {}
    for one, other, _ in others:
        crossing.setdefault(f"{role[one]} in {role[other]}", set()).add(one)
    return {
        "asked": near.asked,
        "held_out": held,
        "least": near.least_V,
        "pairs": len(others),
        "crossing": {name: len(rows) for name, rows in crossing.items()},
        "shown": [
            [{"row": row, "key": items.keys[row], "role": role[row]} for row in (one, other)]
            + [cosines]
            for one, other, cosines in others[:SHOWN]
        ],
    }


def _pair(
    one: dict[str, Any],
    two: dict[str, Any],
    alike: float,
    sample: int,
    seen: "Overlap",
    chance: float,
) -> dict[str, Any]:
    worth, words = verdict(one, two, alike, seen, chance)
    return {
        "views": [one["view"], two["view"]],
        "cka": alike,
        "sample": sample,
        "both_right": seen.both,
        "only_first": seen.first,
        "only_second": seen.second,
        "both_wrong": seen.none,
        "expected_both_wrong": seen.expected,
        "n": seen.n,
        "kappa": seen.kappa,
        "kappa_error": seen.error,
        "q": seen.q,
        "worth": worth,
        "verdict": words,
    }


def verdict(
    one: dict[str, Any], two: dict[str, Any], alike: float, seen: "Overlap", chance: float
) -> tuple[str, str]:
    """`no`, `doubtful` or `worth trying`, and why, in words. Rules of thumb: only a run says whether co-training helps."""
    a, b, n = one["view"], two["view"], seen.n
    spread = 2 * (max(chance * (1 - chance), 0.01) / n) ** 0.5
    if n < ENOUGH:
        return "doubtful", (
            f"{n:,} labelled validation images are too few to say: one of them is {100 / n:.0f} points. Each labelled image by the others, "
            f"{a} is right on {one['knn_left_out']:.1%} and {b} on {two['knn_left_out']:.1%}."
        )
    if poor := [view for view in (one, two) if view["knn_val"] <= chance + spread]:
        return "no", (
            f"{' and '.join(view['view'] for view in poor)} {'know' if len(poor) > 1 else 'knows'} next to nothing of these classes: the neighbours "
            f"are right on {' and '.join(format(view['knn_val'], '.1%') for view in poor)} of {n:,} validation images, the commonest class alone "
            f"would be on {chance:.1%}. What {'they' if len(poor) > 1 else 'it'} would teach is noise."
        )
    if alike > ALIKE or seen.kappa > SAME_ERRORS:
        return "no", (
            f"{a} and {b} are too alike: CKA {alike:.2f}, kappa of their errors {seen.kappa:.2f} (1 would be the very same errors). "
            "They have little to tell each other; late fusion would gain little too."
        )
    if min(seen.first, seen.second) < max(LITTLE * n, 5):
        weak, strong, few = (a, b, seen.first) if seen.first < seen.second else (b, a, seen.second)
        return "doubtful", (
            f"{weak} is right where {strong} is wrong on {few:,} of {n:,} validation images only, so there is little that it can teach "
            f"{strong}; the other way there is more to learn."
        )
    by_b, by_a = (
        seen.second / max(seen.second + seen.none, 1),
        seen.first / max(seen.first + seen.none, 1),
    )
    more = seen.none > seen.expected + 2 * seen.expected**0.5
    share = (
        f"more often than independent errors would ({seen.none:,} times, {seen.expected:.0f} expected)"
        if more
        else f"about as often as independent errors would ({seen.none:,} times, {seen.expected:.0f} expected)"
    )
    return "worth trying", (
        f"of 100 images that {a} gets wrong {b} gets {100 * by_b:.0f} right, and of 100 that {b} gets wrong {a} gets "
        f"{100 * by_a:.0f}; both are wrong {share}. Kappa of the errors {seen.kappa:.2f} ± {seen.error:.2f}, CKA {alike:.2f}."
    )


def summary(found: dict[str, Any]) -> str:
    """The findings as text."""
    rows = ", ".join(f"{count:,} {name}" for name, count in found["rows"].items())
    lines = [
        f"{found['dataset']}: {rows}; {found['classes']} classes"
        + f"; {found['unusable']:,} images unusable" * (found["unusable"] > 0),
        "",
        f"{'view':20}{'width':>6}{'constant':>10}{'weak':>6}{'effective':>11}{'norm':>9}{'odd norms':>11}{'kNN val':>9}{'left out':>10}",
    ]
    for view in found["views"]:
        norm = view["norm"]
        lines.append(
            f"{view['view']:20}{view['width']:6}{len(view['constant']):10}{len(view['weak']):6}{view['effective']:11.1f}{norm['median']:9.3g}"
            f"{norm['odd_count']:11,}{view['knn_val']:9.1%}{view['knn_left_out']:10.1%}"
        )
    lines += [
        f"kNN: {found['k']} neighbours among {found['bank']:,} labelled images, of {found['asked']:,} validation images (the commonest class: "
        f"{found['chance']:.1%}) and, left out in turn, of {found['views'][0]['left_out']:,} labelled ones",
        "",
    ]
    copies, near = found["copies"], found["near"]
    lines.append(
        f"exact copies: {copies['images']:,} images in {copies['groups']:,} groups; across the border: {_crossing(copies['crossing'])}"
        + f"; {copies['labels_differ']:,} groups with different labels"
        * (copies["labels_differ"] > 0)
    )
    lines.append(
        f"near-duplicates in all views (cosine at least {', '.join(f'{least:.4f}' for least in near['least'])}, {near['asked']:,} of "
        f"{near['held_out']:,} held-out images looked at): {_crossing(near['crossing'])}"
    )
    for group in (copies["shown"] + near["shown"])[:5]:
        lines.append(
            "  "
            + "   ".join(f"{one['role']}: {one['key']}" for one in group if isinstance(one, dict))
        )
    for pair in found["pairs"]:
        lines += ["", f"{' and '.join(pair['views'])}: {pair['worth']}", f"  {pair['verdict']}"]
    return "\n".join(lines)


def _crossing(found: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in found.items()) or "none"


def run(config: InspectConfig) -> dict[str, Any]:
    """Print the summary and write the page. Raises CoviewError."""
    from base import durable
    from cache_specs.lookup import find_dataset
    from report.html.page import page_file
    from report.inspect.page import page_of
    from train.data.reader import open_cache
    from train.data.splits import make_split

    views = [name.strip() for name in config.views.split(",") if name.strip()]
    if not views or not config.data:
        raise UsageError(
            f"{'DATA' if views else 'VIEWS'} is missing. Type: make inspect VIEWS={quoted(','.join(views) or 'clip,dinov2')} "
            f"DATA={quoted(config.data or 'photos/')}"
        )
    example = line_of("inspect", {"VIEWS": config.views, "DATA": config.data, "TO": "inspect.html"})
    to = page_file(config.to, example) if config.to else None
    data = os.path.expanduser(config.data)
    cache = open_cache(Path(config.cache), data, views)
    to = to or page_file(str(Path(config.runs) / f"inspect-{cache.items.name}.html"), example)
    split = make_split(cache.items, cache.ok, config.labels, config.seed)
    found = look(cache, split)
    words = {
        "VIEWS": ",".join(views),
        "DATA": config.data,
        "LABELS": config.labels,
        "CACHE": config.cache,
    }
    found["next"] = line_of(
        "train",
        {
            name: value
            for name, value in words.items()
            if (name, value) not in (("LABELS", "all"), ("CACHE", "cache"))
        },
    )
    durable.make_folder(to.parent.absolute())
    durable.write(
        to,
        page_of(found, cache, find_dataset(Path(config.cache), data), Path(config.root)).encode(),
        "inspect",
    )
    print(
        f"{summary(found)}\n\n{to}\nOnly a run says whether co-training helps: {found['next']}",
        flush=True,
    )
    return json.loads(json.dumps(found), parse_constant=lambda _: None) | {
        "page": str(to)
    }  # there is no NaN in JSON


def command(config: InspectConfig, found: dict[str, Any]) -> None:
    """make inspect."""
    found |= run(config)
