"""The settings of `coview extract` and `coview weights`, as flat frozen dataclasses. None of these
can change an embedding's meaning (see cache_specs/spec.py)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExtractConfig:
    """Embed every image of a data set once with one frozen foundation model, into a Zarr cache. A
    finished view is not computed again."""

    view: str = ""
    """name of a view (cache_specs/views/*.toml), or the path of a TOML file of your own"""
    data: str = ""
    """a folder of images or tars, a .csv, .parquet, .h5 or .tar file, torchvision:NAME,
    hf:OWNER/NAME, or digits"""
    views: str = ""
    """several views, comma-separated: each image is read and decoded once for all"""
    weights: str | None = None
    """local weights instead of the hub's: a folder, or one .safetensors file; of several views a
    folder with VIEW/ or VIEW.safetensors for each whose weights lie there"""
    classes: str = ""
    """what the classes are called in words, for views with a text tower: a file with a line a class
    (dog: puppy; hound), or own, the classes' own names; of views with a text tower"""
    cache: str = "cache"
    """where the embeddings go"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    gpus: int = 1
    """this many processes, each on its own GPU (on the CPU without one), share the shards of a
    view; of several views each has a GPU of these, in turn"""
    batch: int = 0
    """images per forward pass; 0 chooses: 64, on the CPU 16 that are larger than 64 x 64 pixels;
    recorded, and kept when an unfinished view is resumed"""
    workers: int = -1
    """decode processes for each GPU; -1 chooses, 0 decodes in the main process"""
    shard_rows: int = 0
    """rows per shard; 0 chooses 4096 (512 for tiny sets); a killed run loses at most one shard"""
    max_bad: str = "0.1%"
    """images that may be unreadable before the run ends with the list: a share (but at least 1
    image) or a number"""
    compile: bool = False
    """torch.compile the model: a minute or more before the first image, then faster on a GPU; needs
    a C++ compiler; recorded and kept like --batch"""
    allow_leak: bool = False
    """embed with weights that were trained with ImageNet's labels all the same"""
    changed: bool = False
    """images that were embedded are gone, or have other contents, on purpose: make a new version of
    the data set all the same"""
    rehash: bool = False
    """read and hash every image and the weights again, also where path, size, times and inode of a
    file are those of the last time"""
    name: str | None = None
    """the data set's name in the cache; default: the folder's or file's"""
    as_class: str | None = None
    """words that are classes of yours, though they usually mean that there is no label:
    unknown,none; default: those of the last time"""
    root: str = "data"
    """where torchvision data sets lie"""
    dry_run: bool = False
    """say what would be done, and how long it would take; write nothing"""
    json: bool = False
    """one JSON document on stdout, for machines; what is meant for people goes to stderr"""


@dataclass(frozen=True)
class ConvertConfig:
    """Turn the authors' checkpoint of a view into safetensors."""

    view: str = ""
    """name of a view whose spec has a weights.url, or the path of a TOML file"""
    source: str | None = None
    """the checkpoint, where it is on this machine already (a pickle of tensors, or safetensors)"""
