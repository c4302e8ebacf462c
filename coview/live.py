"""make train … LIVE=clip MODE=lora: backbones learn first, and are frozen again; their new features
train like any others, as the authors of Meta Co-Training do it.

    make finetune VIEW=clip …         runs/RUN-clip/RUN-clip.toml, on the labels of this run
    make extract VIEW=runs/RUN-clip/RUN-clip.toml …
    make train VIEWS=RUN-clip,dinov2 …
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from base.errors import UsageError, did_you_mean, nearest
from train.config import TrainConfig

ALL = "all"


@dataclass(frozen=True)
class LiveSettings:
    GROUP: ClassVar[str] = "live"

    live: str = ""
    """views whose backbones are tuned on the labels first (make finetune), comma-separated, or
    all; they then judge nothing themselves"""
    mode: Literal["lora", "norms", "full"] = "lora"
    """what learns of these backbones, as for finetune"""


@dataclass(frozen=True)
class TrainingConfig(TrainConfig, LiveSettings):
    """Train probes on cached embeddings with few labels, by each METHOD and SEED; print a table."""

    def live_list(self) -> list[str]:
        """The views that are tuned. Raises UsageError."""
        views = self.view_list()
        asked = [name.strip() for name in self.live.split(",") if name.strip()]
        if asked == [ALL]:
            return views
        for name in asked:
            if name not in views:
                near = nearest(name, views)
                again = [near if one == name else one for one in asked]
                raise UsageError(
                    f"LIVE={self.live}: {name!r} is none of VIEWS{did_you_mean(name, views)}; "
                    "name some of these, or all",
                    instead={"LIVE": ",".join(again) if near else ALL},
                )
        return asked

    def tuned_name(self, view: str) -> str:
        """Of the view that becomes of this one."""
        return f"{self.run}-{Path(view).stem}"

    def check(self) -> None:
        """Raises UsageError."""
        super().check()
        if not self.live_list():
            return
        if not self.run:
            raise UsageError(
                "LIVE needs RUN: the tuned backbones are called after it", instead={"RUN": "live"}
            )
        if self.val == "cross":
            raise UsageError(
                "VAL=cross with LIVE: the labels that would judge are those that the backbones "
                "learn from. Leave VAL out, or set some apart (VAL=10%)",
                instead={"VAL": None},
            )
        if len(self.seed_list()) > 1:
            raise UsageError(
                f"SEEDS={self.seeds}: a backbone learns the labels of one seed; with LIVE train "
                "one, and type the command once for each",
                instead={"SEEDS": str(self.seed_list()[0])},
            )

    def frozen(self) -> TrainConfig:
        """The same, of views that are all frozen."""
        names = [field.name for field in dataclasses.fields(TrainConfig)]
        return TrainConfig(**{name: getattr(self, name) for name in names})
