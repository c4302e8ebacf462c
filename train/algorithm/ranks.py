"""Which process of a run this is, and which views it has: arithmetic, and what torchrun says in the
environment. Knows no torch."""

import os

from base.errors import UsageError

BOARD = "COVIEW_RANK_BOARD"  # in the environment of a rank that `launch` has started


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def my_rank() -> int:
    """This process's rank, known from the environment before any group is made."""
    return int(os.environ["RANK"]) if under_torchrun() else 0


def ranks_of(gpus: int, views: int) -> int:
    """How many processes there are: as many as torchrun started, that of `launch` or somebody's
    own, who need not say --gpus; else `gpus`. Raises UsageError."""
    ranks = int(os.environ["WORLD_SIZE"]) if under_torchrun() else gpus
    if gpus not in (1, ranks):
        raise UsageError(f"--gpus {gpus}, but torchrun started {ranks} processes; leave --gpus out")
    refuse_ranks(ranks, views)
    return ranks


def refuse_ranks(ranks: int, views: int) -> None:
    """Raise UsageError unless every view gets a rank (a rank may have several), or every view
    equally many."""
    if ranks < 1 or (ranks > views and ranks % views):
        fitting = max(1, ranks // views * views)
        are = "views are" if views > 1 else "view is"
        raise UsageError(
            f"GPUS={ranks}, but {views} {are} dealt out to at most {views}, or to a multiple of "
            f"{views}, which also deals out the rows of each batch; use GPUS={fitting}",
            instead={"GPUS": str(fitting)},
        )


def views_of(rank: int, ranks: int, views: list[str]) -> list[str]:
    """Which views a rank has, as GroupPeers deals them out: with more ranks than views each view
    has replicas."""
    across = min(ranks, len(views))
    return views[rank % across :: across]
