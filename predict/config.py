"""The settings of predict and export-model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PredictConfig:
    """Label images with a trained model: one row an image, with confidence, agreement of the views,
    and each view's own opinion."""

    run: str = ""
    """name of a finished run"""
    model: str = ""
    """instead of a run: a folder that make export-model wrote"""
    images: str = ""
    """what to label: whatever DATA may be for extract; default: the images of the run's data set
    that have no label"""
    to: str = ""
    """the file to write, .parquet or .csv; default: predicted.parquet in the run's folder (with
    MODEL, in this one)"""
    method: str = ""
    """which of the run's methods; default: mct-graph if it is there, else the best on validation"""
    risk: str = ""
    """5%: an image keeps its label only where it is so sure that at most this share of such labels
    is wrong; default: all do"""
    weights: str | None = None
    """local weights, as for extract; of several views, a folder with a folder (or .safetensors
    file) of each view's name"""
    cache: str = "cache"
    """where the embeddings are that the run was trained on"""
    runs: str = "runs"
    """where runs are"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    workers: int = -1
    """decode processes; -1 chooses, 0 decodes in the main process"""
    force: bool = False
    """replace the file to write if it is there"""
    probabilities: bool = False
    """also write the probability of every class, a column each"""
    root: str = "data"
    """where torchvision data sets lie"""
    json: bool = False
    """one JSON document on stdout, for machines; what is meant for people goes to stderr"""


@dataclass(frozen=True)
class ExportModelConfig:
    """Write a trained model as one self-contained folder."""

    run: str = ""
    """name of a finished run"""
    to: str = ""
    """the folder to write; it must not be there yet"""
    method: str = ""
    """which of the run's methods; default: mct-graph if it is there, else the best on validation"""
    cache: str = "cache"
    """where the embeddings are that the run was trained on"""
    runs: str = "runs"
    """where runs are"""
    json: bool = False
    """one JSON document on stdout, for machines; what is meant for people goes to stderr"""
