"""The benchmark of zero-shot: what it says is the command's own, and its standard error the
binomial one."""

import sys

import bench_zero_shot
import numpy as np
import pytest
import tasks


def test_digits_by_their_shapes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Far better than chance, as the page says; fonts are not at hand for the letters."""
    keys, y, split, images = tasks.digits()
    few = slice(None, None, 6)
    part = keys[few], y[few], split[few], images[few]
    monkeypatch.setattr(tasks, "digits", lambda: part)
    monkeypatch.setattr(sys, "argv", ["bench_zero_shot.py", "--tasks", "digits"])
    bench_zero_shot.main()
    test, everything = capsys.readouterr().out.splitlines()
    assert '"images": "test"' in test and '"n": 300, ' in everything
    assert float(everything.split('"top1": ')[1].split(",")[0]) > 20


def test_letters_are_called_as_the_drawings_were() -> None:
    assert bench_zero_shot.spoken("B") == "capital b" and bench_zero_shot.spoken("b") == "small b"
    assert bench_zero_shot.spoken("Γ") == "greek capital gamma"
    found = bench_zero_shot.share(np.arange(100) < 20)
    assert found == {"top1": 20.0, "standard_error": 4.0}
