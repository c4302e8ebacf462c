"""The settings of report, compare, inspect and suggest."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReportConfig:
    """Write the report of a finished run."""

    run: str = ""
    """the run's name below --runs"""
    runs: str = "runs"
    """where runs are"""
    cache: str = "cache"
    """where the embeddings are that it was trained on"""
    root: str = "data"
    """where torchvision data sets lie, for their pictures"""
    device: str = "cpu"
    """where the model is asked about images: auto, cpu, cuda or cuda:N"""


@dataclass(frozen=True)
class CompareConfig:
    """Compare finished runs with the first of them."""

    names: str = ""
    """the runs' names, comma-separated: the first is what the others are compared with"""
    to: str = "runs/compare.html"
    """the page that is written"""
    runs: str = "runs"
    """where runs are"""
    json: bool = False
    """one JSON document on stdout, for machines; what is meant for people goes to stderr"""


@dataclass(frozen=True)
class InspectConfig:
    """Look at views before training: leaks, dead dimensions, what they know, where they err."""

    views: str = ""
    """names of extracted views, comma-separated"""
    data: str = ""
    """the data set, as it was given to extract"""
    labels: str = "all"
    """labelled images, as for train: 4 (a class), 10% (of each class), all, or a file of keys"""
    seed: int = 0
    """which of them, as for train"""
    cache: str = "cache"
    """where the embeddings are"""
    runs: str = "runs"
    """where the page goes: inspect-DATA.html in it"""
    to: str = ""
    """the page's file, if it shall go elsewhere"""
    root: str = "data"
    """where torchvision data sets lie"""
    json: bool = False
    """one JSON document on stdout, for machines; what is meant for people goes to stderr"""


@dataclass(frozen=True)
class SuggestConfig:
    """List the images to label: the first ones of a data set, or the next ones of a run."""

    views: str = ""
    """names of extracted views, comma-separated; with --run it knows its own"""
    data: str = ""
    """the data set, as it was given to extract; with --run it knows its own"""
    n: int = 24
    """how many images; of 24, those that the run's report shows"""
    run: str = ""
    """a finished run's name below --runs, whose model says of which images it is unsure; without
    it the first images to label, by the embeddings alone"""
    to: str = ""
    """a table (.csv) of all images to write, with these first and without a label: fill it in, and
    it is the DATA of extract and train"""
    runs: str = "runs"
    """where runs are"""
    cache: str = "cache"
    """where the embeddings are that it was trained on"""
    root: str = "data"
    """where torchvision data sets lie"""
    device: str = "cpu"
    """where the model is asked about images: auto, cpu, cuda or cuda:N"""
    json: bool = False
    """one JSON document on stdout, for machines; what is meant for people goes to stderr"""
