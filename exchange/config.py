"""The settings of import, export, push and pull, from which their command lines are made."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImportConfig:
    """Make a finished view of embeddings computed elsewhere. The same import again does nothing."""

    view: str = ""
    """the new view's name: letters, digits, - _ ."""
    source: str = ""
    """FROM: a .npz, .npy or .h5 file, or a folder of Zarr, with the (N, D) float array `embeddings`
    (or X, features, emb) and the strings `keys` (or paths, ids)"""
    data: str = ""
    """the data set whose items the rows are: its name in the cache, or what `extract` takes.
    Without it, the file's own `keys`, `y` (or `labels`) and `split` make a data set"""
    cache: str = "cache"
    """where the embeddings go"""
    by_row_order: bool = False
    """the file's rows are the data set's items in their order, whatever keys it has"""
    array: str | None = None
    """the name of the embeddings in the file"""
    partial: bool = False
    """items without a row become `missing`, rows of unknown keys are left out"""
    fill_missing: bool = False
    """chunks of a Zarr array that are not there hold its fill value (Zarr leaves such out);
    otherwise they are an error"""
    name: str | None = None
    """the data set's name in the cache, where one is made; default: the file's"""
    as_class: str | None = None
    """words that are classes of yours, though they usually mean that there is no label:
    unknown,none; default: those of the last time"""
    root: str = "data"
    """where torchvision data sets lie"""
    shard_rows: int = 0
    """rows per shard; 0 chooses 4096 (512 for tiny sets)"""


@dataclass(frozen=True)
class ExportConfig:
    """Write one view of the cache to one file: .npz, .h5 (or .hdf5) or .parquet."""

    view: str = ""
    """the view's name"""
    data: str = ""
    """the data set; may be left out where only one has this view"""
    to: str = ""
    """the file to write; its ending chooses the format"""
    cache: str = "cache"
    """where the embeddings are"""
    force: bool = False
    """replace the file if it is there"""


@dataclass(frozen=True)
class PushConfig:
    """Put one finished view into an object store, whole, every byte read back. Once more: what
    lacks."""

    view: str = ""
    """the view's name"""
    data: str = ""
    """the data set; may be left out where only one has this view"""
    to: str = ""
    """s3://bucket/prefix, gs://…, az://…, or a folder; who one is stands in the environment"""
    cache: str = "cache"
    """where the embeddings are"""
    labels: bool = False
    """the labels of the images, too; otherwise the list of images goes without them"""


@dataclass(frozen=True)
class PullConfig:
    """Bring finished views from an object store into the cache; every byte is checked. Once more:
    what lacks."""

    source: str = ""
    """FROM: what TO of push was, or a data set or view below it"""
    view: str = ""
    """the view's name; without it all that lie there"""
    data: str = ""
    """of this data set alone"""
    cache: str = "cache"
    """where the embeddings go"""
