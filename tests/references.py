"""Each published view beside an independent implementation of its model: the same random tensors in
both, and written as the published checkpoint has them.

    REFERENCES[view](view, real) -> Reference     real: at its own size; otherwise at that of a test

What `by` names shares no model code with what the view runs. Where no library has the
model a second time, the forward pass is restated here from its authors' code with torch's
own functions, and `by` begins with "restated". A rule that only the view's own library has
is named in `by` as such.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from models import calibrated, drawn, pixels, randomised, write_weights
from published import PIXELS
from torch import nn
from torch.nn import functional as F  # noqa: N812

from cache_specs.spec import ViewSpec, load_spec

State = dict[str, torch.Tensor]
Forward = Callable[[torch.Tensor], torch.Tensor]


class Size(NamedTuple):
    width: int
    depth: int
    heads: int
    patch: int
    mlp: int
    table: int  # pixels to a side that its table of positions was made for


LARGE, BASE = Size(1024, 24, 16, 14, 4096, 224), Size(768, 12, 12, 16, 3072, 224)
SIZES = {
    "clip": LARGE,
    "clip-b16": BASE,
    "metaclip2": Size(1280, 32, 16, 14, 5120, 224),
    "dinov2": LARGE._replace(table=518),
    "dinov2-b14": BASE._replace(patch=14, table=518),
    "dinov2-l14": LARGE._replace(table=518),
    "dinov2-g14": Size(1536, 40, 24, 14, 4096, 518),
    "dinov3": LARGE._replace(patch=16, table=256),
    "mae": LARGE._replace(patch=16),
    "siglip": BASE,
    "siglip2": Size(1152, 27, 16, 14, 4304, 224),
    "aimv2": LARGE._replace(heads=8, mlp=2816),
    "eva01": Size(1408, 40, 16, 14, 6144, 224),
    "blip": Size(1408, 39, 16, 14, 6144, 224),
    "eva02": LARGE._replace(mlp=2730),
    "pe-core": LARGE._replace(table=336),
    "tipsv2": LARGE._replace(table=448),
    "owlv2": BASE._replace(table=960),
    "owlv2-224": BASE._replace(table=960),
}
SMALL_MLP = {"dinov2-g14": 88, "aimv2": 88, "eva02": 85}


@dataclasses.dataclass
class Reference:
    """forward: normalised (B, 3, S, S) -> (B, D). state: the checkpoint as it was published; files:
    what lies beside it. spec: as shipped, at this size."""

    by: str
    state: State
    forward: Forward
    spec: ViewSpec
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    model: nn.Module | None = None  # where other outputs of it are looked at


def written(reference: Reference, folder: Path) -> dict[str, Path]:
    """The files of a view as they were published."""
    name = next(name for name in reference.spec.weights.files if name.endswith(".safetensors"))
    write_weights(folder, reference.state, name)
    for other, text in reference.files.items():
        (folder / other).write_text(text)
    return {path: folder / path for path in (name, *reference.files)}


def normalised(view: str, x: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in PIXELS[view][4:])
    return (x.float() / 255 - mean) / std


def size_of(view: str, real: bool) -> Size:
    """Small: tables of positions that the view resamples, it resamples too."""
    own = SIZES[view]
    return (
        own
        if real
        else Size(
            32,
            5,
            2,
            8,
            SMALL_MLP.get(view, 128),
            32 if own.table == load_spec(view).preprocess.crop else 48,
        )
    )


def spec_of(view: str, real: bool, crop: int = 32, width: int = 32, **arguments: Any) -> ViewSpec:
    spec = load_spec(view)
    if real:
        return spec
    return dataclasses.replace(
        spec,
        width=width,
        arguments={**spec.arguments, **arguments},
        preprocess=dataclasses.replace(spec.preprocess, resize=crop, crop=crop),
    )


def timm_vit(view: str, real: bool, **more: Any) -> ViewSpec:
    size = size_of(view, real)
    return spec_of(
        view, real, img_size=32, patch_size=8, embed_dim=32, depth=size.depth, num_heads=2, **more
    )


def hf(size: Size, **more: Any) -> dict[str, Any]:
    """The arguments that most of transformers' configurations share."""
    return {
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "image_size": size.table,
        "patch_size": size.patch,
        "initializer_range": 0.02,
        **more,
    }


def renamed(state: State, *rules: tuple[str, str | Callable[[re.Match], str]]) -> State:
    for pattern, replacement in rules:
        state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    return state


def joined(state: State, names: tuple[str, ...], into: str) -> State:
    """`x.q_proj.weight`, `x.k_proj.weight`, `x.v_proj.weight` ->
    `x.qkv.weight`, wherever they are."""
    found = {
        name: tensor
        for name, tensor in state.items()
        if not re.search(rf"\.({'|'.join(names)})\.", name)
    }
    for name, tensor in state.items():
        if f".{names[0]}." in name:
            found[name.replace(f".{names[0]}.", f".{into}.")] = torch.cat(
                [tensor, *(state[name.replace(names[0], other)] for other in names[1:])]
            )
    return found


