"""Which pixels belong to which view, written down a second time."""

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


SWAV = (0.485, 0.456, 0.406), (0.228, 0.224, 0.225)


CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


NONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


PIXELS = {
    **dict.fromkeys(
        ("clip", "clip-b16", "eva01", "eva02", "aimv2", "metaclip2"),
        ("shortest", 224, 224, "bicubic", *CLIP),
    ),
    **dict.fromkeys(
        (
            "dinov2",
            "dinov2-b14",
            "dinov2-l14",
            "dinov2-g14",
            "esvit",
            "esvit-last4",
            "mae",
            "hiera",
        ),
        ("shortest", 256, 224, "bicubic", *IMAGENET),
    ),
    **dict.fromkeys(("swav", "swav-rn50"), ("shortest", 256, 224, "bilinear", *SWAV)),
    "blip": ("squash", 224, 224, "bicubic", *CLIP),
    **dict.fromkeys(("siglip", "siglip2"), ("squash", 224, 224, "bicubic", *HALF)),
    "align": ("squash", 346, 289, "bilinear", *HALF),
    "owlv2": ("pad", 960, 960, "bilinear", *CLIP),
    "owlv2-224": ("pad", 224, 224, "bilinear", *CLIP),
    **dict.fromkeys(("dinov3", "dinov3-convnext"), ("squash", 256, 256, "bilinear", *IMAGENET)),
    "pe-core": ("squash", 336, 336, "bilinear", *HALF),
    "tipsv2": ("squash", 224, 224, "bilinear", *NONE),
}
