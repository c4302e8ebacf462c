"""Meta co-training with graphs: what a graph says of a row, the weights of the experts, and the
step whose teachers know both."""

import dataclasses
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Made
from safetensors.torch import load_file
from scipy.optimize import minimize
from scipy.stats import entropy
from steps import PLAIN, RATE, flat, numeric_gradient, setup, unflat
from torch import Tensor
from torch.nn.functional import log_softmax
from training import config, flags, outcome, spread, train_on_ranks

from base.errors import DataQualityError
from train.algorithm.cotrain import hand_out, mct_step, teacher
from train.algorithm.evaluate import (
    SHRINK,
    certainty,
    fit_pool,
    pooled,
    shares_of,
    shares_of_graphs,
    usual_pool,
)
from train.algorithm.neighbours import CPU
from train.algorithm.optimise import ce
from train.algorithm.peers import LocalPeers
from train.algorithm.probe import Params, forward
from train.command import run
from train.data import graph as propagation
from train.data.feed import Feeder
from train.data.folds import trainings, with_folds
from train.data.graph import (
    ALPHAS,
    LEAST,
    NEIGHBOURS,
    Features,
    Graph,
    Near,
    in_steps,
    links_of,
    nearest_on,
    nodes_of,
    shares_beside,
    solve,
    standardise,
    statistics,
    unit,
)
from train.data.splits import Split
from train.jobs import experiments, graphs_of, make_jobs
from train.run.checkpoint import load_checkpoint
from train.run.session import read
from train.selection import without

NOBODY = torch.empty(0, 2, dtype=torch.float64)  # no class names
USUAL = usual_pool(
    2, 1e9, NOBODY, torch.full((2, 2), 0.5, dtype=torch.float64)
)  # (4, 2), columns alike


def rows_of(n: int) -> tuple[np.ndarray, np.ndarray, Split, Split]:
    """(n, 6) embeddings of 3 blobs, labels, and two experiments' splits of the same rows."""
    chance = np.random.default_rng(0)
    label = np.arange(n) % 3
    emb = (chance.normal(size=(n, 6)) + 4 * np.eye(3, 6)[label]).astype(np.float16)
    train, val, test = np.arange(n - 40), np.arange(n - 40, n - 20), np.arange(n - 20, n)
    one, two = (
        Split(known, np.setdiff1d(train, known), val, test)
        for known in (np.array([0, 1, 2]), np.array([30, 31, 32, 33, 34, 35]))
    )
    return emb, label, one, two


@pytest.mark.parametrize("exact", [1000, 50])
def test_a_graph_says_what_the_labels_of_each_experiment_spread_to(
    monkeypatch: pytest.MonkeyPatch, exact: int
) -> None:
    """All training rows are nodes, whose neighbours are found by comparing all, or by an index."""
    monkeypatch.setattr(propagation, "EXACT", exact)
    emb, label, *splits = rows_of(200)
    graph, scale = (
        Graph([emb], label, splits, 3, torch.device("cpu")),
        statistics(emb, np.arange(160)),
    )
    found = graph(np.array([[5, 0], [7, 31]]))
    for e, split in enumerate(splits):
        nodes = nodes_of(split)
        assert nodes.tolist() == list(range(160))
        x, queries, asked = (
            unit(standardise(emb, rows, *scale))
            for rows in (nodes, split.val, np.array([[5, 0], [7, 31]][e]))
        )
        order, near = (((rows[:, None] - x) ** 2).sum(-1).argsort(1) for rows in (queries, asked))
        y, best = np.where(np.isin(nodes, split.labelled), label[nodes], -1), (-1.0, 0.0)
        for k in NEIGHBOURS:
            for alpha, p in spread(x, y, 3, k, ALPHAS).items():
                q = np.maximum(p[order[:, :k]].mean(1), LEAST)
                score = (
                    (q.argmax(1) == label[split.val]).mean(),
                    np.log(q[np.arange(20), label[split.val]]).mean(),
                )
                if score > best:
                    best, rest, own, chosen = (score, q, p[near[:, 0]], (k, alpha))
        np.testing.assert_allclose(found[e].exp(), np.maximum(own, LEAST), rtol=1e-5)
        np.testing.assert_allclose(graph(split.val)[e].exp(), rest, rtol=1e-5)
        assert chosen == (graph.chosen["neighbours"][e], graph.chosen["alpha"][e])
    assert (
        graph(splits[0].test).shape == (2, 20, 3)
        and (graph(np.arange(200)).exp().argmax(-1) == torch.from_numpy(label)).double().mean()
        > 0.8
    )


