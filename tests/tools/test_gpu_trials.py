"""What is tried on a GPU runs here in tiny sizes, so that a slip is found before one is lent."""

import json
import sys
from pathlib import Path

import check_gpu
import gpu_trials
import pytest
import torch
from conftest import ROOT
from torch import nn


def test_every_trial_runs_and_no_figure_is_told_of_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    script = str(ROOT / "tools" / "check_gpu.py")
    words = [script, "--device", "cpu", "--only", "trials", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    assert check_gpu.main() == 0, capsys.readouterr().out
    figures = json.loads(out.read_text())["figures"]
    # of the same numbers by other kernels: a step captured is the step, to the last bit
    for experiments in (1, 2, 8):
        what = (
            f"co-training step, E = {experiments}: greatest difference of a captured one's weights"
        )
        assert figures.pop(what) == 0
    for way in ("QuickGELU in one kernel", "fused attention", "both"):
        assert figures.pop(f"clip L/14, {way}: greatest difference to it as it is") < 1e-5
    for name in ("clip", "dinov2"):
        for mode in ("lora", "full"):
            what = f"{name} L/14, {mode}: greatest difference of a forgetful gradient"
            assert figures.pop(what) < 1e-4
    jpeg = "2 JPEG files of 500 x 375"
    assert figures.pop(f"{jpeg}, mean difference in levels") < 1
    assert figures.pop(f"{jpeg}, share of levels as Pillow's") > 0.9
    assert figures.pop(f"{jpeg}, greatest difference in levels") < 20
    assert len(figures) == 18 + 16 and set(figures.values()) == {"unrun"}


def test_fused_attention_is_that_of_the_module() -> None:
    torch.manual_seed(0)
    given = nn.MultiheadAttention(24, 3, batch_first=True).eval()
    x = torch.randn(2, 7, 24)
    want = given(x, x, x, need_weights=False)[0]
    assert torch.allclose(gpu_trials.Attention(given)(x, x, x)[0], want, atol=1e-6)


def test_a_module_that_is_not_there_is_no_trial() -> None:
    clip = gpu_trials.a_backbone("clip", "cpu")
    with pytest.raises(LookupError, match="no Conv9d in the model"):
        gpu_trials.swapped(clip, "Conv9d", lambda module: module)


def test_a_decoder_that_torchvision_dropped_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    told: list[tuple[str, object, bool]] = []
    gpu_trials.jpegs(lambda *line: told.append(line), Path(), "cpu")
    assert told == [("torchvision's JPEG decoder", "gone", True)]
