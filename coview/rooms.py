"""Our own packages, found first, whatever stands in the folder that one works in.

They have everyday names (base, train, predict, report, …), and so may a script beside a notebook.
`settle()` makes Python look for these names here before anywhere else; a module of such a name that
was imported before us cannot be taken back, and is refused by name.
"""

import sys
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

HOUSE = Path(__file__).absolute().parent.parent  # a checkout, or site-packages
ROOMS = (
    "base",
    "cache_specs",
    "exchange",
    "extract",
    "predict",
    "report",
    "train",
    "upkeep",
)


class OwnRooms(MetaPathFinder):
    """Finds our packages, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, [str(HOUSE)]) if fullname in ROOMS else None


def settle() -> None:
    """From now on these names mean our packages. Again, it does nothing."""
    if not any(isinstance(finder, OwnRooms) for finder in sys.meta_path):
        sys.meta_path.insert(0, OwnRooms())


def refuse_others(names: Iterable[str] = ROOMS) -> None:
    """Raise ImportError where a module of somebody else's has one of these names already."""
    for name in names:
        module = sys.modules.get(name)
        if module is None or _is_ours(name, module):
            continue
        place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "")
        raise ImportError(
            f"coview needs its own package {name!r}, but the module {name!r} of "
            f"{place or 'this program'} was imported before. Two modules of one name cannot stand "
            f"in one program: rename yours, for example to my_{name}, and start again",
            name=name,
            path=place or None,
        )


def _is_ours(name: str, module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve().parent == (HOUSE / name).resolve()
