"""Every published view, its own TOML file, against an independent implementation of
its model (tests/references.py).

python -m pytest -m many -s tests/extract/models/test_references.py

is at real size, with a line for each view:
15 minutes, and up to 12 GB of memory
"""

import gc
import time

import pytest
import torch
from models import pixels, same
from references import REFERENCES, normalised, written

from cache_specs.spec import load_spec, view_names
from extract.models.backbones import load_backbone

# Nearer than another epsilon of the norms (1e-5 for 1e-6 makes 4e-6); through 55 blocks with
# batch norms rounding alone makes more.
BOUND, BATCH_NORMS = 3e-6, {"align": 1e-4, "swav": 2e-5, "swav-rn50": 2e-5}


def test_every_published_view_has_a_reference():
    assert set(REFERENCES) == {
        name for name in view_names() if load_spec(name).weights.path is None
    }


@pytest.mark.parametrize("view", REFERENCES)
def test_a_view_gives_what_an_independent_implementation_gives(tmp_path, view):
    reference = REFERENCES[view](view, False)
    x = pixels(reference.spec.preprocess.crop)
    with torch.inference_mode():
        found = load_backbone(reference.spec, written(reference, tmp_path), "cpu")(x, exact=True)
        assert same(found, reference.forward(normalised(view, x)), BATCH_NORMS.get(view, BOUND))


@pytest.mark.many
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("view", REFERENCES)
def test_a_view_at_its_real_size_gives_what_an_independent_implementation_gives(
    tmp_path, capsys, view
):
    """As shipped, in float32. Two images, since rows that are all alike would agree too. One model
    is in memory at a time, and its file is removed."""
    begun = time.perf_counter()
    reference, spec = REFERENCES[view](view, True), load_spec(view)
    assert reference.spec == spec
    x = pixels(spec.preprocess.crop)
    with torch.inference_mode():
        expected = reference.forward(normalised(view, x))
    files, by = written(reference, tmp_path), reference.by
    del reference
    gc.collect()
    try:
        backbone = load_backbone(spec, files, "cpu", folded=False)
        parameters = sum(parameter.numel() for parameter in backbone.parameters())
        backbone.fold()  # as extract has it
        with torch.inference_mode():
            found = backbone(x, exact=True)
    finally:
        for path in files.values():
            path.unlink()
    finite = bool(torch.isfinite(found).all())
    difference = ((found - expected).norm(dim=1) / expected.norm(dim=1)).max().item()
    with capsys.disabled():
        print(
            f"\n{view:16}{parameters / 1e6:8.1f} M{found.shape[1]:6}"
            f"{time.perf_counter() - begun:7.1f} s  "
            f"{'finite' if finite else 'NOT FINITE':7}"
            f"{difference:9.1e}  {by}",
            flush=True,
        )
    assert finite and found.shape == (2, spec.width)
    assert round(parameters / 1e6, 1) == round(spec.about.parameters / 1e6, 1)
    assert same(found, expected, BATCH_NORMS.get(view, BOUND))