def test_hidden_labels_and_those_of_queries_play_no_part() -> None:
    emb, label, one, _ = rows_of(200)
    other = label.copy()
    other[np.r_[3:160, 180:200]] = np.random.default_rng(1).integers(
        3, size=177
    )  # all but the labelled and the validation rows
    same = [Graph([emb], y, [one], 3, torch.device("cpu"))(np.arange(200)) for y in (label, other)]
    assert torch.equal(*same)


def test_an_experiments_graph_is_what_it_would_be_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a row's answer does not depend on who is asked with it."""
    emb, label, one, two = rows_of(200)
    graph = Graph([emb, emb[:, :3]], label, [one, two], 3, torch.device("cpu"))
    everything = graph(np.arange(200))
    alone = [
        Graph([emb, emb[:, :3]], label, [split], 3, torch.device("cpu"))(np.arange(200))[0]
        for split in (one, two)
    ]
    assert torch.equal(everything, torch.stack(alone))
    mixed = np.array([0, 1, 7, 190, 30, 3])  # nodes and others
    assert torch.equal(graph(mixed), everything[:, mixed]) and torch.equal(
        graph(mixed[:2]), everything[:, mixed[:2]]
    )
    monkeypatch.setattr(propagation, "CHUNK", 3)
    assert torch.equal(graph(mixed), everything[:, mixed])


def test_of_a_large_set_alpha_alone_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propagation, "LARGE", 10)
    emb, label, one, two = rows_of(200)
    assert propagation.grid_of(160, 3) == [(7, alpha) for alpha in ALPHAS]
    usual = Graph([emb], label, [one, two], 3, torch.device("cpu")).chosen
    assert usual["neighbours"].tolist() == [7, 7]


def test_rows_that_are_not_finite_are_refused_by_the_view() -> None:
    emb, label, one, _ = rows_of(200)
    bad = emb.copy()
    bad[190, 2] = np.inf
    with pytest.raises(DataQualityError, match="view 2 of 2 has embeddings that are not finite"):
        Graph([emb, bad], label, [one], 3, torch.device("cpu"))


def test_links_are_the_cubes_of_cosines_both_ways() -> None:
    """By dense products in float64; of rows that point away from all others they are faint."""
    x = unit(np.random.default_rng(3).normal([3, 0, 0, 0, 0, 0], size=(60, 6)))
    x[0] = [-1, 0, 0, 0, 0, 0]
    cosine = x @ x.T - 2 * np.eye(60)
    A = np.zeros((60, 60))
    for i, near in enumerate(np.argsort(-cosine, 1)[:, :5]):
        A[i, near] = np.maximum(cosine[i, near], 0.01) ** 3
    W = A + A.T
    expected = W / np.sqrt(np.outer(W.sum(0), W.sum(0)))
    found = links_of(nearest_on(torch.device("cpu"), x.astype(np.float32), None, 5)).toarray()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert 0 < W[0].max() < 1e-5 and found[0].max() > 1e-4


def test_a_far_row_is_as_exact_for_its_size_as_others() -> None:
    """A chain of 30 rows with a label at each end, against a dense solve in float64: what the far
    end says of a row is 1e-8 of a label."""
    row = np.array([[max(i - 1, 0) or 1, min(i + 1, 28)] for i in range(30)])
    row[0], row[29] = [1, 2], [28, 27]
    links, y = links_of(Near(np.linspace(0.2, 1, 60).reshape(30, 2), row)), np.full(30, -1)
    y[0], y[29] = 0, 1
    dense = links.toarray().astype(np.float64)
    assert np.allclose(dense, dense.T) and np.abs(np.linalg.eigvalsh(dense)).max() < 1 + 1e-6
    for alpha, (found, _) in zip(ALPHAS, solve(links, y, 2, ALPHAS), strict=True):
        F = np.linalg.solve(np.eye(30) - alpha * dense, y[:, None] == np.arange(2))
        truth = F / F.sum(1, keepdims=True)
        seen = truth[:, 1] > 1e-8
        np.testing.assert_allclose(found[seen], truth[seen], rtol=2e-3, atol=1e-6)


