"""Coview from Python: finished views as NumPy arrays, and Meta Co-Training as a scikit-learn
classifier.

    from coview import MetaCoTrainingClassifier, ProbeClassifier, open_items, open_view

What is heavy (torch, scikit-learn) is imported with the class that needs it: `open_view` answers at
once. Nothing is printed; who wants to know what happens asks logging for "coview".

Files called train.py, report.py, … in the folder that one works in do no harm (coview/rooms.py).
"""

import os
from importlib import import_module
from typing import Any

from coview.rooms import refuse_others, settle

settle()
NEEDED = ("base", "cache_specs", "predict", "train")  # by what stands below

_HOMES = {
    "MetaCoTrainingClassifier": "coview.classifier",
    "ProbeClassifier": "coview.classifier",
    "open_items": "coview.arrays",
    "open_view": "coview.arrays",
}
__all__ = ["MetaCoTrainingClassifier", "ProbeClassifier", "open_items", "open_view"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(
            f"module 'coview' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    refuse_others(NEEDED)
    # Before torch is there: its idle threads give way instead of spinning on a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
