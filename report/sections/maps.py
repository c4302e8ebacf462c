"""A map of each view in two dimensions: principal components of a sample, coloured by what the joint says. With umap-learn installed, UMAP's map too."""

import importlib.util
import warnings
from collections.abc import Sequence

import numpy as np

from report.html.charts import scatter
from report.html.page import Html, Section, grid

POINTS = 2_500


def principal(x_nD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) coordinates on the first two principal components, and the share of the variance that each holds."""
    x = x_nD.astype(np.float64)
    x -= x.mean(0)
    if x.shape[1] > len(x):  # the smaller of the two Gram matrices has the same eigenvalues
        values, vectors = np.linalg.eigh(x @ x.T)
        xy = vectors[:, :-3:-1] * np.sqrt(np.maximum(values[:-3:-1], 0))
    else:
        values, vectors = np.linalg.eigh(x.T @ x)
        xy = x @ vectors[:, :-3:-1]
    xy = np.pad(xy, ((0, 0), (0, 2 - xy.shape[1])))
    xy *= np.where(
        np.take_along_axis(xy, np.abs(xy).argmax(0)[None], 0) < 0, -1, 1
    )  # an eigenvector's sign is nobody's choice
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
    """emb_V: one (n, D) array a view, of the same n images, of which pred_n is what the joint says; labelled_n: those that had a label in the first seed."""
    found: list[Html] = []
    extra = importlib.util.find_spec("umap") is not None
    for view, x in zip(views, emb_V, strict=True):
        xy, share = principal(x)
        ring = {"ring_n": labelled_n, "ring": "labelled"}
        about = (
            f"The two axes hold {100 * share[0]:.0f} % and {100 * share[1]:.0f} % of the variance."
        )
        found.append(scatter(f"{view}, PCA", xy, pred_n, classes, about=about, **ring))
        if extra:
            found.append(
                scatter(
                    f"{view}, UMAP",
                    umap(x),
                    pred_n,
                    classes,
                    about="Distances between far groups mean little.",
                    **ring,
                )
            )
    return Section(
        "maps",
        "Maps",
        grid(*found),
        f"{len(pred_n):,} of {of:,} images without the test split, coloured by what the joint says; rings: labelled in the first seed. A click on a "
        "class shows it alone."
        + (
            ""
            if extra
            else " With umap-learn installed (pip install umap-learn) UMAP's maps stand beside these."
        ),
    )


def umap(x_nD: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its own dependencies deprecate
        from umap import UMAP

        return np.asarray(
            UMAP(n_components=2, metric="cosine", random_state=0).fit_transform(
                x_nD.astype(np.float32)
            ),
            float,
        )