def experts(seed: int = 0, n: int = 300) -> tuple[Tensor, Tensor]:
    """Scores (4, 2, n, 5) of a good expert, a worse one, the good one again in other units, and one
    that knows nothing."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(5, (n,), generator=generator)
    truth = torch.nn.functional.one_hot(y, 5).double()
    good, worse, none = (
        strength * truth + torch.randn(2, n, 5, generator=generator, dtype=torch.float64)
        for strength in (2.0, 1.0, 0.0)
    )
    return torch.stack([good, worse, good * 3 + 7, none]), y


def test_the_weights_of_the_pool_are_those_of_the_least_loss() -> None:
    """scipy's bounded L-BFGS as the oracle, an experiment at a time."""
    scores, y = experts()
    found = fit_pool(scores, y, torch.full((4, 2), 0.25), USUAL)
    for e in range(2):
        log_p = log_softmax(scores[:, e], -1)

        def loss(w: np.ndarray, log_p: Tensor = log_p) -> float:
            z = torch.einsum("m,mnc->nc", torch.from_numpy(w), log_p)
            held = SHRINK / len(y) / 2 * float(((w - USUAL[:, 0].numpy()) ** 2).sum())
            return float(torch.nn.functional.cross_entropy(z, y)) + held

        oracle = minimize(loss, np.full(4, 0.25), bounds=[(0, None)] * 4, tol=1e-12)
        assert loss(found[:, e].numpy()) <= oracle.fun + 1e-7
        np.testing.assert_allclose(found[:, e], oracle.x, atol=2e-3)
        torch.testing.assert_close(
            fit_pool(scores[:, e : e + 1], y, torch.full((4, 1), 0.25), USUAL[:, :1])[:, 0],
            found[:, e],
            rtol=1e-9,
            atol=1e-12,
        )
    assert (found >= 0).all() and (found[3] < 0.2).all()
    again = fit_pool(scores, y, torch.zeros(4, 2), USUAL)  # from nothing, and from far away
    torch.testing.assert_close(again, found, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        fit_pool(scores, y, torch.full((4, 2), 20.0), USUAL), found, rtol=1e-3, atol=1e-3
    )


def test_who_is_sure_weighs_more_where_nobody_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """scipy's entropy as the oracle; of a large graph in pieces."""
    p_nC = np.random.default_rng(0).dirichlet(np.full(4, 0.3), 1000).astype(np.float32)
    expected = 1 - entropy(p_nC.astype(np.float64), axis=1).mean() / np.log(4)
    assert certainty(p_nC) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr("train.algorithm.evaluate.ROWS", 64)
    assert certainty(p_nC) == pytest.approx(expected, abs=1e-6)
    assert certainty(np.full((9, 3), 1 / 3, np.float32)) == pytest.approx(0, abs=1e-6)
    assert certainty(np.eye(3, dtype=np.float32)) == 1 == certainty(np.ones((5, 1), np.float32))
    assert shares_of([0.2, 0.4, 0]).tolist() == pytest.approx([0.2, 0.8, 0])
    assert shares_of([0, 0]).tolist() == [0.5, 0.5] and shares_of([0.3]).tolist() == [1]


def test_a_graph_of_noise_is_less_sure() -> None:
    """Whatever neighbours and alpha are chosen, graphs are compared with the usual ones."""
    emb, label, one, two = rows_of(200)
    noise = np.random.default_rng(5).normal(size=emb.shape).astype(np.float16)
    good, bad = (Graph([x], label, [one, two], 3, CPU) for x in (emb, noise))
    for e, split in enumerate((one, two)):
        assert good.solve(e).sure > 1.5 * bad.solve(e).sure
        alone = dataclasses.replace(split, val=split.val[:0])
        assert Graph([emb], label, [alone], 3, CPU).solve(0).sure == good.solve(e).sure


def test_probes_weigh_the_more_the_more_labels_taught_them() -> None:
    shares = torch.tensor([[0.25, 0.5], [0.75, 0.5]], dtype=torch.float64)
    for labels, of_probes in ((0.5, 0), (1, 0), (2, 0.125), (4, 0.1875)):
        found = usual_pool(2, labels, NOBODY, shares)
        assert (found[:2] == of_probes).all() and torch.equal(found[2:], 1.5 * shares)


