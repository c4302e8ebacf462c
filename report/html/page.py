"""The page kit: one static HTML file that opens offline. Everything is escaped unless it is Html;
no request of any kind leaves the page.

    scores = table([Column("view"), Column("top-1", True)], [["clip", 0.5]])
    page("demo", [Section("scores", "Scores", scores)])     -> the file's text

A policy in the page's head allows its own scripts by their sha256 and images from data: URIs alone,
so that even markup that got through would not run.
"""

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base.errors import UsageError

ASSETS = Path(__file__).parent / "assets"
VOID = ("img", "input", "meta", "link", "br")


class Html(str):
    """Markup that is safe to stand in the page as it is."""


def esc(value: object) -> Html:
    """Text as markup; Html stays what it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[object], between: str = "") -> Html:
    return Html(esc(between).join(esc(part) for part in parts))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """tag("p", "a < b", class_="lead", data_x=1) -> <p class="lead" data-x="1">a &lt; b</p>.

    None leaves an attribute out, True gives it no value.
    """
    given = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        given += f" {key.rstrip('_').replace('_', '-')}"
        if value is not True:
            given += f'="{esc(value)}"'
    if name in VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(children)}</{name}>")


def data(value: Any, /, **attributes: object) -> Html:
    """A value as inline JSON for the page's scripts; no text in it can end the element. NaN and
    infinities become null."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return tag("script", Html(text), type="application/json", **attributes)


def short(x: float | None, digits: int = 4) -> float | int | None:
    """Rounded to so many significant digits, so that a page of numbers stays small; None for NaN
    and infinities."""
    if x is None or not math.isfinite(x):
        return None
    rounded = float(f"{x:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


@dataclass(frozen=True)
class Column:
    """A table's column: its title, whether it holds numbers (right-aligned, sorted as such, largest
    first), and what it means, shown on hovering."""

    title: str
    number: bool = False
    about: str = ""


@dataclass(frozen=True)
class Cell:
    """What a table's cell shows and, where that is something else, the value by which it is
    sorted."""

    shown: object
    value: float | str | None = None


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[object]],
    *,
    name: str = "",
    filtered: str = "",
    sortable: bool = True,
    tall: bool = False,
    marked: Sequence[int] = (),
) -> Html:
    """A table; its columns sort by a click or Enter. A cell is text, a number, Html or Cell.

    filtered: the placeholder of a field that hides the rows without its text; tall: it scrolls in
    itself; marked: the numbers of rows that stand out.
    """
    head = [_head(column, sortable) for column in columns]
    body = [_row(row, columns, number in marked) for number, row in enumerate(rows)]
    whole = tag(
        "table",
        tag("thead", tag("tr", *head)),
        tag("tbody", *body),
        class_="sortable" if sortable else None,
        id=name or None,
    )
    if tall:
        whole = tag("div", whole, class_="scroll tall", tabindex="0")
    else:
        whole = tag("div", whole, class_="scroll")
    return tag("div", _filter(filtered) if filtered else "", whole, class_="tabled")


def _head(column: Column, sortable: bool) -> Html:
    title: object = column.title
    if sortable and column.title:
        title = tag("button", column.title, type="button")
    kind = "number" if column.number else None
    return tag("th", title, scope="col", class_=kind, title=column.about or None)


def _row(row: Sequence[object], columns: Sequence[Column], marked: bool) -> Html:
    cells = []
    for place, (cell, column) in enumerate(zip(row, columns, strict=True)):
        cells.append(_cell(cell, column, first=place == 0))
    return tag("tr", *cells, class_="marked" if marked else None)


def _filter(placeholder: str) -> Html:
    return tag(
        "p",
        tag(
            "input",
            type="search",
            placeholder=placeholder,
            aria_label=placeholder,
            class_="filter",
        ),
        tag("span", class_="count", aria_live="polite"),
        class_="controls",
    )


def _cell(given: object, column: Column, first: bool) -> Html:
    cell = given if isinstance(given, Cell) else _plain(given)
    value = cell.value
    if isinstance(value, int | float):
        value = short(value, 6)
    long = type(cell.shown) is str and len(cell.shown) > 16
    return tag(
        "th" if first else "td",
        "" if cell.shown is None else cell.shown,
        scope="row" if first else None,
        data_v=value,
        class_="number" if column.number else None,
        title=cell.shown if long else None,
    )


def _plain(value: object) -> Cell:
    """What is no Cell yet: numbers are sorted as such."""
    shown = f"{value:,.4g}" if isinstance(value, float) else value
    return Cell(shown, value if isinstance(value, int | float) else None)


