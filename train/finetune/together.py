"""Live backbones that teach each other: the very step of train/algorithm/cotrain.py, from pixels.

make finetune VIEWS=clip,dinov2 DATA=photos/ LABELS=4

Of each view what learns and its head are one state (E = 1); teachers are the other views, the
labelled and the unlabelled pictures are augmented, and everything else is as on cached embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from train.algorithm.batches import Passes, uniforms
from train.algorithm.cotrain import Batch, StepRule, mct_step
from train.algorithm.optimise import (
    Adam,
    State,
    average,
    fresh,
    norm,
    per_experiment,
)
from train.algorithm.peers import Peers, part_of
from train.algorithm.probe import Params
from train.config import StepSettings
from train.data.feed import DRAW, PURPOSES
from train.finetune.config import FinetuneConfig
from train.finetune.live import BODY, Live, forward_of, params_of
from train.finetune.pictures import Pictures
from train.finetune.tune import warm_and_cool

BETAS, EPS = (0.9, 0.999), 1e-8
KINDS = {"value": "flat_EP", "mean": "mean_EP", "square": "square_EP", "average": "average_EP"}


@dataclass
class Together:
    """This process's views, and by `peers` those of others, which learn together. label_N: labels;
    read at rows_L alone."""

    lives: list[Live]
    pictures: list[Pictures]
    label_N: np.ndarray
    rows_L: Passes
    rows_U: Passes
    config: FinetuneConfig
    device: torch.device
    peers: Peers
    dealt: bool = False  # views that teach each other are whole, each in a process
    step: int = 0
    states: list[State] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.states = [begun(live, self.config) for live in self.lives]

    def batch(self, step: int) -> tuple[list[Batch], Tensor]:
        """What one step learns from, and the uniforms that decide the labels."""
        config, seed = self.config, self.config.seed()
        places_2B = np.arange(2 * config.batch).reshape(2, -1)
        rows_2B = np.stack([rows(step, config.batch) for rows in (self.rows_U, self.rows_L)])
        places_2b, rows_2b = (part_of(whole, self.peers, 1) for whole in (places_2B, rows_2B))
        y_EL = torch.from_numpy(self.label_N[rows_2b[1]]).long()[None]
        found, draws = [], []
        for shown in self.pictures:
            pixels_U, pixels_L = shown(rows_2b.ravel(), places_2b.ravel(), seed, step).chunk(2)
            found.append(Batch(pixels_U[None], pixels_L[None], y_EL))
        for view in range(self.peers.count):
            drawn = uniforms(seed, step, view * PURPOSES + DRAW, config.batch)
            draws.append(part_of(drawn, self.peers))
        return found, torch.from_numpy(np.stack(draws))[:, None]

    def learn(self, batch: tuple[list[Batch], Tensor]) -> float:
        """One step; returns the mean loss of this process's labelled pictures, in nats."""
        factor, config = warm_and_cool(self.step, self.config), self.config

        def update(view: State, g_EP: Tensor) -> State:
            return adamw(view, g_EP, factor, config.clip)

        rule = StepRule(
            Adam(update=update), temperature=StepSettings.temperature, chunk=config.chunk
        )
        batches, draws_VEU = self._moved(*batch)
        states, told = mct_step(self.states, batches, draws_VEU, self.peers, rule)
        self.states = [average(state, config.ema) for state in states]
        self.step += 1
        return float(torch.stack(told["labelled"]).mean())

    def _moved(self, batches: Sequence[Batch], draws: Tensor) -> tuple[list[Batch], Tensor]:
        """To the device."""
        found = []
        for b in batches:
            pixels_U, pixels_L = b.emb_EUD.to(self.device), b.emb_ELD.to(self.device)
            found.append(Batch(pixels_U, pixels_L, b.y_EL.to(self.device)))
        return found, draws.to(self.device)

    def show(self) -> None:
        """Write what was learnt, its moving average where there is one, into the models."""
        with torch.no_grad():
            for live, state in zip(self.lives, self.states, strict=True):
                own = dict(live.body.named_parameters())
                for name, value_E in state.shown.items():
                    if BODY in name:
                        own[name.removeprefix(BODY)].copy_(value_E[0])
                live.head.weight.copy_(state.shown["w0"][0].T)
                live.head.bias.copy_(state.shown["b0"][0, 0])

    def tensors(self) -> dict[str, Tensor]:
        """All that a step needs besides its number."""
        found = {}
        for view, state in enumerate(self.states):
            found[f"{view}.steps"] = torch.tensor(state.steps)
            for kind, name in KINDS.items():
                if (flat_EP := getattr(state, name)) is not None:
                    found[f"{view}.{kind}"] = flat_EP.detach().cpu().clone()
        return found

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Go on after so many steps."""
        self.step = step
        for view, state in enumerate(self.states):
            own = {kind: tensors.get(f"{view}.{kind}") for kind in KINDS}
            there = {kind: one.to(self.device) for kind, one in own.items() if one is not None}
            self.states[view] = replace(
                state,
                flat_EP=there["value"],
                mean_EP=there["mean"],
                square_EP=there["square"],
                average_EP=there.get("average"),
                steps=int(tensors[f"{view}.steps"]),
            )


def begun(live: Live, config: FinetuneConfig) -> State:
    """Before its first step. memory: of each parameter its learning rate, and its weight decay."""
    probe = {"w0": live.head.weight.detach().T[None], "b0": live.head.bias.detach()[None, None]}
    params = params_of(live.body, {name: value.clone() for name, value in probe.items()})
    state = fresh(params, forward_of(live.body))
    rates, decays = {}, {}
    by_id = {id(one.parameter): one for one in live.learnt}
    for name, parameter in live.body.named_parameters():
        if parameter.requires_grad:
            one = by_id[id(parameter)]
            rates[f"{BODY}{name}"] = config.lr * one.scale
            decays[f"{BODY}{name}"] = config.weight_decay * one.decays
    rates |= {"w0": config.head_lr, "b0": config.head_lr}
    decays |= {"w0": config.weight_decay, "b0": 0.0}
    flat = state.layout.flat
    memory = {"rate": flat(_filled(params, rates)), "decay": flat(_filled(params, decays))}
    return replace(state, memory=memory)


def _filled(params: Params, values: dict[str, float]) -> Params:
    return {name: torch.full_like(value, values[name]) for name, value in params.items()}


def adamw(view: State, g_EP: Tensor, factor: float, clip: float) -> State:
    """One step of AdamW (Loshchilov & Hutter 2019) on the clipped gradient, each parameter at its
    own rate, times `factor`."""
    g = g_EP * per_experiment((clip / (norm(g_EP) + 1e-6)).clamp_max(1.0), g_EP)
    steps, (first, second) = view.steps + 1, BETAS
    mean = torch.lerp(view.mean_EP, g, 1 - first)
    square = torch.lerp(view.square_EP, g * g, 1 - second)
    deviation = (square / (1 - second**steps)).sqrt_().add_(EPS)
    step = mean / (1 - first**steps) / deviation + view.memory["decay"] * view.flat_EP
    flat = view.flat_EP - factor * view.memory["rate"] * step
    return replace(view, flat_EP=flat, mean_EP=mean, square_EP=square, steps=steps)