def test_a_faultless_expert_gets_a_finite_weight_and_a_large_split_is_thinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    y = torch.arange(4000) % 5
    sure = 30 * torch.nn.functional.one_hot(y, 5).double().expand(1, 1, -1, -1)
    assert 0 < fit_pool(sure, y, torch.ones(1, 1), torch.ones(1, 1)).item() < 100
    monkeypatch.setattr("train.algorithm.evaluate.POOL", 1000)
    scores, y = experts(n=4000)
    assert torch.equal(
        fit_pool(scores, y, torch.ones(4, 2), USUAL),
        fit_pool(scores[:, :, ::4], y[::4], torch.ones(4, 2), USUAL),
    )


@pytest.mark.parametrize("views", [2, 3])
def test_a_step_with_trust_and_anchor_is_the_derivative_of_its_teachers(views: int) -> None:
    """As test_step_equals_the_paper_by_finite_differences, with teachers that weigh the views and
    know an anchor."""
    states, batches, draws = setup(views)
    chance = torch.Generator().manual_seed(7)
    anchor = log_softmax(torch.randn(views, 2, 7, 4, generator=chance, dtype=torch.float64), -1)
    trust = torch.rand(views, views, 2, generator=chance, dtype=torch.float64) + 0.2
    batches = [dataclasses.replace(b, anchor_VEUC=list(anchor)) for b in batches]
    method = dataclasses.replace(PLAIN, trust=trust, temperature=0.5)
    done, told = mct_step(states, batches, draws, LocalPeers(views), method)
    with torch.no_grad():
        at = [state.params for state in states]
        z = [forward(p, b.emb_EUD, b.keep_U) for p, b in zip(at, batches, strict=True)]

        def pool(own: list[Tensor], v: int) -> Tensor:
            return (
                sum(
                    trust[v, w][:, None, None] * log_softmax(own[w], -1)
                    for w in range(views)
                    if w != v
                )
                + anchor[v]
            )

        y = [hand_out(pool(z, v), draws[v], 0.5) for v in range(views)]
        g = [
            numeric_gradient(
                lambda p, v=v: ce(forward(p, batches[v].emb_EUD, batches[v].keep_U), y[v]), at[v]
            )
            for v in range(views)
        ]
        new = [unflat(flat(at[v]) - RATE * g[v], at[v]) for v in range(views)]
        l = [
            numeric_gradient(
                lambda p, v=v: ce(
                    forward(p, batches[v].emb_ELD, batches[v].keep_L), batches[v].y_EL
                ),
                new[v],
            )
            for v in range(views)
        ]
        h = [(l[v] * g[v]).sum(1) for v in range(views)]

        def taught(p: Params, w: int) -> Tensor:
            own = [
                forward(p, batches[w].emb_EUD, batches[w].keep_U) if u == w else z[u]
                for u in range(views)
            ]
            return sum(h[v] * ce(pool(own, v), y[v]) for v in range(views) if v != w)

        s = [numeric_gradient(lambda p, w=w: taught(p, w), at[w]) for w in range(views)]
    torch.testing.assert_close(torch.stack(told["feedback"]), torch.stack(h), rtol=1e-6, atol=1e-9)
    for v in range(views):
        torch.testing.assert_close(
            flat(done[v].params), flat(new[v]) - RATE * (s[v] + l[v]), rtol=1e-6, atol=1e-8
        )


def test_a_view_that_nobody_trusts_teaches_nothing_and_learns_nothing_of_teaching() -> None:
    """Trust 0: the labels are the anchor's, and no feedback reaches the view."""
    z = [torch.randn(1, 5, 3) for _ in range(3)]
    anchor = log_softmax(torch.randn(1, 5, 3), -1)
    assert torch.equal(teacher(z, 0, [anchor], torch.zeros(3, 3, 1)), anchor)
    states, batches, draws = setup(2)
    batches = [
        dataclasses.replace(b, anchor_VEUC=list(torch.zeros(2, 2, 7, 4, dtype=torch.float64)))
        for b in batches
    ]
    still = dataclasses.replace(PLAIN, trust=torch.zeros(2, 2, 2, dtype=torch.float64))
    one, _ = mct_step(states, batches, draws, LocalPeers(2), still)
    two, _ = mct_step(
        states, batches, draws, LocalPeers(2), dataclasses.replace(still, feedback="none")
    )
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(flat(a.params), flat(b.params), rtol=0, atol=1e-15)


