"""The flags of a command: its settings, parsed, and shown by --help in groups.

Settings are one flat frozen dataclass. Where it is made of others by inheritance, and has no fields
of its own, each base that has a GROUP has its fields under that title in --help; flags, names and
values are flat all the same.
"""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any


def parse(kind: type, prog: str, argv: Sequence[str]) -> Any:
    """The settings. Ends the process with 2, after saying what is wrong with a flag."""
    import tyro  # noqa: PLC0415  takes a twentieth of a second, and only flags need it

    if not any("GROUP" in vars(one) for one in kind.__mro__):
        return tyro.cli(kind, prog=prog, description=kind.__doc__, args=argv)
    parts = []
    for part in reversed(kind.__mro__):
        if vars(part).get("__annotations__"):
            title = tyro.conf.arg(name=vars(part).get("GROUP", ""))
            shown = typing.Annotated[part, tyro.conf.OmitArgPrefixes, title]
            parts.append((part.__name__, shown, dataclasses.field(default=part())))
    form = dataclasses.make_dataclass("Form", parts)
    found = tyro.cli(form, prog=prog, description=kind.__doc__, args=argv)
    values: dict[str, Any] = {}
    for part in vars(found).values():
        values |= vars(part)
    return kind(**values)
