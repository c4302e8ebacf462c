"""The pixels that each bundled view's model sees: fixed to the bit, and compared with the
transforms of the original libraries."""

import dataclasses
import functools
import hashlib
import io

import numpy as np
import pytest
import torch
from PIL import Image

from cache_specs.spec import Preprocess, load_spec, view_names
from extract.images import OK, decode

ORIENTATION = 0x0112


@functools.cache
def photograph(width: int, height: int) -> Image.Image:
    """Smooth colours, sharp edges, fine stripes and noise; of integers alone, so that
    it is the same everywhere."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1)
    rgb[((x - width // 3) ** 2 + (y - height // 2) ** 2) < (min(width, height) // 4) ** 2] = (
        220,
        40,
        60,
    )
    rgb[(x > width * 2 // 3) & ((x // 3 + y // 5) % 2 == 0)] = (250, 250, 240)
    rgb[(y > height * 3 // 4) & (y % 4 < 2)] = (10, 30, 20)
    rgb = rgb + np.random.default_rng(7).integers(-12, 13, rgb.shape)
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def alpha_of() -> np.ndarray:
    return (np.arange(640 * 427) % 256).astype(np.uint8).reshape(427, 640)


def files() -> dict[str, bytes]:
    """Without loss: how a JPEG is decoded is the business of the library that decodes it."""
    landscape = photograph(640, 427)
    alpha = landscape.copy()
    alpha.putalpha(Image.fromarray(alpha_of()))
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    return {
        "landscape": encoded(landscape),
        "portrait": encoded(photograph(427, 640)),
        "odd": encoded(photograph(301, 223)),
        "grey": encoded(landscape.convert("L")),
        "cmyk": encoded(landscape.convert("CMYK"), "TIFF"),
        "alpha": encoded(alpha),
        "turned": encoded(landscape, exif=turned),
    }


def values(prep: Preprocess) -> tuple:
    """What the pixels depend on; mean and std come later."""
    return prep.resize, prep.resize_rule, prep.crop, prep.interpolation, prep.antialias


PREPS = {values(load_spec(name).preprocess): load_spec(name).preprocess for name in view_names()}
# sha256 of the pixels, its first 12 digits: they change with the arithmetic of Pillow and torch,
# and then every cache would be another one. Of all of files(), one after the other:
LATEST: dict[tuple, str] = {
    (224, "shortest", 224, "bicubic", True): "815f85b30448",
    (346, "squash", 289, "bilinear", True): "a6d69492c699",
    (224, "squash", 224, "bicubic", True): "ac8a01460ff8",
    (256, "shortest", 224, "bicubic", True): "f19f9e5a55bb",
    (256, "squash", 256, "bilinear", True): "e8ddcea64597",
    (960, "pad", 960, "bilinear", True): "3719c242e05c",
    (224, "pad", 224, "bilinear", True): "0853a96aaf20",
    (336, "squash", 336, "bilinear", True): "a9b89df6d92b",
    (256, "shortest", 224, "bilinear", True): "ee086f8a4787",
    (28, "squash", 28, "bicubic", True): "484c17b34c5d",
    (24, "squash", 24, "bicubic", True): "03311afe8e6e",
    (224, "squash", 224, "bilinear", True): "f0f90d5ec6bc",
}
# The same of version 2, of each of files():
DIGESTS: dict[tuple, str] = {
    (
        224,
        "pad",
        224,
        "bilinear",
        True,
    ): "85ca17468e0c 049dd679bae3 9edc7724df51 b00ce8480f46 85ca17468e0c 0313a532d7a6 8c7de7f059af",
    (
        224,
        "shortest",
        224,
        "bicubic",
        True,
    ): "6c2347c854a0 82b97d28d0c4 0ebf2fa95fbe 23c30e15574b 6c2347c854a0 965e5acb6ef5 5164f5aaaf4e",
    (
        224,
        "squash",
        224,
        "bicubic",
        True,
    ): "f9b2153a6064 59586ece0e8d 891ecf0d9172 9068f67748df f9b2153a6064 a1a2ef86b4c1 e5747d4fa09c",
    (
        224,
        "squash",
        224,
        "bilinear",
        True,
    ): "8bce4b02481b d6205d17918f b4b2fb812ccc 24e5837245d7 8bce4b02481b a891ac91daef 08cf672a86d6",
    (
        24,
        "squash",
        24,
        "bicubic",
        True,
    ): "2f7a27e03b7d 079b17ad4e7c bdd19cbd0fa5 dcdb35cb6731 2f7a27e03b7d 4c2cafa602dd 78e81d2c5035",
    (
        256,
        "shortest",
        224,
        "bicubic",
        True,
    ): "2da57e2697b3 22ff4beac141 3444bd58b803 5011bd720f87 2da57e2697b3 e2f610bb4d8e a91d2112646c",
    (
        256,
        "shortest",
        224,
        "bilinear",
        True,
    ): "a23bd9d4fa07 576398af2f89 ecd276fd9a42 75b92b68c86b a23bd9d4fa07 fdbb1cf6b8f3 8c1f7bd2d22c",
    (
        256,
        "squash",
        256,
        "bilinear",
        True,
    ): "da400cb97ee0 b1dca4cfbf64 eac8226e5d79 de16d61a915a da400cb97ee0 0943b129809c 204f36c3df70",
    (
        28,
        "squash",
        28,
        "bicubic",
        True,
    ): "51b874b8dda9 a9d7753e7012 5d25657f4ab9 cf1fbb739dd8 51b874b8dda9 d0ef363cb53e 7a05f8248693",
    (
        336,
        "squash",
        336,
        "bilinear",
        True,
    ): "3dd09131a6bf e914ca687b73 f4d618b1a99b b3110c639de6 3dd09131a6bf 3549ebc9f7aa a177bb98caa6",
    (
        346,
        "squash",
        289,
        "bilinear",
        True,
    ): "fd596c18b14f 2710371fc4a9 29b1e86674e7 676a231bb5e4 fd596c18b14f f329e495664e e073a7485285",
    (
        960,
        "pad",
        960,
        "bilinear",
        True,
    ): "3060b19f293e 255bfa68dad0 0f31aa519d87 1483060b87e1 3060b19f293e efec56cf4431 67b33bf289cb",
}


def pixels(data: bytes, prep: Preprocess) -> torch.Tensor:
    found, status = decode(data, prep)
    assert (
        status == OK
        and found is not None
        and found.dtype == torch.uint8
        and found.shape == (3, prep.crop, prep.crop)
    )
    return found


@pytest.mark.parametrize("key", PREPS, ids=str)
def test_the_pixels_of_each_view_are_these(key):
    latest, before = hashlib.sha256(), []
    for data in files().values():
        latest.update(pixels(data, PREPS[key]).numpy().tobytes())
        then = pixels(data, earlier(PREPS[key])).numpy().tobytes()
        before.append(hashlib.sha256(then).hexdigest()[:12])
    assert latest.hexdigest()[:12] == LATEST[key]
    assert " ".join(before) == DIGESTS[key]


def earlier(prep: Preprocess) -> Preprocess:
    """Of which Pillow's filters make the pixels, as the authors' transforms do."""
    return dataclasses.replace(prep, pixels=2)


def test_no_digest_is_of_a_view_that_is_gone():
    assert DIGESTS.keys() == LATEST.keys() == PREPS.keys()


@pytest.mark.parametrize("key", PREPS, ids=str)
def test_alpha_lies_on_white_and_a_turned_photograph_is_upright(key):
    given = files()
    colours, share = np.asarray(photograph(640, 427)), alpha_of()[..., None] / 255
    white = Image.fromarray(np.rint(colours * share + 255 * (1 - share)).astype(np.uint8))
    differ = pixels(given["alpha"], PREPS[key]).int() - pixels(encoded(white), PREPS[key]).int()
    assert differ.abs().max() <= 1
    upright = encoded(photograph(640, 427).transpose(Image.Transpose.ROTATE_270))
    assert torch.equal(pixels(given["turned"], PREPS[key]), pixels(upright, PREPS[key]))
    grey = pixels(given["grey"], PREPS[key])
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])


# --- the original libraries' own transforms; differences in levels of 0 to 255, of the whole
#     image: greatest and mean. Theirs are Pillow's filters, as ours were before version 3

SIZES = [(640, 427), (427, 640), (301, 223), (223, 223)]


def normalised(prep: Preprocess, image: Image.Image) -> torch.Tensor:
    return (
        pixels(encoded(image), prep) / 255 - torch.tensor(prep.mean).view(3, 1, 1)
    ) / torch.tensor(prep.std).view(3, 1, 1)


def assert_as(prep: Preprocess, image: Image.Image, theirs: torch.Tensor) -> None:
    """As theirs, but for a few levels; before version 3 of the pixels the very same. Pillow scales
    the side first that shrinks most, and cuts off what is below 0 or above 255 in between: stripes
    show it."""
    assert levels(earlier(prep), image, theirs)[0] < 0.001
    greatest, mean = levels(prep, image, theirs)
    height_first = prep.resize_rule == "squash" and image.height > image.width
    bounds = (14.001, 0.3) if height_first else (2.001, 0.02)
    assert greatest < bounds[0] and mean < bounds[1], (greatest, mean)


def levels(prep: Preprocess, image: Image.Image, theirs: torch.Tensor) -> tuple[float, float]:
    assert theirs.shape == (3, prep.crop, prep.crop)
    difference = (
        (normalised(prep, image) - theirs) * torch.tensor(prep.std).view(3, 1, 1) * 255
    ).abs()
    return difference.max().item(), difference.mean().item()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "view", ["clip", "clip-b16", "siglip", "siglip2", "pe-core", "metaclip2", "tiny-clip"]
)
def test_open_clips_own_transform_is_the_same(view, size):
    import open_clip

    prep = load_spec(view).preprocess
    transform = open_clip.image_transform(
        prep.crop,
        is_train=False,
        mean=prep.mean,
        std=prep.std,
        interpolation=prep.interpolation,
        resize_mode=prep.resize_rule,
    )
    assert_as(prep, photograph(*size), transform(photograph(*size)))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "view", [name for name in view_names() if load_spec(name).backend == "timm"]
)
def test_timms_own_transform_with_these_values_is_the_same(view, size):
    from timm.data import create_transform

    prep = load_spec(view).preprocess
    transform = create_transform(
        (3, prep.crop, prep.crop),
        is_training=False,
        interpolation=prep.interpolation,
        mean=prep.mean,
        std=prep.std,
        crop_pct=prep.crop / prep.resize,
        crop_mode="center" if prep.resize_rule == "shortest" else "squash",
    )
    assert_as(prep, photograph(*size), transform(photograph(*size)))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("view", ["mae", "swav", "esvit", "dinov2", "dinov2-b14"])
def test_the_evaluation_transform_of_the_authors_is_the_same(view, size):
    """Resize(256), CenterCrop(224), ToTensor, Normalize: of MAE, SwAV, EsViT and DINOv2, in
    torchvision's first transforms."""
    from torchvision import transforms as t

    prep = load_spec(view).preprocess
    steps = [
        t.Resize(256, t.InterpolationMode(prep.interpolation)),
        t.CenterCrop(224),
        t.ToTensor(),
        t.Normalize(prep.mean, prep.std),
    ]
    assert_as(prep, photograph(*size), t.Compose(steps)(photograph(*size)))