# ---------------------------------------------------------------- runs

GRAPH = {"method": "supervised,label-propagation,mct-graph", "precision": "float64"}


def test_a_student_is_not_among_its_teachers(made: Made, tmp_path) -> None:
    """The weights of each teacher are those of the least loss without the student; they are kept in
    the checkpoint."""
    scores, y = experts()
    start = torch.full((4, 2), 0.25, dtype=torch.float64)
    weight = without(0, scores, y, start, USUAL)
    assert (weight[0] == 0).all()
    torch.testing.assert_close(
        weight[1:], fit_pool(scores[1:], y, torch.full((3, 2), 0.25), USUAL[1:])
    )
    assert not torch.allclose(
        weight[1:], fit_pool(scores, y, torch.full((4, 2), 0.25), USUAL)[1:], atol=0.05
    )
    settings = config(made, tmp_path, **{**GRAPH, "method": "mct-graph"})
    run(settings)
    progress = load_checkpoint(tmp_path / "a" / "checkpoints", 0, 1, torch.device("cpu"))
    assert (
        progress.teach.shape == (2, 5, 2)
        and (progress.teach[0, 0] == 0).all()
        and (progress.teach[1, 1] == 0).all()
        and (progress.teach > 0).any()
    )


@pytest.mark.parametrize(("labels", "of_probes"), [("1", 0), ("4", 0.1875)])
def test_where_nobody_judges_the_usual_weights_teach_and_join(
    made: Made, tmp_path: Path, labels: str, of_probes: float
) -> None:
    run(config(made, tmp_path, method="mct-graph", labels=labels, val="none"))
    progress = load_checkpoint(tmp_path / "a" / "checkpoints", 0, 1, torch.device("cpu"))
    file = tmp_path / "a" / "probes" / "mct-graph" / "pool.safetensors"
    weight_MS = load_file(file)["weight"]
    for v in range(2):
        teach_MS = progress.teach[v]
        assert (teach_MS[v] == 0).all() and (teach_MS[1 - v] == of_probes).all()
        torch.testing.assert_close(teach_MS[2:].sum(0), torch.full((2,), 1.5, dtype=torch.float64))
        expected_MS = torch.cat([torch.full((2, 2), of_probes), teach_MS[2:]])
        torch.testing.assert_close(weight_MS, expected_MS / (1.5 + 2 * of_probes))


def test_each_students_anchor_is_made_with_the_weights_of_its_own_teacher(
    made: Made, tmp_path
) -> None:
    settings = config(made, tmp_path, method="mct-graph")
    cache, splits, _ = read(settings)
    (job,) = make_jobs(
        "mct-graph",
        cache,
        splits,
        experiments(settings),
        LocalPeers(2),
        torch.device("cpu"),
        dataclasses.replace(settings, precision="float64"),
    )
    pool = torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with closing(Feeder(settings, job.task, job.peers)) as feed:
        batches, _ = feed(3, True, pool=pool)
        rows = feed._draw(3, True, False).rows_EU
    said = [graph(rows).double() for graph in job.task.graphs]
    for v in range(2):
        for batch in batches:
            expected = torch.stack(
                [sum(pool[v, 2 + g, e] * said[g][e] for g in range(3)) for e in range(2)]
            )
            torch.testing.assert_close(batch.anchor_VEUC[v], expected)


def test_supervised_with_graphs_is_the_supervised_probes_and_a_pool(made: Made, tmp_path) -> None:
    """Also with one view; what each view says by itself is what METHOD=supervised says."""
    for views in (("pixels", "edges"), ("pixels",)):
        found = run(
            config(
                made, tmp_path, *views, method="supervised,supervised-graph", run=f"a{len(views)}"
            )
        )["methods"]
        assert found["supervised-graph"]["views"] == found["supervised"]["views"]
        assert (
            found["supervised-graph"]["joint"]["test_top1"]["mean"]
            > found["supervised"]["joint"]["test_top1"]["mean"] + 0.02
        )
        assert len(found["supervised-graph"]["chosen"]) == len(views) * 2 + (len(views) > 1)


