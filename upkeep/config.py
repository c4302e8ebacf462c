"""The settings of the commands that keep cache and machine healthy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StatusConfig:
    """Show every view of the cache, and how far running extractions are."""

    cache: str = "cache"
    """where the embeddings are"""
    json: bool = False
    """one JSON document on stdout, for machines"""


@dataclass(frozen=True)
class VerifyConfig:
    """Search the cache for damage, reading every byte. Changes nothing."""

    view: str = ""
    """name of a view; default: all"""
    data: str = ""
    """the data set, as it was given to extract; default: all"""
    recompute: int = 0
    """embed this many random rows of each shard again, from the images, and compare"""
    seed: int = 0
    """which rows those are"""
    weights: str | None = None
    """local weights, as they were given to extract"""
    cache: str = "cache"
    """where the embeddings are"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    root: str = "data"
    """where torchvision data sets lie"""
    json: bool = False
    """one JSON document on stdout, for machines; what is meant for people goes to stderr"""


@dataclass(frozen=True)
class RepairConfig:
    """Mend a damaged view, computing again only what is damaged."""

    view: str = ""
    """name of a view"""
    data: str = ""
    """the data set, as it was given to extract; may be left out where only one has the view"""
    shards: str = ""
    """compute these again in any case, such as 3,7"""
    weights: str | None = None
    """local weights, as they were given to extract"""
    cache: str = "cache"
    """where the embeddings are"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    gpus: int = 1
    """this many processes share the shards"""
    workers: int = -1
    """decode processes for each GPU; -1 chooses"""
    root: str = "data"
    """where torchvision data sets lie"""


@dataclass(frozen=True)
class GcConfig:
    """Remove what no finished view needs, after asking."""

    cache: str = "cache"
    """where the embeddings are"""
    yes: bool = False
    """remove without asking"""
    unfinished: bool = False
    """also unfinished views of which shards are done"""


@dataclass(frozen=True)
class DoctorConfig:
    """See whether this machine is fit, and say what to type where it is not."""

    cache: str = "cache"
    """where the embeddings are, or shall go"""
    json: bool = False
    """one JSON document on stdout, for machines; what is meant for people goes to stderr"""


@dataclass(frozen=True)
class ViewsConfig:
    """List the views."""

    cache: str = "cache"
    """where the embeddings are"""
    data: str | None = None
    """the data set whose embeddings are looked for; default: any"""
    json: bool = False
    """one JSON document on stdout, for machines"""