def processor(view: str, prep: Preprocess):
    """transformers' image processor with the values of the model's published
    preprocessor_config.json, in its Pillow form."""
    import transformers as t

    common = {
        "image_mean": list(prep.mean),
        "image_std": list(prep.std),
        "resample": {"bilinear": 2, "bicubic": 3}[prep.interpolation],
    }
    square, crop = (
        {"height": prep.resize, "width": prep.resize},
        {"height": prep.crop, "width": prep.crop},
    )
    if view in ("clip", "dinov2"):
        kind = t.CLIPImageProcessorPil if view == "clip" else t.BitImageProcessorPil
        return kind(
            size={"shortest_edge": prep.resize}, crop_size=crop, do_convert_rgb=True, **common
        )
    if view == "align":
        return t.EfficientNetImageProcessorPil(
            size=square,
            do_center_crop=True,
            crop_size=crop,
            rescale_factor=1 / 127.5,
            rescale_offset=True,
            do_normalize=False,
            include_top=False,
            resample=2,
        )
    if view == "blip":
        return t.BlipImageProcessorPil(size=square, **common)
    if view == "siglip":
        return t.SiglipImageProcessorPil(size=square, **common)
    return t.Owlv2ImageProcessorPil(size=square, **common)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("view", ["align", "blip", "siglip"])