def test_a_run_with_graphs_is_worth_its_parts_and_its_joint_is_the_pool_of_its_files(
    made: Made, tmp_path
) -> None:
    from safetensors.torch import load_file

    summary = run(config(made, tmp_path, **GRAPH))
    found = summary["methods"]["mct-graph"]
    assert (
        found["joint"]["test_top1"]["mean"]
        > summary["methods"]["supervised"]["joint"]["test_top1"]["mean"] + 0.02
    )
    pool = load_file(tmp_path / "a" / "probes" / "mct-graph" / "pool.safetensors")
    assert (
        pool["weight"].shape == (5, 2)
        and (pool["weight"] >= 0).all()
        and pool["val"].shape == (3, 2, 355, 10)
    )
    assert set(found["probes"]) == {"pixels", "edges", "pool"}
    assert (
        found["chosen"]["pixels"] == {"weight": pool["weight"][0].tolist()}
        and len(found["chosen"]) == 5
    )
    assert found["chosen"]["graph of all views"] == {
        "weight": pool["weight"][4].tolist(),
        "neighbours": pool["chosen.neighbours"][2].tolist(),
        "alpha": pool["chosen.alpha"][2].tolist(),
    }
    alone = summary["methods"]["label-propagation"]["chosen"]
    assert (
        set(alone) == {"pixels", "edges", "joint"}
        and set(alone["joint"]) == {"neighbours", "alpha"}
        and len(alone["joint"]["alpha"]) == 2
    )
    fused = pooled(
        torch.cat([torch.zeros(2, 2, 355, 10), pool["val"].float()]), pool["weight"]
    )  # the graphs' part alone is good already
    y = torch.from_numpy(
        made.items.label[[i for i, split in enumerate(made.items.split) if split == "val"]]
    ).long()
    assert (fused.argmax(-1) == y).double().mean() > 0.6


@pytest.mark.parametrize("views", [("pixels", "edges"), ("pixels", "edges", "thirds")])
def test_with_graphs_two_processes_equal_one_to_the_last_bit(
    made: Made, tmp_path, views: tuple[str, ...]
) -> None:
    one = config(made, tmp_path, *views, **{**GRAPH, "method": "mct-graph"})
    run(one)
    train_on_ranks(dataclasses.replace(one, run="b"), 2)
    first, second = outcome(tmp_path / "a"), outcome(tmp_path / "b")
    assert (
        first.keys() == second.keys()
        and [name for name in first if first[name] != second[name]] == []
    )


def test_with_graphs_a_killed_run_resumes_to_the_same_bytes(
    made: Made, tmp_path, command: Callable
) -> None:
    settings = config(made, tmp_path, **{**GRAPH, "method": "mct-graph"})
    assert (
        command(
            "train", *flags(settings), env={"COVIEW_FAULT": "kill:2:checkpoint.latest.done"}
        ).returncode
        == -9
    )
    run(settings)
    run(dataclasses.replace(settings, run="whole"))
    first, second = outcome(tmp_path / "a"), outcome(tmp_path / "whole")
    assert (
        first.keys() == second.keys()
        and [name for name in first if first[name] != second[name]] == []
    )


@pytest.mark.parametrize(
    "method",
    [
        "mct-graph",
        "supervised-graph",
        "mct",
        "fixmatch",
        "self-training",
        "co-training",
        "mpl",
        "concat",
    ],
)
def test_an_experiment_of_many_is_what_it_is_alone_to_the_last_bit(
    made: Made, tmp_path, method: str
) -> None:
    """Whole runs, with early stopping, moving average and calibrated teachers, in float64."""
    from safetensors.torch import load_file

    settings = config(
        made,
        tmp_path,
        method=method,
        precision="float64",
        patience=20,
        ema=0.9,
        calibrate=method == "mct",
        eval_every=5,
    )
    both, alone = run(settings), run(dataclasses.replace(settings, seeds="1", run="alone"))
    assert (
        both["methods"][method]["joint"]["test_nll"]["values"][1]
        == alone["methods"][method]["joint"]["test_nll"]["values"][0]
    )
    for path in sorted((tmp_path / "a" / "probes" / method).iterdir()):
        if path.stem == "pool":
            continue
        many, one = load_file(path), load_file(tmp_path / "alone" / "probes" / method / path.name)
        for name, value in one.items():
            assert torch.equal(many[name] if name.startswith("input") else many[name][1:], value), (
                path.stem,
                name,
            )