def note(*text: object, warning: bool = False) -> Html:
    """A line below or above a figure."""
    return tag("p", *text, class_="note warning" if warning else "note")


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """A list of what is what."""
    lines = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs]
    return tag("dl", *lines, class_="facts")


def command(text: str) -> Html:
    """A command to type, with a button that copies it."""
    copy = tag("button", "copy", type="button", class_="copy")
    return tag("div", tag("code", text), copy, class_="command")


def gallery(cards: Sequence["Card"], *, empty: str = "none", **attributes: object) -> Html:
    """Images side by side, each with lines of text. attributes: of the list, such as id."""
    if not cards:
        return note(empty)
    return tag("ul", *[card.html() for card in cards], class_="gallery", **attributes)


@dataclass(frozen=True)
class Card:
    """An image of a gallery: its data: URI and size ('' where there is none), its key, lines below
    it, and values that scripts filter by."""

    key: str
    uri: str = ""
    width: int = 0
    height: int = 0
    lines: Sequence[object] = ()
    values: tuple[tuple[str, object], ...] = ()

    def html(self) -> Html:
        text = [tag("span", line, class_="line") for line in self.lines]
        key = tag("span", self.key, class_="key", title=self.key)
        figure = tag("figure", self._image(), tag("figcaption", *text, key))
        values = {f"data_{name}": value for name, value in self.values}
        return tag("li", figure, tabindex="0", **values)

    def _image(self) -> Html:
        if not self.uri:
            return tag("span", "no picture", class_="blank")
        return tag(
            "img",
            src=self.uri,
            alt=self.key,
            width=self.width,
            height=self.height,
            decoding="async",
            class_="coarse" if max(self.width, self.height) < 48 else None,
        )


def grid(*parts: object) -> Html:
    """Figures side by side where there is room."""
    return tag("div", *parts, class_="grid")


@dataclass(frozen=True)
class Section:
    """A part of the page, found in its navigation: id, title, what to know before reading it, and
    what it holds."""

    name: str
    title: str
    body: Html
    lead: object = ""


def page_file(to: str, example: str) -> Path:
    """TO=. Raises UsageError for what is no .html file, and for one that is there and is not a page
    of ours."""
    path = Path(to).expanduser()
    if path.suffix != ".html":
        raise UsageError(f"TO={to}: the page is an .html file. Type: {example}")
    if path.is_dir() or (path.is_file() and b'content="coview"' not in path.read_bytes()[:4096]):
        raise UsageError(
            f"TO={to} is there already, and is no page that was made here; name another file. "
            f"Type: {example}"
        )
    return path


def page(
    title: str,
    sections: Sequence[Section],
    *,
    kind: str = "report",
    intro: object = "",
    scripts: Sequence[str] = (),
) -> str:
    """The whole file. intro stands below the title; scripts are further files of assets/ beside
    page.js."""
    code = [_asset(name) for name in ("page.js", "charts.js", *scripts)]
    parts = [_part(section) for section in sections]
    body = tag(
        "body",
        tag("a", "to the content", href="#top", class_="skip"),
        _top(title, kind, sections),
        tag("main", tag("h1", title), intro, *parts, id="top"),
        tag("div", id="tip", role="tooltip", hidden=True),
        *[tag("script", Html(text)) for text in code],
    )
    whole = tag("html", _meta(f"{title} · {kind}", code), body, lang="en")
    return f"<!doctype html>\n{whole}\n"


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _digest(code: str) -> str:
    """A script as a Content-Security-Policy names it."""
    sha256 = hashlib.sha256(code.encode()).digest()
    return f"'sha256-{base64.b64encode(sha256).decode()}'"


def _meta(title: str, code: Sequence[str]) -> Html:
    """The file's head. Of scripts only `code` may run."""
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {' '.join(map(_digest, code))}; base-uri 'none'; form-action 'none'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content="coview"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(_asset("page.css"))),
    )


def _top(title: str, kind: str, sections: Sequence[Section]) -> Html:
    """The bar that stays in sight: where one is, and where one can go."""
    links = [tag("a", section.title, href=f"#{section.name}") for section in sections]
    theme = "light or dark"
    bar = tag(
        "div",
        tag("span", kind, class_="kind"),
        tag("a", title, href="#top", class_="name"),
        tag("nav", *links, aria_label="sections"),
        tag("button", "◐", type="button", id="theme", title=theme, aria_label=theme),
        class_="bar",
    )
    return tag("header", bar, class_="top")


def _part(section: Section) -> Html:
    lead = tag("p", section.lead, class_="lead") if section.lead else ""
    return tag("section", tag("h2", section.title), lead, section.body, id=section.name)
