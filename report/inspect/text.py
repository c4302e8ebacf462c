"""The findings of `make inspect` as text."""

from typing import Any

from base.console import counted
from report.inspect.findings import crossing_text, differ_text, told_tuned
from train.data.scarce import Unlearnt

SHOWN = 5  # groups of copies and near-duplicates
HEAD = (
    f"{'view':20}{'width':>6}{'constant':>10}{'weak':>6}{'effective':>11}{'norm':>9}"
    f"{'odd norms':>11}{'kNN':>9}"
)


def text_of(found: dict[str, Any]) -> str:
    rows = ", ".join(f"{count:,} {name}" for name, count in found["rows"].items())
    first = f"{found['dataset']}: {rows}; {found['classes']} classes"
    if found["unusable"]:
        first += f"; {counted(found['unusable'], 'image')} unusable"
    short = Unlearnt(**found["unlearnt"]).text(found["classes"])
    lines = [
        first,
        *filter(None, [short]),
        "",
        HEAD,
        *map(_line, found["views"]),
        f"kNN: what {found['k']} neighbours among {found['bank']:,} labelled images say of "
        f"{found['asked']:,} of them, each by the others (the commonest class: "
        f"{found['chance']:.1%})",
        *_equal(found["views"]),
        *told_tuned(found),
        "",
        *_leaks(found["copies"], found["near"]),
    ]
    for pair in found["pairs"]:
        lines += ["", f"{' and '.join(pair['views'])}: {pair['worth']}", f"  {pair['verdict']}"]
    return "\n".join(lines)


def _line(view: dict[str, Any]) -> str:
    norm = view["norm"]
    return (
        f"{view['view']:20}{view['width']:6}{len(view['constant']):10}{len(view['weak']):6}"
        f"{view['effective']:11.1f}{norm['median']:9.3g}{norm['odd_count']:11,}"
        f"{view['knn']:9.1%}"
    )


def _equal(views: list[dict[str, Any]]) -> list[str]:
    """A line for each view in which different images have equal embeddings."""
    return [f"{view['view']}: {view['equal']}" for view in views if view["equal"]]


def _leaks(copies: dict[str, Any], near: dict[str, Any]) -> list[str]:
    exact = (
        f"exact copies: {counted(copies['images'], 'image')} in "
        f"{counted(copies['groups'], 'group')}; across the border: "
        f"{crossing_text(copies['crossing'])}"
    )
    if copies["groups"]:
        exact += f"; groups with different labels: {differ_text(copies)}"
    least = ", ".join(f"{cosine:.4f}" for cosine in near["least"])
    close = (
        f"near-duplicates in all views (cosine at least {least}, {near['asked']:,} of "
        f"{near['held_out']:,} held-out images looked at): {crossing_text(near['crossing'])}"
    )
    lines, left = [], SHOWN
    for head, groups in ((exact, copies["shown"]), (close, [pair[:2] for pair in near["shown"]])):
        lines.append(head)
        for group in groups[:left]:
            lines.append("  " + "   ".join(f"{one['role']}: {one['key']}" for one in group))
        left = max(0, left - len(groups))
    return lines