BLOCKS = (
    (r"^encoder\.layers?\.", "blocks."),
    (r"^layers\.", "blocks."),
    (r"^model\.layer\.", "blocks."),
    (
        r"\.attention\.attention\.(query|key|value)\.",
        lambda found: f".attention.{found[1][0]}_proj.",
    ),  # transformers until 5.17
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.attention\.o_proj\.|\.self_attn\.(out_proj|projection)\.", ".attn.proj."),
    (r"\.(attention|self_attn)\.", ".attn."),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^embeddings\.(cls_token|class_embedding)", "cls_token"),
    (r"^embeddings\.register_tokens", "reg_token"),
    (r"^embeddings\.patch_embeddings?\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.mask_token", "mask_token"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)


def timm_state(model: nn.Module) -> State:
    """A model of transformers with the names of timm (which are those of
    DINO's and EVA's authors)."""
    return joined(renamed(model.state_dict(), *BLOCKS), ("q_proj", "k_proj", "v_proj"), "qkv")


# --- the plain ViT, restated


def norm(state: State, name: str, x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def vit(
    state: State,
    images: torch.Tensor,
    heads: int,
    eps: float = 1e-6,
    angles_TD: torch.Tensor | None = None,
) -> torch.Tensor:
    """(B, T, D) tokens after the last block: class, registers, patches. Bias, registers, a first
    norm, layer scale, SwiGLU: where there are tensors for it."""
    patch = state["patch_embed.proj.weight"]
    x = (
        F.conv2d(images, patch, state.get("patch_embed.proj.bias"), stride=patch.shape[-1])
        .flatten(2)
        .transpose(1, 2)
    )
    B, _, D = x.shape
    x = torch.cat([state["cls_token"].expand(B, 1, D), x], 1) + state["pos_embed"]
    if "reg_token" in state:
        x = torch.cat([x[:, :1], state["reg_token"].expand(B, -1, D), x[:, 1:]], 1)
    if "norm_pre.weight" in state:
        x = norm(state, "norm_pre", x, eps)
    for i in range(sum(name.endswith(".norm1.weight") for name in state)):
        block = f"blocks.{i}"
        x = x + state.get(f"{block}.ls1.gamma", 1) * attention(
            state, f"{block}.attn", norm(state, f"{block}.norm1", x, eps), heads, angles_TD
        )
        inner = norm(state, f"{block}.norm2", x, eps)
        if f"{block}.mlp.w1.weight" in state:  # EVA-02: gated, with a norm inside
            inner = norm(
                state,
                f"{block}.mlp.ffn_ln",
                F.silu(linear(state, f"{block}.mlp.w1", inner))
                * linear(state, f"{block}.mlp.w2", inner),
                eps,
            )
            inner = linear(state, f"{block}.mlp.w3", inner)
        else:
            inner = linear(
                state, f"{block}.mlp.fc2", F.gelu(linear(state, f"{block}.mlp.fc1", inner))
            )
        x = x + state.get(f"{block}.ls2.gamma", 1) * inner
    return x


def attention(
    state: State, name: str, x: torch.Tensor, heads: int, angles_TD: torch.Tensor | None
) -> torch.Tensor:
    """q, k and v in one matrix, or (EVA-02) in three without a bias for k."""
    if f"{name}.qkv.weight" in state:
        qkv = linear(state, f"{name}.qkv", x).chunk(3, -1)
    else:
        qkv = [
            F.linear(x, state[f"{name}.{part}_proj.weight"], state.get(f"{name}.{part}_bias"))
            for part in "qkv"
        ]
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv)
    if angles_TD is not None:
        q, k = turned(q, angles_TD), turned(k, angles_TD)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return linear(state, f"{name}.proj", (weights @ v).transpose(1, 2).flatten(2))


def turned(x: torch.Tensor, angles_TD: torch.Tensor) -> torch.Tensor:
    """Rotary positions: neighbouring pairs of numbers are turned as one complex number."""
    return torch.view_as_real(
        torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        * torch.polar(torch.ones_like(angles_TD), angles_TD)
    ).flatten(-2)


def rotary(side: int, width: int, first: int, columns_first: bool) -> torch.Tensor:
    """(1 + side², width / 2) angles of a head of that width: half for the row, half for the column,
    counted from `first`; the class token is not turned."""
    pace = 10000 ** (-torch.arange(0, width // 2, 2) / (width // 2))
    at = (
        torch.stack(
            torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1
        ).flatten(0, 1)
        + first
    )
    turns = (at.flip(-1) if columns_first else at)[:, :, None] * pace
    return torch.cat([torch.zeros(1, width // 2), turns.flatten(1)])


def vit_shapes(size: Size, qkv: str = "qkv", patch_bias: bool = True) -> dict[str, tuple[int, ...]]:
    D, M = size.width, size.mlp

    def pair(name: str, out: int, inner: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}

    def normed(name: str, width: int = D) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    shapes = {
        "patch_embed.proj.weight": (D, 3, size.patch, size.patch),
        "cls_token": (1, 1, D),
        "pos_embed": (1, 1 + (size.table // size.patch) ** 2, D),
        **normed("norm"),
    }
    if patch_bias:
        shapes["patch_embed.proj.bias"] = (D,)
    for i in range(size.depth):
        block = f"blocks.{i}"
        shapes |= (
            normed(f"{block}.norm1") | normed(f"{block}.norm2") | pair(f"{block}.attn.proj", D, D)
        )
        if qkv == "qkv":
            shapes |= (
                pair(f"{block}.attn.qkv", 3 * D, D)
                | pair(f"{block}.mlp.fc1", M, D)
                | pair(f"{block}.mlp.fc2", D, M)
            )
        else:
            shapes |= {f"{block}.attn.{part}_proj.weight": (D, D) for part in "qkv"} | {
                f"{block}.attn.{part}_bias": (D,) for part in "qv"
            }
            shapes |= (
                pair(f"{block}.mlp.w1", M, D)
                | pair(f"{block}.mlp.w2", M, D)
                | normed(f"{block}.mlp.ffn_ln", M)
                | pair(f"{block}.mlp.w3", D, M)
            )
    return shapes


def resampled(
    table_1ND: torch.Tensor, side: int, mode: str = "bicubic", antialias: bool = False
) -> torch.Tensor:
    """The positions of the patches for a grid of another side; that of the class token stays."""
    grid = (
        table_1ND[:, 1:]
        .unflatten(1, (int((table_1ND.shape[1] - 1) ** 0.5), -1))
        .permute(0, 3, 1, 2)
    )
    return torch.cat(
        [
            table_1ND[:, :1],
            F.interpolate(
                grid, size=(side, side), mode=mode, align_corners=False, antialias=antialias
            )
            .flatten(2)
            .mT,
        ],
        1,
    )


# --- CLIP and its kind


def clip(view: str, real: bool) -> Reference:
    import transformers as t

    size = size_of(view, real)
    width, layers, words, length, out = (
        {"clip": (768, 12, 49408, 77, 768), "clip-b16": (512, 12, 49408, 77, 512)}[view]
        if real
        else (16, 1, 64, 8, 16)
    )
    model = randomised(
        t.CLIPVisionModel(t.CLIPVisionConfig(**hf(size, intermediate_size=size.mlp)))
    )
    rules = (
        (r"attn\.qkv\.", "attn.in_proj_"),
        (r"attn\.proj\.", "attn.out_proj."),
        (r"\.norm(\d)\.", r".ln_\1."),
        (r"mlp\.fc1\.", "mlp.c_fc."),
        (r"mlp\.fc2\.", "mlp.c_proj."),
        (r"^blocks\.", "transformer.resblocks."),
        (r"^norm_pre\.", "ln_pre."),
        (r"^norm\.", "ln_post."),
        (r"^cls_token", "class_embedding"),
        (r"^pos_embed", "positional_embedding"),
        (r"^patch_embed\.proj\.", "conv1."),
    )
    state = renamed(timm_state(model), *rules, ("^", "visual.")) | {
        "visual.proj": drawn("visual.proj", (size.width, out))
    }
    text = vit_shapes(Size(width, layers, 1, 1, 4 * width, 1))
    state |= {
        name: torch.zeros(shape)
        for name, shape in renamed(
            {name: shape for name, shape in text.items() if name.startswith("blocks.")}, *rules
        ).items()
    }
    state |= {
        "token_embedding.weight": torch.zeros(words, width),
        "positional_embedding": torch.zeros(length, width),
        "logit_scale": torch.tensor(1.0),
        "text_projection": torch.zeros(width, out),
        "ln_final.weight": torch.zeros(width),
        "ln_final.bias": torch.zeros(width),
    }
    config = {
        "model_cfg": {
            "embed_dim": out,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": 32,
                "layers": 5,
                "width": 32,
                "head_width": 16,
                "patch_size": 8,
            },
            "text_cfg": {
                "context_length": length,
                "vocab_size": words,
                "width": width,
                "heads": 2,
                "layers": layers,
            },
        }
    }
    return Reference(
        "transformers CLIPVisionModel",
        state,
        lambda x: model(x).pooler_output,
        spec_of(view, real),
        {} if real else {"open_clip_config.json": json.dumps(config)},
    )


def metaclip2(view: str, real: bool) -> Reference:
    import transformers as t

    size = size_of(view, real)
    model = randomised(
        t.MetaClip2VisionModel(t.MetaClip2VisionConfig(**hf(size, intermediate_size=size.mlp)))
    )
    state = timm_state(model)
    state |= {
        "cls_token": state["cls_token"][None, None],
        "pos_embed": state["pos_embed"][None],
        **head(size.width, 1024),
    }
    return Reference(
        "transformers MetaClip2VisionModel",
        state,
        lambda x: model(x).pooler_output,
        timm_vit(view, real),
    )


def head(width: int, classes: int) -> State:
    """What a published checkpoint has besides, and the view drops."""
    return {"head.weight": torch.zeros(classes, width), "head.bias": torch.zeros(classes)}


def owlv2(view: str, real: bool) -> Reference:
    import open_clip
    import transformers as t

    size, crop = size_of(view, real), spec_of(view, real).preprocess.crop
    config = t.Owlv2Config(
        text_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 50,
        },
        vision_config=hf(size, intermediate_size=size.mlp),
        projection_dim=8,
    )
    tower = randomised(
        open_clip.transformer.VisionTransformer(
            image_size=crop,
            patch_size=size.patch,
            width=size.width,
            layers=size.depth,
            heads=size.heads,
            mlp_ratio=size.mlp / size.width,
            output_dim=1,
            act_layer=open_clip.transformer.QuickGELU,
            norm_layer=open_clip.transformer.LayerNorm,
        )
    )
    tower.proj = None
    table = drawn("table", (1 + (size.table // size.patch) ** 2, size.width))
    with torch.no_grad():
        tower.positional_embedding.copy_(
            resampled(table[None], crop // size.patch)[0] if size.table != crop else table
        )
    state: State = {}
    for name, tensor in tower.state_dict().items():
        name = re.sub(r"^transformer\.resblocks\.", "encoder.layers.", name)
        for there, here in (
            (r"\.ln_(\d)\.", r".layer_norm\1."),
            ("^ln_pre", "pre_layernorm"),
            ("^ln_post", "post_layernorm"),
            (r"mlp\.c_fc", "mlp.fc1"),
            (r"mlp\.c_proj", "mlp.fc2"),
            (r"\.attn\.out_proj", ".self_attn.out_proj"),
            (r"^conv1\.", "embeddings.patch_embedding."),
            ("^class_embedding", "embeddings.class_embedding"),
            ("^positional_embedding", "embeddings.position_embedding.weight"),
        ):
            name = re.sub(there, here, name)
        if ".attn.in_proj_" in name:
            state |= {
                f"{name.replace('.attn.in_proj_', f'.self_attn.{part}_proj.')}": piece
                for part, piece in zip("qkv", tensor.chunk(3), strict=True)
            }
        else:
            state[name] = table if name.startswith("embeddings.position") else tensor
    published = {f"owlv2.vision_model.{name}": tensor for name, tensor in state.items()}
    published |= {
        name: torch.zeros(2)
        for name in (
            "owlv2.text_model.embeddings.token_embedding.weight",
            "owlv2.logit_scale",
            "owlv2.visual_projection.weight",
            "owlv2.text_projection.weight",
            "class_head.dense0.bias",
            "box_head.dense0.bias",
            "objectness_head.dense0.bias",
            "layer_norm.weight",
        )
    }
    rule = "; how its table is resampled is transformers' own rule" if size.table != crop else ""
    return Reference(
        f"open_clip VisionTransformer{rule}",
        published,
        tower,
        spec_of(view, real),
        {"config.json": config.to_json_string()},
    )


# --- DINO


def dinov2_registers(view: str, real: bool) -> Reference:
    import transformers as t

    size, crop = size_of(view, real), spec_of(view, real).preprocess.crop
    shapes = (
        vit_shapes(size)
        | {"reg_token": (1, 4, size.width)}
        | {f"blocks.{i}.ls{j}.gamma": (size.width,) for i in range(size.depth) for j in (1, 2)}
    )
    state = {name: drawn(name, shape) for name, shape in shapes.items()}
    published = {}
    for name, tensor in state.items():
        for there, here in (
            (r"^blocks\.", "encoder.layer."),
            (r"ls(\d)\.gamma", r"layer_scale\1.lambda1"),
            (r"\.attn\.proj\.", ".attention.output.dense."),
            ("^cls_token", "embeddings.cls_token"),
            ("^reg_token", "embeddings.register_tokens"),
            ("^pos_embed", "embeddings.position_embeddings"),
            (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
            (r"^norm\.", "layernorm."),
        ):
            name = re.sub(there, here, name)
        if ".attn.qkv." in name:
            published |= {
                name.replace(".attn.qkv.", f".attention.attention.{part}."): piece
                for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            }
        else:
            published[name] = tensor
    published["embeddings.mask_token"] = torch.zeros(1, size.width)
    config = t.Dinov2WithRegistersConfig(**hf(size, num_register_tokens=4))
    here = state | {"pos_embed": resampled(state["pos_embed"], crop // size.patch, antialias=True)}
    return Reference(
        "restated: DINOv2 with registers",
        published,
        lambda x: norm(here, "norm", vit(here, x, size.heads)[:, 0]),
        spec_of(view, real),
        {"config.json": config.to_json_string()},
    )


def dinov2(view: str, real: bool) -> Reference:
    import transformers as t

    size, crop = size_of(view, real), spec_of(view, real).preprocess.crop
    giant, sides = view == "dinov2-g14", (size.table // size.patch, crop // size.patch)
    model = randomised(
        t.Dinov2Model(t.Dinov2Config(**hf(size._replace(table=crop), use_swiglu_ffn=giant)))
    )
    table = drawn("pos_embed", (1, 1 + sides[0] ** 2, size.width))
    grid = (
        table[:, 1:].unflatten(1, (sides[0], sides[0])).permute(0, 3, 1, 2)
    )  # dinov2/models/vision_transformer.py, interpolate_pos_encoding
    grid = F.interpolate(
        grid, scale_factor=((sides[1] + 0.1) / sides[0],) * 2, mode="bicubic", antialias=False
    )
    with torch.no_grad():
        model.embeddings.position_embeddings.copy_(torch.cat([table[:, :1], grid.flatten(2).mT], 1))
    state = joined(
        renamed(timm_state(model), (r"mlp\.down_proj", "mlp.fc2")), ("gate_proj", "up_proj"), "fc1"
    )
    state["pos_embed"] = table
    return Reference(
        "transformers Dinov2Model, positions restated",
        state,
        lambda x: model(x).pooler_output,
        timm_vit(view, real, **({"mlp_ratio": 5.5} if giant else {})),
        model=model,
    )


def dinov3(view: str, real: bool) -> Reference:
    import transformers as t

    size = size_of(view, real)
    model = randomised(
        t.DINOv3ViTModel(
            t.DINOv3ViTConfig(**hf(size, intermediate_size=size.mlp, num_register_tokens=4))
        )
    )
    state = renamed(model.state_dict(), *BLOCKS)
    for name in [name for name in state if name.endswith(("q_proj.bias", "v_proj.bias"))]:
        state.pop(name).zero_()  # as they are in the published ones; timm has none
    state = joined(state, ("q_proj", "k_proj", "v_proj"), "qkv")
    state = renamed(
        state,
        (r"mlp\.up_proj", "mlp.fc1"),
        (r"mlp\.down_proj", "mlp.fc2"),
        (r"ls(\d)\.gamma", r"gamma_\1"),
    )
    return Reference(
        "transformers DINOv3ViTModel", state, lambda x: model(x).pooler_output, timm_vit(view, real)
    )


def dinov3_convnext(view: str, real: bool) -> Reference:
    import transformers as t

    widths, depths = (
        ([128, 256, 512, 1024], [3, 3, 27, 3]) if real else ([8, 16, 24, 32], [1, 2, 2, 1])
    )
    model = randomised(
        t.DINOv3ConvNextModel(t.DINOv3ConvNextConfig(hidden_sizes=widths, depths=depths))
    )
    state = renamed(
        model.state_dict(),
        (r"^model\.stages\.0\.downsample_layers\.", "stem."),
        (r"^model\.", ""),
        (r"downsample_layers\.", "downsample."),
        (r"\.layers\.", ".blocks."),
        (r"depthwise_conv", "conv_dw"),
        (r"\.layer_norm\.", ".norm."),
        (r"pointwise_conv(\d)", r"mlp.fc\1"),
        (r"^layer_norm\.", "head.norm."),
    )
    return Reference(
        "transformers DINOv3ConvNextModel",
        state,
        lambda x: model(x).pooler_output,
        spec_of(view, real, 64, dims=widths, depths=depths),
    )


def tipsv2(view: str, real: bool) -> Reference:
    import transformers as t

    size = size_of(view, real)
    model = randomised(t.Tipsv2VisionModel(t.Tipsv2VisionConfig(**hf(size, mlp_ratio=4))))
    state = timm_state(model)  # timm adds the class token's position to it once and for all
    state["cls_token"], state["pos_embed"] = (
        state["cls_token"] + state["pos_embed"][:, :1],
        state["pos_embed"][:, 1:],
    )
    del state["mask_token"]
    return Reference(
        "transformers Tipsv2VisionModel",
        state,
        lambda x: model(x).pooler_output,
        timm_vit(view, real),
    )


# --- EVA


def eva01(view: str, real: bool) -> Reference:
    import transformers as t

    size = size_of(view, real)
    model = randomised(
        t.Blip2VisionModel(t.Blip2VisionConfig(**hf(size, intermediate_size=size.mlp)))
    )
    state: State = head(size.width, 1024)
    for name, tensor in timm_state(model).items():
        if name.endswith(".qkv.bias"):
            q, k, v = tensor.chunk(3)
            k.zero_()  # as it is in the published one; timm has none
            state |= {name.replace("qkv.bias", "q_bias"): q, name.replace("qkv.bias", "v_bias"): v}
        else:
            state[name] = tensor
    return Reference(
        "transformers Blip2VisionModel, whose tower is EVA-CLIP-g's",
        state,
        lambda x: model(x).last_hidden_state[:, 0],
        timm_vit(view, real, mlp_ratio=4),
    )


def blip(view: str, real: bool) -> Reference:
    import transformers as t

    size = size_of(view, real)
    state = {name: drawn(name, shape) for name, shape in vit_shapes(size).items()}
    published = renamed(
        state,
        (r"^blocks\.", "encoder.layers."),
        (r"\.attn\.proj\.", ".self_attn.projection."),
        (r"\.attn\.", ".self_attn."),
        (r"\.norm(\d)\.", r".layer_norm\1."),
        ("^cls_token", "embeddings.class_embedding"),
        ("^pos_embed", "embeddings.position_embedding"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
        (r"^norm\.", "post_layernorm."),
        ("^", "vision_model."),
    )
    published |= {
        name: torch.zeros(2)
        for name in (
            "query_tokens",
            "qformer.layernorm.weight",
            "vision_projection.weight",
            "text_projection.weight",
            "itm_head.weight",
            "embeddings.word_embeddings.weight",
        )
    }
    config = t.Blip2Config(vision_config=hf(size, intermediate_size=size.mlp))
    return Reference(
        "restated: EVA-CLIP-g; the norm, twice, is transformers' own rule",
        published,
        lambda x: norm(state, "norm", norm(state, "norm", vit(state, x, size.heads)[:, 0])),
        spec_of(view, real),
        {"config.json": config.to_json_string()},
    )


EVA02_TIMM = (
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"\.ffn_ln\.", ".norm."),
    (r"\.([qv])_bias", r".\1_proj.bias"),
    (r"^norm\.", "fc_norm."),
)


def eva02(view: str, real: bool) -> Reference:
    size = size_of(view, real)
    state = {name: drawn(name, shape) for name, shape in vit_shapes(size, "three").items()}
    angles = rotary(size.table // size.patch, size.width // size.heads, 0, columns_first=False)
    return Reference(
        "restated: EVA-02, the mean of the patches, its norm",
        renamed(state, *EVA02_TIMM),
        lambda x: norm(state, "norm", vit(state, x, size.heads, angles_TD=angles)[:, 1:].mean(1)),
        timm_vit(view, real, ref_feat_shape=[4, 4]),
    )


# --- Perception Encoder


def pe_core(view: str, real: bool) -> Reference:
    size = size_of(view, real)
    D, M = size.width, size.mlp
    shapes = vit_shapes(size, patch_bias=False) | {
        "norm_pre.weight": (D,),
        "norm_pre.bias": (D,),
        "attn_pool.latent": (1, 1, D),
    }
    for name, (out, inner) in {
        "q": (D, D),
        "kv": (2 * D, D),
        "proj": (D, D),
        "mlp.fc1": (M, D),
        "mlp.fc2": (D, M),
    }.items():
        shapes |= {f"attn_pool.{name}.weight": (out, inner), f"attn_pool.{name}.bias": (out,)}
    state = {
        name: drawn(name, shape)
        for name, shape in (
            shapes | {"attn_pool.norm.weight": (D,), "attn_pool.norm.bias": (D,)}
        ).items()
    }
    angles = rotary(size.table // size.patch, D // size.heads, 1, columns_first=True)

    def forward(x: torch.Tensor) -> torch.Tensor:
        """Its attention pool is torch's own nn.MultiheadAttention, over all tokens, the class token
        among them; with eight heads."""
        x = norm(state, "norm", vit(state, x, size.heads, 1e-5, angles), 1e-5)
        weight, bias = (
            torch.cat([state[f"attn_pool.{part}.{kind}"] for part in ("q", "kv")])
            for kind in ("weight", "bias")
        )
        query = state["attn_pool.latent"].expand(len(x), 1, D).transpose(0, 1)
        x = F.multi_head_attention_forward(
            query,
            x.transpose(0, 1),
            x.transpose(0, 1),
            D,
            8,
            weight,
            bias,
            None,
            None,
            False,
            0.0,
            state["attn_pool.proj.weight"],
            state["attn_pool.proj.bias"],
            training=False,
            need_weights=False,
        )[0][0]
        inner = F.gelu(linear(state, "attn_pool.mlp.fc1", norm(state, "attn_pool.norm", x, 1e-5)))
        return x + linear(state, "attn_pool.mlp.fc2", inner)

    return Reference(
        "restated: PE-Core",
        state | head(D, 1024),
        forward,
        timm_vit(view, real, ref_feat_shape=[4, 4]),
    )


# --- MAE, SigLIP, AIMv2, Hiera


def mae(view: str, real: bool) -> Reference:
    import transformers as t

    size = size_of(view, real)
    model = randomised(
        t.ViTModel(
            t.ViTConfig(**hf(size, intermediate_size=size.mlp, layer_norm_eps=1e-6)),
            add_pooling_layer=False,
        )
    )
    decoder = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_pos_embed": torch.zeros(1, 17, 8),
        "decoder_blocks.0.norm1.weight": torch.zeros(8),
    }
    return Reference(
        "transformers ViTModel",
        timm_state(model) | decoder,
        lambda x: model(x).last_hidden_state[:, 0],
        timm_vit(view, real),
    )


def siglip(view: str, real: bool) -> Reference:
    import transformers as t

    size = size_of(view, real)
    model = randomised(
        t.SiglipVisionModel(t.SiglipVisionConfig(**hf(size, intermediate_size=size.mlp)))
    )
    state = timm_state(model)
    weight, bias, D = (
        state.pop("head.attn.in_proj_weight"),
        state.pop("head.attn.in_proj_bias"),
        size.width,
    )
    state |= {
        "attn_pool.q.weight": weight[:D],
        "attn_pool.q.bias": bias[:D],
        "attn_pool.kv.weight": weight[D:],
        "attn_pool.kv.bias": bias[D:],
    }
    state["pos_embed"] = state["pos_embed"][None]
    state = renamed(
        state,
        (r"^head\.probe", "attn_pool.latent"),
        (r"^head\.attn\.proj|^head\.attn\.out_proj", "attn_pool.proj"),
        (r"^head\.layernorm", "attn_pool.norm"),
        (r"^head\.mlp", "attn_pool.mlp"),
    )
    return Reference(
        "transformers SiglipVisionModel",
        state,
        lambda x: model(x).pooler_output,
        timm_vit(view, real, mlp_ratio=4),
    )


def aimv2(view: str, real: bool) -> Reference:
    import transformers as t

    size = size_of(view, real)
    model = randomised(
        t.Aimv2VisionModel(
            t.Aimv2VisionConfig(**hf(size, intermediate_size=size.mlp, use_head=False))
        )
    )
    state = renamed(
        timm_state(model),
        (r"^embeddings\.patch_embed\.", "patch_embed.proj."),
        (r"^embeddings\.rms_norm\.", "patch_embed.norm."),
        (r"\.rms_norm(\d)\.", r".norm\1."),
        (r"^rms_norm\.", "norm."),
        (r"attn\.out_proj", "attn.proj"),
        (r"ffn\.gate_proj", "mlp.fc1_g"),
        (r"ffn\.up_proj", "mlp.fc1_x"),
        (r"ffn\.down_proj", "mlp.fc2"),
    )
    state["pos_embed"] = state["pos_embed"][None]
    return Reference(
        "transformers Aimv2VisionModel",
        state,
        lambda x: model(x).last_hidden_state.mean(1),
        timm_vit(view, real),
    )


def hiera(view: str, real: bool) -> Reference:
    import transformers as t

    width, side, depths, heads = (
        (96, 224, [2, 3, 16, 3], [1, 2, 4, 8]) if real else (16, 64, [1, 2, 2, 1], [1, 2, 4, 8])
    )
    model = randomised(
        t.HieraModel(
            t.HieraConfig(
                embed_dim=width,
                image_size=[side, side],
                depths=depths,
                num_heads=heads,
                num_query_pool=2,
            )
        )
    )
    state = renamed(timm_state(model), (r"^pooler\.layernorm\.", "head.norm."))
    state = {
        re.sub(
            r"^encoder\.stages\.(\d)\.layers\.(\d+)",
            lambda found: f"blocks.{sum(depths[: int(found[1])]) + int(found[2])}",
            name,
        ): tensor
        for name, tensor in state.items()
    }
    state |= {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_embed.weight": torch.zeros(2),
        "multi_scale_fusion_heads.0.weight": torch.zeros(2),
    }
    return Reference(
        "transformers HieraModel",
        state,
        lambda x: model(x).pooler_output,
        spec_of(view, real, 64, 128, img_size=[64, 64], embed_dim=16, num_heads=1, stages=depths),
        model=model,
    )


# --- convolutions: ALIGN, SwAV


def align(view: str, real: bool) -> Reference:
    """289 pixels are odd, and the stem's padding beyond the end of them is never seen: as Keras has
    it where it does not know the size."""
    import timm
    import transformers as t

    model = timm.create_model(
        "tf_efficientnet_b7" if real else "tf_efficientnet_b0", num_classes=0, global_pool=""
    )
    model.conv_head, model.bn2 = nn.Identity(), nn.Identity()

    def forward(x: torch.Tensor) -> torch.Tensor:
        return model.blocks(model.bn1(F.conv2d(x, model.conv_stem.weight, stride=2))).mean((2, 3))

    model.forward = forward
    calibrated(
        randomised(model), (pixels(289 if real else 129, 8, seed=1) / 255 - 0.5) / 0.5
    )  # of another size they explode
    state = renamed(
        model.state_dict(),
        (r"^conv_stem\.", "embeddings.convolution."),
        (r"^bn1\.", "embeddings.batchnorm."),
        (r"^(blocks\.0\..*)\.conv_pw\.", r"\1.projection.project_conv."),
        (r"^(blocks\.0\..*)\.bn2\.", r"\1.projection.project_bn."),
        (
            r"^(blocks\.0\..*)\.bn1\.",
            r"\1.depthwise_conv.depthwise_norm.",
        ),  # those without an expansion
        (r"\.conv_pw\.", ".expansion.expand_conv."),
        (r"\.bn1\.", ".expansion.expand_bn."),
        (r"\.bn2\.", ".depthwise_conv.depthwise_norm."),
        (r"\.conv_pwl\.", ".projection.project_conv."),
        (r"\.bn3\.", ".projection.project_bn."),
        (r"\.conv_dw\.", ".depthwise_conv.depthwise_conv."),
        (r"\.se\.conv_(reduce|expand)\.", r".squeeze_excite.\1."),
    )
    at = [
        f"{stage}.{block}"
        for stage, blocks in enumerate(model.blocks)
        for block in range(len(blocks))
    ]
    state = {
        re.sub(
            r"^blocks\.(\d+\.\d+)", lambda found: f"encoder.blocks.{at.index(found[1])}", name
        ): tensor
        for name, tensor in state.items()
    }
    published = {f"vision_model.{name}": tensor for name, tensor in state.items()}
    published |= {
        name: torch.zeros(2)
        for name in (
            "text_model.embeddings.word_embeddings.weight",
            "text_projection.weight",
            "temperature",
        )
    }
    config = t.AlignConfig(
        vision_config={"image_size": 289}
        if real
        else {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}
    )
    return Reference(
        "timm EfficientNet, padded as Keras pads a size it does not know",
        published,
        forward,
        spec_of(view, real, 129, 320),
        {"config.json": config.to_json_string()},
    )


class Bottleneck(nn.Module):
    def __init__(self, inner: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = (
            nn.Conv2d(planes, planes, 3, stride, 1, bias=False),
            nn.BatchNorm2d(planes),
        )
        self.conv3, self.bn3 = (
            nn.Conv2d(planes, planes * 4, 1, bias=False),
            nn.BatchNorm2d(planes * 4),
        )
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class SwavResNet(nn.Module):
    """swav/src/resnet50.py, eval: padding 1, then a convolution of padding 2;
    every width `widen` times."""

    def __init__(self, layers: list[int], widen: int) -> None:
        super().__init__()
        self.inner = planes = 64 * widen
        self.padding = nn.ConstantPad2d(1, 0.0)
        self.conv1, self.bn1 = (
            nn.Conv2d(3, planes, 7, 2, padding=2, bias=False),
            nn.BatchNorm2d(planes),
        )
        for i, blocks in enumerate(layers):
            setattr(self, f"layer{i + 1}", self.stage(planes * 2**i, blocks, 1 if i == 0 else 2))
        self.projection_head = nn.Sequential(
            nn.Linear(self.inner, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)
        )
        self.prototypes = nn.Linear(4, 5, bias=False)

    def stage(self, planes: int, blocks: int, stride: int) -> nn.Module:
        shortcut = nn.Sequential(
            nn.Conv2d(self.inner, planes * 4, 1, stride, bias=False), nn.BatchNorm2d(planes * 4)
        )
        made = [Bottleneck(self.inner, planes, stride, shortcut)]
        self.inner = planes * 4
        return nn.Sequential(
            *made, *[Bottleneck(self.inner, planes, 1, None) for _ in range(blocks - 1)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(self.padding(x)))), 3, 2, 1)
        for i in range(4):
            x = getattr(self, f"layer{i + 1}")(x)
        return x.mean((2, 3))


def swav(view: str, real: bool) -> Reference:
    layers, widen = (
        [3, 4, 6, 3] if real else [2, 1, 1, 2],
        {"swav": 4 if real else 2, "swav-rn50": 1}[view],
    )
    model = calibrated(
        randomised(SwavResNet(layers, widen)), (pixels(64, 8, seed=1) / 255 - 0.5) / 0.5
    )
    return Reference(
        "restated: SwAV's ResNet",
        {f"module.{name}": tensor for name, tensor in model.state_dict().items()},
        model,
        spec_of(
            view, real, 64, 2048 * widen, layers=layers, **({"widen": widen} if widen > 1 else {})
        ),
    )


# --- EsViT


class Swin(NamedTuple):
    width: int
    depths: list[int]
    heads: list[int]
    window: int
    side: int  # of the map that the first stage sees


SWIN, SMALL_SWIN = (
    Swin(128, [2, 2, 18, 2], [4, 8, 16, 32], 14, 56),
    Swin(16, [2, 2, 3, 2], [1, 2, 2, 4], 4, 16),
)


def swin_state(swin: Swin, seed: int = 0) -> State:
    """A checkpoint of microsoft/esvit's Swin: the downsampling at the end of a stage, the buffers
    among the tensors, heads beside them."""
    chance = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance) * (
            shape[-1] ** -0.5 if len(shape) > 1 else 0.2
        )

    def pair(name: str, out: int, inner: int) -> State:
        return {f"{name}.weight": draw(out, inner), f"{name}.bias": draw(out)}

    def normed(name: str, width: int) -> State:
        return {f"{name}.weight": draw(width) + 1, f"{name}.bias": draw(width)}

    state = {
        "patch_embed.proj.weight": draw(swin.width, 3, 4, 4),
        "patch_embed.proj.bias": draw(swin.width),
        **normed("patch_embed.norm", swin.width),
    }
    for i, (depth, heads) in enumerate(zip(swin.depths, swin.heads, strict=True)):
        width, side = swin.width * 2**i, swin.side // 2**i
        window = min(swin.window, side)
        for j in range(depth):
            name = f"layers.{i}.blocks.{j}"
            state |= (
                normed(f"{name}.norm1", width)
                | pair(f"{name}.attn.qkv", 3 * width, width)
                | pair(f"{name}.attn.proj", width, width)
            )
            state |= (
                normed(f"{name}.norm2", width)
                | pair(f"{name}.mlp.fc1", 4 * width, width)
                | pair(f"{name}.mlp.fc2", width, 4 * width)
            )
            state[f"{name}.attn.relative_position_bias_table"] = torch.randn(
                (2 * window - 1) ** 2, heads, generator=chance
            )
            state[f"{name}.attn.relative_position_index"] = relative_index(window)
            if j % 2 and side > swin.window:
                state[f"{name}.attn_mask"] = shift_mask(side, swin.window)
        if i < 3:
            state |= normed(f"layers.{i}.downsample.norm", 4 * width) | {
                f"layers.{i}.downsample.reduction.weight": draw(2 * width, 4 * width)
            }
    return (
        state
        | normed("norm", swin.width * 8)
        | pair("head.mlp.0", 8, swin.width * 8)
        | pair("head_dense.mlp.0", 8, swin.width * 8)
    )


def relative_index(window: int) -> torch.Tensor:
    at = torch.stack(
        torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    ).flatten(1)
    offset = at[:, :, None] - at[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def windows(x_BHWC: torch.Tensor, window: int) -> torch.Tensor:
    B, H, W, C = x_BHWC.shape
    return (
        x_BHWC.view(B, H // window, window, W // window, window, C)
        .permute(0, 1, 3, 2, 4, 5)
        .reshape(-1, window * window, C)
    )


def shift_mask(side: int, window: int) -> torch.Tensor:
    """-100 between tokens that stand beside each other only because the image was rolled."""
    regions, parts = (
        torch.zeros(1, side, side, 1),
        (slice(0, -window), slice(-window, -(window // 2)), slice(-(window // 2), None)),
    )
    for number, (rows, columns) in enumerate(
        (rows, columns) for rows in parts for columns in parts
    ):
        regions[:, rows, columns] = number
    found = windows(regions, window).squeeze(-1)
    return (found[:, None, :] != found[:, :, None]).float() * -100.0


def swin_means(swin: Swin, state: State, x: torch.Tensor) -> list[torch.Tensor]:
    """(B, C) means over the patches: of the normed last map, then of the last four blocks, as
    forward_return_n_last_blocks does it."""
    x = norm(
        state,
        "patch_embed.norm",
        F.conv2d(
            x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4
        ).permute(0, 2, 3, 1),
    )
    seen = []
    for i, (depth, heads) in enumerate(zip(swin.depths, swin.heads, strict=True)):
        B, side, _, C = x.shape
        window = min(swin.window, side)
        for j in range(depth):
            name, shift = (
                f"layers.{i}.blocks.{j}",
                swin.window // 2 if j % 2 and side > swin.window else 0,
            )
            part = windows(norm(state, f"{name}.norm1", x).roll((-shift, -shift), (1, 2)), window)
            q, k, v = (
                linear(state, f"{name}.attn.qkv", part)
                .view(len(part), -1, 3, heads, C // heads)
                .permute(2, 0, 3, 1, 4)
            )
            weights = q * (C // heads) ** -0.5 @ k.transpose(-2, -1)
            weights = weights + state[f"{name}.attn.relative_position_bias_table"][
                relative_index(window)
            ].permute(2, 0, 1)
            if shift:
                weights = (
                    weights.view(B, -1, *weights.shape[1:])
                    + shift_mask(side, window)[None, :, None]
                ).view_as(weights)
            part = linear(
                state, f"{name}.attn.proj", (weights.softmax(-1) @ v).transpose(1, 2).flatten(2)
            )
            whole = (
                part.view(B, side // window, side // window, window, window, C)
                .permute(0, 1, 3, 2, 4, 5)
                .reshape(B, side, side, C)
            )
            x = x + whole.roll((shift, shift), (1, 2))
            x = x + linear(
                state,
                f"{name}.mlp.fc2",
                F.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", x))),
            )
            seen.append((norm(state, "norm", x) if i == 3 else x).mean((1, 2)))
        if i < 3:
            x = torch.cat(
                [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1
            )
            x = linear(
                state,
                f"layers.{i}.downsample.reduction",
                norm(state, f"layers.{i}.downsample.norm", x),
            )
    return [norm(state, "norm", x).mean((1, 2)), *seen[-4:]]


def esvit(view: str, real: bool) -> Reference:
    swin = SWIN if real else SMALL_SWIN
    state, C = swin_state(swin), swin.width * 8
    last4 = view == "esvit-last4"

    def forward(x: torch.Tensor) -> torch.Tensor:
        mean, *last = swin_means(swin, state, x)
        return torch.cat(last, 1) if last4 else mean

    return Reference(
        "restated: EsViT's Swin",
        {f"module.{name}": tensor for name, tensor in state.items()},
        forward,
        spec_of(
            view,
            real,
            64,
            3 * C if last4 else C,
            img_size=64,
            window_size=swin.window,
            embed_dim=swin.width,
            depths=swin.depths,
            num_heads=swin.heads,
        ),
    )


REFERENCES: dict[str, Callable[[str, bool], Reference]] = {
    "aimv2": aimv2,
    "align": align,
    "blip": blip,
    "clip": clip,
    "clip-b16": clip,
    "dinov2": dinov2_registers,
    "dinov2-b14": dinov2,
    "dinov2-g14": dinov2,
    "dinov2-l14": dinov2,
    "dinov3": dinov3,
    "dinov3-convnext": dinov3_convnext,
    "esvit": esvit,
    "esvit-last4": esvit,
    "eva01": eva01,
    "eva02": eva02,
    "hiera": hiera,
    "mae": mae,
    "metaclip2": metaclip2,
    "owlv2": owlv2,
    "owlv2-224": owlv2,
    "pe-core": pe_core,
    "siglip": siglip,
    "siglip2": siglip,
    "swav": swav,
    "swav-rn50": swav,
    "tipsv2": tipsv2,
}