def test_transformers_processor_is_the_same(view, size):
    prep = load_spec(view).preprocess
    theirs = processor(view, prep)(photograph(*size), return_tensors="pt")["pixel_values"][0]
    assert_as(prep, photograph(*size), theirs)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("view", ["clip", "dinov2"])
def test_transformers_cuts_the_middle_a_pixel_to_the_left_where_the_rest_is_odd(view, size):
    """Half a pixel each way: (335 - 224) / 2 = 55.5 is 56 to torchvision, which the authors used,
    and 55 to transformers. Else they are the same."""
    prep = load_spec(view).preprocess
    theirs = processor(view, prep)(photograph(*size), return_tensors="pt")["pixel_values"][0]
    ours, long = normalised(earlier(prep), photograph(*size)), prep.resize * max(size) // min(size)
    if (start := (long - prep.crop) / 2) % 1 and round(start) != long // 2 - prep.crop // 2:
        ours, theirs = (
            (ours[:, :, :-1], theirs[:, :, 1:])
            if size[0] > size[1]
            else (ours[:, :-1], theirs[:, 1:])
        )
    assert (ours - theirs).abs().max() < 1e-5


# greatest and mean; the greatest are at the border (mirrored there) and on the stripes
OWL_BOUNDS = {"owlv2": (100, 0.5), "owlv2-224": (70, 4.5)}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("view", OWL_BOUNDS)
def test_owlv2_is_padded_with_grey_and_scaled_nearly_as_transformers_scales(view, size):
    """transformers 5 pads with black, the authors (and transformers 4) with grey, below or on
    the right: it is given what is padded already. It blurs and then interpolates where
    Pillow's filter does both."""
    prep, image = load_spec(view).preprocess, photograph(*size)
    padded = np.full((max(size), max(size), 3), 128, np.uint8)
    padded[: size[1], : size[0]] = np.asarray(image)
    theirs = processor(view, prep)(Image.fromarray(padded), return_tensors="pt")["pixel_values"][0]
    greatest, mean = levels(prep, image, theirs.float())
    assert mean < OWL_BOUNDS[view][1] and greatest < OWL_BOUNDS[view][0], (greatest, mean)
    corner = pixels(encoded(image), prep)[:, -2:, -2:]
    assert size[0] == size[1] or (corner == 128).all()
