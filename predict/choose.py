"""Which method of a run METHOD means. Knows no torch: a typing error is answered before any model
is loaded."""

import logging
from collections.abc import Sequence
from typing import Any

from base.errors import UsageError, did_you_mean, nearest
from train.methods import in_order, with_model
from train.run.summary import selection_score

log = logging.getLogger(f"coview.{__name__}")
BEST = "mct-graph"  # the method to take, where a run has it


def choose_method(summary: dict[str, Any], method: str) -> str:
    """The method that is asked for, or the one that a user should take. Raises UsageError naming
    those that keep a model."""
    trained = in_order(summary["methods"])
    if method and method not in trained:
        raise UsageError(
            f"METHOD={method}: the run did not train it{did_you_mean(method, trained)}",
            instead={"METHOD": nearest(method, trained) or None},
        )
    scores = _of_kept(summary, trained)
    best = _best(scores)
    asked = method or best
    if asked not in scores:
        _refuse_method(method or ",".join(trained), scores, best)
    if not method:
        _tell_tied(best, scores)
    return asked


def _of_kept(summary: dict[str, Any], trained: Sequence[str]) -> dict[str, float]:
    """The score on validation of each method that keeps a model."""
    return {name: selection_score(summary, name) for name in with_model(trained)}


def _refuse_method(asked: str, scores: dict[str, float], best: str) -> None:
    if scores:
        advice = f"Those of this run that keep one: {', '.join(scores)}"
    else:
        advice = "None of this run does: train one under another RUN, with "
        advice += "METHOD=mct-graph or METHOD=supervised"
    raise UsageError(
        f"METHOD={asked} keeps no model, only its scores on the run's own validation and test "
        f"images. {advice}",
        instead={"METHOD": best} if best else None,
    )


def _best(scores: dict[str, float]) -> str:
    """'' where no method keeps a model."""
    if BEST in scores:
        return BEST
    return max(scores, key=scores.__getitem__, default="")


def _tell_tied(best: str, scores: dict[str, float]) -> None:
    """That other methods would be as good a choice."""
    tied = [name for name in scores if name != best and scores[name] == scores[best]]
    if best == BEST or not tied:
        return
    one = len(tied) == 1
    log.info(
        f"{best} is taken; on validation {', '.join(tied)} {'is' if one else 'are'} as good: "
        f"METHOD={tied[0]} takes {'that' if one else 'the first'}"
    )
