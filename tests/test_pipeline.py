"""From a folder of images to a table, by the two commands, as in the README; two of the
processes start as a user's do."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 images of three digits as JPEG and PNG in class folders, one of
    them cut off in the middle."""
    from sklearn.datasets import load_digits

    folder, digits = tmp_path_factory.mktemp("data") / "my photos", load_digits()
    for label, name in enumerate(("nought", "one", "two")):
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(digits.images[digits.target == label][:40]):
            pixels = Image.fromarray((image * 15).astype(np.uint8)).resize((40, 32)).convert("RGB")
            pixels.save(folder / name / f"{i}.{'jpg' if i % 2 else 'png'}")
    cut = folder / "two" / "7.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    return folder


def test_a_folder_with_a_truncated_image_goes_through(
    photos: Path, tmp_path: Path, command: Callable
) -> None:
    for view in ("tiny-clip", "tiny-dinov2"):
        words = ("extract", "--view", view, "--data", photos, "--cache", tmp_path / "cache")
        done = command(*words, fresh=view == "tiny-clip")
        assert done.returncode == 0 and f"{view}: finished, 120 images" in done.stdout, done.stderr
        assert (
            "1 of 120 images could not be embedded (1 truncated)" in done.stdout
            and "two/7.jpg: truncated" in done.stdout
        )
        assert done.stderr == ""
    done = command(
        "train",
        "--views",
        "tiny-clip,tiny-dinov2",
        "--data",
        photos,
        "--labels",
        3,
        "--seeds",
        "0..2",
        "--warmup",
        30,
        "--cotrain",
        30,
        "--val",
        "split",
        "--test",
        "20%",
        "--cache",
        tmp_path / "cache",
        "--runs",
        tmp_path,
        "--run",
        "r",
        "--threads",
        1,
        fresh=True,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["dataset"] == "my-photos" and sum(summary["rows"].values()) == 119
    for method in summary["methods"].values():
        assert method["joint"]["test_top1"]["mean"] > 0.8 and method["joint"]["test_top1"]["n"] == 3
    assert "tiny-clip, meta co-training" in done.stdout