def test_a_graph_that_misses_neighbours_is_told(
    made: Made, tmp_path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One list, or what holds enough rows, is all that can be afforded."""
    monkeypatch.setattr(propagation, "EXACT", 100)
    monkeypatch.setattr("train.algorithm.neighbours.BUDGET", 1.0)
    cache, splits, _ = read(config(made, tmp_path, "pixels", seeds="0"))
    graphs_of.cache_clear()
    (graph,) = graphs_of(cache, tuple(splits), torch.device("cpu"))
    graphs_of.cache_clear()
    assert graph.recall < 0.98
    share = f"the graph of pixels knows {100 * graph.recall:.0f} % of the nearest neighbours of its"
    assert share in caplog.text


# ---------------------------------------------------------------- shares of views side by side


def test_shares_are_multiples_of_a_step_and_have_the_sum_1() -> None:
    for given, steps, expected in (
        ([0.64, 0.36], 10, (0.6, 0.4)),
        ([0.65, 0.35], 10, (0.7, 0.3)),
        ([1.0, 0.0], 10, (1.0, 0.0)),
        ([1 / 3, 1 / 3, 1 / 3], 15, (1 / 3, 1 / 3, 1 / 3)),
        ([0.5, 0.3, 0.2], 15, (8 / 15, 4 / 15, 3 / 15)),
        ([0.3, 0.7], 10, (0.3, 0.7)),
    ):
        assert in_steps(given, steps) == pytest.approx(expected)
    many = in_steps(np.random.default_rng(0).dirichlet(np.ones(12)).tolist(), 60)
    assert sum(many) == pytest.approx(1) and len(many) == 12


def test_a_view_of_noise_has_no_share_and_folds_follow_their_seed() -> None:
    emb, label, one, _ = rows_of(200)
    noise = np.random.default_rng(5).normal(size=emb.shape).astype(np.float16)
    every = []
    for seed, known in enumerate((np.arange(12), np.arange(30, 42))):
        bare = Split(known, np.setdiff1d(nodes_of(one), known), known[:0], one.test)
        every += trainings([with_folds(bare, label, [""] * 200, seed)])
    alone = [Graph([x], label, every, 3, CPU) for x in (emb, noise)]
    shares = shares_beside(alone)
    assert len(shares) == len(every) and len({*shares[: len(every) // 2]}) == 1
    assert all(good >= 0.7 and bad == pytest.approx(1 - good) for good, bad in shares)
    both = Graph([emb, noise], label, every, 3, CPU, "top1", shares)
    assert both.recall == 1
    truth = label[one.test]
    as_good, plain = (
        Graph([emb, noise], label, every, 3, CPU, "top1", given)(one.test)[0].argmax(-1).numpy()
        for given in (shares, ())
    )
    assert (as_good == truth).mean() >= (plain == truth).mean()


def test_each_experiment_has_the_neighbours_of_its_own_share() -> None:
    """As if it were alone, to the last bit."""
    emb, label, one, two = rows_of(200)
    views = [emb, np.random.default_rng(6).normal(size=emb.shape).astype(np.float16)]
    shares = [(0.9, 0.1), (0.2, 0.8)]
    both = Graph(views, label, [one, two], 3, CPU, "top1", shares)
    for e, (split, share) in enumerate(zip((one, two), shares, strict=True)):
        alone = Graph(views, label, [split], 3, CPU, "top1", [share])
        assert torch.equal(both(split.test)[e], alone(split.test)[0])
        assert torch.equal(both.solve(e).told_nC, alone.solve(0).told_nC)
    assert not torch.equal(both(one.test)[0], both(one.test)[1])


def test_a_share_is_that_of_the_cosine() -> None:
    emb = [np.random.default_rng(v).normal(size=(30, 4)).astype(np.float16) for v in range(2)]
    every = np.arange(30)
    x, first, other = (
        Features(views, every, share)(every)
        for views, share in ((emb, (0.8, 0.2)), (emb[:1], ()), (emb[1:], ()))
    )
    np.testing.assert_allclose(x @ x.T, 0.8 * first @ first.T + 0.2 * other @ other.T, atol=1e-6)


def test_the_graphs_of_single_views_have_a_tenth_together() -> None:
    assert shares_of_graphs([0.3]).tolist() == [1]
    assert shares_of_graphs([0.1, 0.2]).tolist() == pytest.approx([0.02, 0.08, 0.9])
