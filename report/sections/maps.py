"""A map of each view in two dimensions: principal components of a sample, coloured by what the
joint says. With umap-learn installed, UMAP's map too."""

import importlib.util
import warnings
from collections.abc import Sequence

import numpy as np

from report.html.charts import scatter
from report.html.page import Html, Section, grid

POINTS = 2_500


def principal(x_nD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) coordinates on the first two principal components, and the share of the variance that
    each holds."""
    x = x_nD.astype(np.float64)
    x -= x.mean(0)
    if x.shape[1] > len(x):  # the smaller of the two Gram matrices has the same eigenvalues
        values, vectors = np.linalg.eigh(x @ x.T)
        xy = vectors[:, :-3:-1] * np.sqrt(np.maximum(values[:-3:-1], 0))
    else:
        values, vectors = np.linalg.eigh(x.T @ x)
        xy = x @ vectors[:, :-3:-1]
    xy = np.pad(xy, ((0, 0), (0, 2 - xy.shape[1])))
    # An eigenvector's sign is nobody's choice: the coordinate farthest from 0 is positive.
    farthest = np.take_along_axis(xy, np.abs(xy).argmax(0)[None], 0)
    xy *= np.where(farthest < 0, -1, 1)
    share = np.pad(values[::-1], (0, 2))[:2] / max(values.sum(), 1e-12)
    return xy, share


def maps(
    views: Sequence[str],
    emb_V: Sequence[np.ndarray],
    pred_n: np.ndarray,
    classes: Sequence[str],
    labelled_n: np.ndarray,
    of: int,
) -> Section:
    """emb_V: one (n, D) array a view, of the same n images, of which pred_n is what the joint says;
    labelled_n: those that had a label in the first seed; of: how many there are."""
    charts: list[Html] = []
    extra = importlib.util.find_spec("umap") is not None
    for view, x_nD in zip(views, emb_V, strict=True):
        xy, share = principal(x_nD)
        first, second = f"{100 * share[0]:.0f} %", f"{100 * share[1]:.0f} %"
        drawn = {f"{view}, PCA": (xy, f"The two axes hold {first} and {second} of the variance.")}
        if extra:
            drawn[f"{view}, UMAP"] = umap(x_nD), "Distances between far groups mean little."
        for title, (xy_n2, about) in drawn.items():
            ring = "labelled"
            charts.append(
                scatter(title, xy_n2, pred_n, classes, ring_n=labelled_n, ring=ring, about=about)
            )
    lead = (
        f"{len(pred_n):,} of {of:,} images without the test split, coloured by what the joint "
        "says; rings: labelled in the first seed. A click on a class shows it alone."
    )
    if not extra:
        lead += (
            " With umap-learn installed (pip install umap-learn) UMAP's maps stand beside these."
        )
    return Section("maps", "Maps", grid(*charts), lead)


def umap(x_nD: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its own dependencies deprecate
        # pyrefly: ignore[missing-import]  it need not be installed
        from umap import UMAP  # noqa: PLC0415  an extra

        found = UMAP(n_components=2, metric="cosine", random_state=0)
        return np.asarray(found.fit_transform(x_nD.astype(np.float32)), float)
