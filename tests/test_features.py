"""The right feature of each family: our view against an independent implementation with the same random tensors, checkpoints in their authors' layout."""

import argparse
import json
import re
from pathlib import Path

import pytest
import torch
from models import calibrated, images, load, pixels, randomised, same, unpickle_here, write_spec, write_weights
from torch import nn
from torch.nn import functional as F  # noqa: N812

from extract.convert import ConvertConfig, convert
from extract.weights import find_weights

HF_FILES = ("config.json", "model.safetensors")
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 5, "num_heads": 2}
SMALL = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "initializer_range": 0.02}


def renamed(state: dict[str, torch.Tensor], *rules: tuple[str, str]) -> dict[str, torch.Tensor]:
    for pattern, replacement in rules:
        state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    return state


def joined(state: dict[str, torch.Tensor], names: tuple[str, ...], into: str) -> dict[str, torch.Tensor]:
    """`x.q_proj.weight`, `x.k_proj.weight`, `x.v_proj.weight` -> `x.qkv.weight`, wherever they are."""
    found = {name: tensor for name, tensor in state.items() if not re.search(rf"\.({'|'.join(names)})\.", name)}
    for name, tensor in state.items():
        if f".{names[0]}." in name:
            found[name.replace(f".{names[0]}.", f".{into}.")] = torch.cat([tensor, *(state[name.replace(names[0], other)] for other in names[1:])])
    return found


# --- CLIP

def test_clip_is_the_class_token_after_the_last_norm_in_open_clip_and_in_timm(tmp_path):
    import open_clip

    config = {"model_cfg": {"embed_dim": 16, "quick_gelu": True, "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
                            "vision_cfg": {"image_size": 32, "layers": 5, "width": 64, "head_width": 32, "patch_size": 8}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    model = randomised(open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False))
    state = model.state_dict()
    write_weights(tmp_path, state, "open_clip_model.safetensors")
    write_weights(tmp_path, state)
    text = sorted({name.split(".")[0] for name in state if not name.startswith("visual.")})
    arguments = VIT | {"embed_dim": 64}
    views = [write_spec(tmp_path, "tiny", "pooled", 64, backend="open_clip", files=("open_clip_config.json", "open_clip_model.safetensors"), name="a"),
             write_spec(tmp_path, "vit_base_patch16_clip_quickgelu_224", "cls", 64, arguments=arguments, drop=[*text, "visual.proj"], name="b")]
    with torch.inference_mode():
        embs = [load(view)(pixels()) for view in views]
        assert same(embs[0], embs[1]) and same(embs[0] @ state["visual.proj"], model.encode_image(images(pixels())))
        exact = write_spec(tmp_path, "vit_base_patch16_clip_224", "cls", 64, arguments=arguments, drop=[*text, "visual.proj"], name="c")
        assert (load(exact)(pixels()) - embs[0]).norm() > 1e-3 * embs[0].norm(), "the other GELU would be seen"


# --- DINOv2, DINOv3, MAE, SigLIP, Hiera: timm and transformers

BLOCKS = ((r"^encoder\.layers?\.", "blocks."), (r"^layers\.", "blocks."), (r"^model\.layer\.", "blocks."),
          (r"\.attention\.o_proj\.|\.self_attn\.out_proj\.", ".attn.proj."),
          (r"\.(attention|self_attn)\.", ".attn."), (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"), (r"^embeddings\.cls_token", "cls_token"),
          (r"^embeddings\.register_tokens", "reg_token"), (r"^embeddings\.patch_embeddings?\.(projection\.)?", "patch_embed.proj."),
          (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"), (r"^layernorm\.|^post_layernorm\.", "norm."), (r"\.layer_norm(\d)\.", r".norm\1."),
          (r"\.layernorm_before\.", ".norm1."), (r"\.layernorm_after\.", ".norm2."))


def timm_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return joined(renamed(model.state_dict(), *BLOCKS), ("q_proj", "k_proj", "v_proj"), "qkv")


def dinov2(folder: Path, registers: int = 0, giant: bool = False) -> nn.Module:
    """transformers' model, saved as it saves itself, and beside it the same tensors as timm's checkpoint has them."""
    import transformers as t

    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    extra = {"num_register_tokens": registers} if registers else {}
    model = randomised(getattr(t, f"{kind}Model")(getattr(t, f"{kind}Config")(**SMALL, **extra, use_swiglu_ffn=giant)))
    (folder / "hf").mkdir()
    model.save_pretrained(folder / "hf")
    state = timm_state(model)
    if registers:           # timm adds the class token's position to it once and for all
        state["cls_token"], state["pos_embed"] = state["cls_token"] + state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    state = joined(renamed(state, (r"mlp\.down_proj", "mlp.fc2")), ("gate_proj", "up_proj"), "fc1")
    write_weights(folder, {name: tensor for name, tensor in state.items() if "mask_token" not in name})
    return model


@pytest.mark.parametrize(("architecture", "registers", "more"), [
    ("vit_base_patch14_dinov2", 0, {}), ("vit_large_patch14_dinov2", 0, {}), ("vit_giant_patch14_dinov2", 0, {"mlp_ratio": 5.5}),
    ("vit_large_patch14_reg4_dinov2", 4, {})])
def test_dinov2_is_the_normed_class_token_in_timm_and_in_transformers(tmp_path, architecture, registers, more):
    model = dinov2(tmp_path, registers, giant="giant" in architecture)
    ours = load(write_spec(tmp_path, architecture, "cls", 32, arguments=VIT | more))
    last4 = load(write_spec(tmp_path, architecture, "last4", 128, arguments=VIT | more, name="l"))
    theirs = load(write_spec(tmp_path / "hf", f"Dinov2{'WithRegisters' * bool(registers)}Model", "cls", 32, backend="transformers", files=HF_FILES))
    with torch.inference_mode():
        out = model(images(pixels()), output_hidden_states=True)
        assert same(ours(pixels()), out.last_hidden_state[:, 0]) and same(theirs(pixels()), out.last_hidden_state[:, 0])
        assert same(last4(pixels()), torch.cat([model.layernorm(x)[:, 0] for x in out.hidden_states[-4:]], 1))
        assert same(ours(pixels()), last4(pixels())[:, -32:])


def test_the_mean_of_the_patches_leaves_out_the_class_token_and_the_registers(tmp_path):
    dinov2(tmp_path, registers=4)
    mean = load(write_spec(tmp_path / "hf", "Dinov2WithRegistersModel", "mean", 32, backend="transformers", files=HF_FILES))
    timm_mean = load(write_spec(tmp_path, "vit_large_patch14_reg4_dinov2", "mean", 32, arguments=VIT, rename={r"^norm\.": "fc_norm."}))
    with torch.inference_mode():
        tokens = mean.model(images(pixels())).last_hidden_state
        assert tokens.shape == (2, 1 + 4 + 16, 32) and same(mean(pixels()), tokens[:, 5:].mean(1))
        patches = timm_mean.model.forward_features(images(pixels()))[:, 5:]
        assert same(timm_mean(pixels()), timm_mean.model.fc_norm(patches.mean(1)))


def test_dinov3_is_the_normed_class_token_in_timm_and_in_transformers(tmp_path):
    import transformers as t

    model = randomised(t.DINOv3ViTModel(t.DINOv3ViTConfig(**SMALL, intermediate_size=128, num_register_tokens=4)))
    for name, tensor in model.state_dict().items():
        if name.endswith(("q_proj.bias", "v_proj.bias")):
            tensor.zero_()                      # as they are in the published ones; timm has none
    state = {name: tensor for name, tensor in renamed(model.state_dict(), *BLOCKS).items() if not name.endswith(("q_proj.bias", "v_proj.bias"))}
    state = joined(state, ("q_proj", "k_proj", "v_proj"), "qkv")
    write_weights(tmp_path, renamed(state, (r"mlp\.up_proj", "mlp.fc1"), (r"mlp\.down_proj", "mlp.fc2"), (r"ls(\d)\.gamma", r"gamma_\1"),
                                    (r"^embeddings\.mask_token", "mask_token")))
    ours = load(write_spec(tmp_path, "vit_large_patch16_dinov3", "cls", 32, arguments=VIT, drop=["mask_token"]))
    with torch.inference_mode():
        assert same(ours(pixels()), model(images(pixels())).last_hidden_state[:, 0])


def test_aimv2_is_the_mean_of_the_normed_patches_in_timm_and_in_transformers(tmp_path):
    import transformers as t

    model = randomised(t.Aimv2VisionModel(t.Aimv2VisionConfig(**SMALL, intermediate_size=88, use_head=False)))
    state = renamed(timm_state(model), (r"^embeddings\.patch_embed\.", "patch_embed.proj."), (r"^embeddings\.rms_norm\.", "patch_embed.norm."),
                    (r"\.rms_norm(\d)\.", r".norm\1."), (r"^rms_norm\.", "norm."), (r"attn\.out_proj", "attn.proj"), (r"ffn\.gate_proj", "mlp.fc1_g"),
                    (r"ffn\.up_proj", "mlp.fc1_x"), (r"ffn\.down_proj", "mlp.fc2"))
    state["pos_embed"] = state["pos_embed"][None]
    write_weights(tmp_path, state)
    ours = load(write_spec(tmp_path, "aimv2_large_patch14_224", "mean", 32, arguments=VIT))
    with torch.inference_mode():
        assert same(ours(pixels()), model(images(pixels())).last_hidden_state.mean(1))


def test_mae_is_the_normed_class_token_in_timm_and_in_transformers(tmp_path):
    import transformers as t

    model = randomised(t.ViTModel(t.ViTConfig(**SMALL, intermediate_size=128, layer_norm_eps=1e-6), add_pooling_layer=False))
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 17, 8), "decoder_blocks.0.norm1.weight": torch.zeros(8)}
    write_weights(tmp_path, timm_state(model) | decoder)
    ours = load(write_spec(tmp_path, "vit_large_patch16_224", "cls", 32, arguments=VIT, drop=["mask_token", "decoder", "head."]))
    with torch.inference_mode():
        assert same(ours(pixels()), model(images(pixels())).last_hidden_state[:, 0])


@pytest.mark.parametrize("architecture", ["vit_base_patch16_siglip_224", "vit_so400m_patch14_siglip_224"])
def test_siglip_is_the_attention_pool_in_timm_and_in_transformers(tmp_path, architecture):
    import transformers as t

    model = randomised(t.SiglipVisionModel(t.SiglipVisionConfig(**SMALL, intermediate_size=128)))
    state = timm_state(model)
    weight, bias = state.pop("head.attn.in_proj_weight"), state.pop("head.attn.in_proj_bias")
    state |= {"attn_pool.q.weight": weight[:32], "attn_pool.q.bias": bias[:32], "attn_pool.kv.weight": weight[32:], "attn_pool.kv.bias": bias[32:]}
    state["pos_embed"] = state["pos_embed"][None]
    write_weights(tmp_path, renamed(state, (r"^head\.probe", "attn_pool.latent"), (r"^head\.attn\.proj|^head\.attn\.out_proj", "attn_pool.proj"),
                                    (r"^head\.layernorm", "attn_pool.norm"), (r"^head\.mlp", "attn_pool.mlp")))
    ours = load(write_spec(tmp_path, architecture, "pooled", 32, arguments=VIT | {"mlp_ratio": 4, "act_layer": "gelu_tanh"}))
    exact = load(write_spec(tmp_path, architecture, "pooled", 32, arguments=VIT | {"mlp_ratio": 4}))
    with torch.inference_mode():
        expected = model(images(pixels())).pooler_output
        assert same(ours(pixels()), expected) and (exact(pixels()) - expected).norm() > 5e-5 * expected.norm(), "timm's own GELU is the exact one"


@pytest.mark.parametrize("view", ["siglip", "siglip2"])
def test_the_siglip_views_have_the_gelu_that_they_were_trained_with(view):
    from cache_specs.spec import load_spec

    assert load_spec(view).arguments == {"act_layer": "gelu_tanh"}


def test_hiera_pools_twice_and_norms_the_mean(tmp_path):
    import transformers as t

    model = randomised(t.HieraModel(t.HieraConfig(embed_dim=16, image_size=[64, 64], depths=[1, 2, 2, 1], num_heads=[1, 2, 4, 8], num_query_pool=2)))
    state = renamed(timm_state(model), (r"^pooler\.layernorm\.", "head.norm."))
    first = [0, 1, 3, 5]            # block of each stage
    state = {re.sub(r"^encoder\.stages\.(\d)\.layers\.(\d)", lambda found: f"blocks.{first[int(found[1])] + int(found[2])}", name): tensor
             for name, tensor in state.items()}
    write_weights(tmp_path, state)
    arguments = {"img_size": [64, 64], "embed_dim": 16, "num_heads": 1, "stages": [1, 2, 2, 1]}
    two, three = (load(write_spec(tmp_path, "hiera_base_224", "mean", 128, 64, arguments=arguments | {"q_pool": q}, name=f"q{q}")) for q in (2, 3))
    x = pixels(64)
    with torch.inference_mode():
        out = model(images(x))
        assert out.last_hidden_state.shape == (2, 16, 128), "64 pixels: 16 x 16 tokens, halved twice (224: 196)"
        assert same(two(x), out.pooler_output) and same(two(x), model.pooler.layernorm(out.last_hidden_state.mean(1)))
        assert (three(x) - two(x)).norm() > 1e-3 * two(x).norm()


# --- SwAV, from its authors' layout

class Bottleneck(nn.Module):
    def __init__(self, inner: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, planes * 4, 1, bias=False), nn.BatchNorm2d(planes * 4)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class SwavResNet(nn.Module):
    """swav/src/resnet50.py, eval: padding 1, then a convolution of padding 2; every width `widen` times."""

    def __init__(self, layers: list[int], widen: int) -> None:
        super().__init__()
        self.inner = planes = 64 * widen
        self.padding = nn.ConstantPad2d(1, 0.0)
        self.conv1, self.bn1 = nn.Conv2d(3, planes, 7, 2, padding=2, bias=False), nn.BatchNorm2d(planes)
        for i, blocks in enumerate(layers):
            setattr(self, f"layer{i + 1}", self.stage(planes * 2**i, blocks, 1 if i == 0 else 2))
        self.projection_head = nn.Sequential(nn.Linear(self.inner, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        self.prototypes = nn.Linear(4, 5, bias=False)

    def stage(self, planes: int, blocks: int, stride: int) -> nn.Module:
        shortcut = nn.Sequential(nn.Conv2d(self.inner, planes * 4, 1, stride, bias=False), nn.BatchNorm2d(planes * 4))
        made = [Bottleneck(self.inner, planes, stride, shortcut)]
        self.inner = planes * 4
        return nn.Sequential(*made, *[Bottleneck(self.inner, planes, 1, None) for _ in range(blocks - 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(self.padding(x)))), 3, 2, 1)
        for i in range(4):
            x = getattr(self, f"layer{i + 1}")(x)
        return x.mean((2, 3))


def as_url(folder: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: object, key: str | None = None, **given):
    """A view whose weights are the authors' checkpoint, converted by `make weights`."""
    unpickle_here(monkeypatch)
    monkeypatch.setenv("COVIEW_WEIGHTS", str(folder / "weights"))
    torch.save(checkpoint, folder / "checkpoint.pth.tar")
    spec = write_spec(folder, files=["made.safetensors"], **given)
    spec.source.write_text(spec.source.read_text().replace('path = "."', 'url = "https://nowhere/checkpoint.pth.tar"' + (f'\nkey = "{key}"' if key else "")))
    convert(ConvertConfig(view=str(spec.source), source=str(folder / "checkpoint.pth.tar")))
    from cache_specs.spec import load_spec
    from extract.backbones import load_backbone

    spec = load_spec(str(spec.source))
    return load_backbone(spec, find_weights(spec, None)[0], "cpu")


@pytest.mark.parametrize("widen", [1, 2])
def test_swav_is_the_mean_of_the_last_map_of_the_authors_network(tmp_path, monkeypatch, widen):
    model = calibrated(randomised(SwavResNet([2, 1, 1, 2], widen)), images(pixels(64, 8, seed=1)))
    arguments = {"layers": [2, 1, 1, 2]} | ({"widen": widen} if widen > 1 else {})
    backbone = as_url(tmp_path, monkeypatch, {f"module.{name}": tensor for name, tensor in model.state_dict().items()}, architecture="resnet50", output="mean",
                      width=2048 * widen, crop=64, arguments=arguments, strip="module.", drop=["projection_head.", "prototypes."])
    x = pixels(64, 3)
    with torch.inference_mode():
        assert same(backbone(x), model(images(x)))
        batch, alone = backbone.train()(x), torch.cat([backbone(x[i:i + 1]) for i in range(3)])
        assert not any(module.training for module in backbone.modules()) and same(batch, alone, 1e-5) and torch.equal(batch, backbone(x))


def test_align_gives_a_row_alone_what_it_gives_it_in_a_batch(tmp_path):
    import transformers as t

    small = t.AlignVisionConfig(image_size=64, width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=16)
    model = calibrated(randomised(t.AlignVisionModel(small)), images(pixels(64, 8, seed=1)))
    model.save_pretrained(tmp_path)
    backbone = load(write_spec(tmp_path, "AlignVisionModel", "pooled", 32, 64, backend="transformers", files=HF_FILES)).train()
    x = pixels(64, 3)
    with torch.inference_mode():
        batch = backbone(x)
        assert same(batch, model(images(x)).last_hidden_state.mean((2, 3))) and same(batch, torch.cat([backbone(x[i:i + 1]) for i in range(3)]), 1e-5)
    assert not any(module.training for module in backbone.modules())


# --- EsViT, from its authors' layout

DEPTHS, HEADS, WIDTH, WINDOW = [2, 2, 3, 2], [1, 2, 2, 4], 16, 4


def swin_state(chance: torch.Generator) -> dict[str, torch.Tensor]:
    """A checkpoint of microsoft/esvit's Swin: the downsampling at the end of a stage, the buffers among the tensors, heads beside them."""
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.2)

    def linear(name: str, out: int, inner: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": draw(out, inner), f"{name}.bias": draw(out)}

    def norm(name: str, width: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": draw(width) + 1, f"{name}.bias": draw(width)}

    state = {"patch_embed.proj.weight": draw(WIDTH, 3, 4, 4), "patch_embed.proj.bias": draw(WIDTH), **norm("patch_embed.norm", WIDTH)}
    for i, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        width, side = WIDTH * 2**i, 16 // 2**i
        window = min(WINDOW, side)
        for j in range(depth):
            name = f"layers.{i}.blocks.{j}"
            state |= norm(f"{name}.norm1", width) | linear(f"{name}.attn.qkv", 3 * width, width) | linear(f"{name}.attn.proj", width, width)
            state |= norm(f"{name}.norm2", width) | linear(f"{name}.mlp.fc1", 4 * width, width) | linear(f"{name}.mlp.fc2", width, 4 * width)
            state[f"{name}.attn.relative_position_bias_table"] = torch.randn((2 * window - 1)**2, heads, generator=chance)
            state[f"{name}.attn.relative_position_index"] = relative_index(window)
            if j % 2 and side > WINDOW:
                state[f"{name}.attn_mask"] = shift_mask(side)
        if i < 3:
            state |= norm(f"layers.{i}.downsample.norm", 4 * width) | {f"layers.{i}.downsample.reduction.weight": draw(2 * width, 4 * width)}
    return state | norm("norm", WIDTH * 8) | linear("head.mlp.0", 8, WIDTH * 8) | linear("head_dense.mlp.0", 8, WIDTH * 8)


def relative_index(window: int) -> torch.Tensor:
    at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    offset = at[:, :, None] - at[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def windows(x_BHWC: torch.Tensor, window: int) -> torch.Tensor:
    B, H, W, C = x_BHWC.shape
    return x_BHWC.view(B, H // window, window, W // window, window, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, C)


def shift_mask(side: int) -> torch.Tensor:
    """-100 between tokens that stand beside each other only because the image was rolled."""
    regions, parts = torch.zeros(1, side, side, 1), (slice(0, -WINDOW), slice(-WINDOW, -(WINDOW // 2)), slice(-(WINDOW // 2), None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in parts for columns in parts):
        regions[:, rows, columns] = number
    found = windows(regions, WINDOW).squeeze(-1)
    return (found[:, None, :] != found[:, :, None]).float() * -100.0


def esvit(state: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """(B, C) means over the patches: of the normed last map, then of the last four blocks, as forward_return_n_last_blocks does it."""
    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    x = norm("patch_embed.norm", F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4).permute(0, 2, 3, 1))
    seen = []
    for i, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        B, side, _, C = x.shape
        window = min(WINDOW, side)
        for j in range(depth):
            name, shift = f"layers.{i}.blocks.{j}", WINDOW // 2 if j % 2 and side > WINDOW else 0
            part = windows(norm(f"{name}.norm1", x).roll((-shift, -shift), (1, 2)), window)
            q, k, v = linear(f"{name}.attn.qkv", part).view(len(part), -1, 3, heads, C // heads).permute(2, 0, 3, 1, 4)
            attention = q * (C // heads)**-0.5 @ k.transpose(-2, -1)
            attention = attention + state[f"{name}.attn.relative_position_bias_table"][relative_index(window)].permute(2, 0, 1)
            if shift:
                attention = (attention.view(B, -1, *attention.shape[1:]) + shift_mask(side)[None, :, None]).view_as(attention)
            part = linear(f"{name}.attn.proj", (attention.softmax(-1) @ v).transpose(1, 2).flatten(2))
            whole = part.view(B, side // window, side // window, window, window, C).permute(0, 1, 3, 2, 4, 5).reshape(B, side, side, C)
            x = x + whole.roll((shift, shift), (1, 2))
            x = x + linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x))))
            seen.append((norm("norm", x) if i == 3 else x).mean((1, 2)))
        if i < 3:
            x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
            x = linear(f"layers.{i}.downsample.reduction", norm(f"layers.{i}.downsample.norm", x))
    return [norm("norm", x).mean((1, 2)), *seen[-4:]]


@pytest.mark.parametrize("output", ["mean", "last4"])
def test_esvit_is_the_teachers_mean_or_that_of_the_last_four_blocks(tmp_path, monkeypatch, output):
    teacher, student = (swin_state(torch.Generator().manual_seed(seed)) for seed in (0, 1))
    checkpoint = {"student": {f"module.{name}": tensor for name, tensor in student.items()}, "epoch": 300, "args": argparse.Namespace(lr=1e-3, arch="swin"),
                  "teacher": {f"module.{name}": tensor for name, tensor in teacher.items()}, "optimizer": {"state": {0: {"step": 1}}, "param_groups": []}}
    arguments = {"img_size": 64, "window_size": WINDOW, "embed_dim": WIDTH, "depths": DEPTHS, "num_heads": HEADS, "norm_eps": 1e-6}
    backbone = as_url(tmp_path, monkeypatch, checkpoint, key="teacher", architecture="swin_base_patch4_window7_224", output=output, crop=64,
                      width=128 if output == "mean" else 2 * 64 + 2 * 128, arguments=arguments, strip="module.", drop=["head.", "head_dense."])
    x = pixels(64, 3)
    with torch.inference_mode():
        mean, *last = esvit(teacher, images(x))
        assert same(backbone(x), mean if output == "mean" else torch.cat(last, 1))
        assert (backbone(x)[:, -128:] - esvit(student, images(x))[0]).norm() > 0.1 * mean.norm()


# --- OWLv2

def test_owlv2_is_the_normed_class_token_at_its_own_size_and_with_interpolated_positions_at_another(tmp_path):
    import transformers as t

    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    vision = {**SMALL, "intermediate_size": 64, "image_size": 64}
    model = randomised(t.Owlv2ForObjectDetection(t.Owlv2Config(text_config=text, vision_config=vision, projection_dim=8)))
    model.save_pretrained(tmp_path)
    from cache_specs.spec import load_spec
    tensors = load_spec("owlv2").tensors
    given = {"architecture": "Owlv2VisionModel", "output": "pooled", "width": 32, "backend": "transformers", "files": HF_FILES, "drop": tensors.drop,
             "rename": tensors.rename}
    own, other, plain = (load(write_spec(tmp_path, **given, crop=crop, arguments=arguments, name=f"v{i}")) for i, (crop, arguments) in enumerate(
        [(64, {}), (32, {"interpolate_pos_encoding": True}), (32, {})]))
    with torch.inference_mode():
        tower = model.owlv2.vision_model
        assert same(own(pixels(64)), tower.post_layernorm(tower(images(pixels(64))).last_hidden_state[:, 0]))
        with pytest.raises(RuntimeError, match="must match"):
            plain(pixels(32))
        table = tower.embeddings.position_embedding.weight
        grid = F.interpolate(table[1:].view(1, 8, 8, 32).permute(0, 3, 1, 2), size=(4, 4), mode="bicubic", align_corners=False)
        small = t.Owlv2VisionModel(t.Owlv2VisionConfig(**vision | {"image_size": 32})).eval()
        small.load_state_dict({f"vision_model.{name}": tensor for name, tensor in tower.state_dict().items()}
                              | {"vision_model.embeddings.position_embedding.weight": torch.cat([table[:1], grid[0].flatten(1).T])})
        assert same(other(pixels(32)), small(images(pixels(32))).pooler_output)
        assert same(other(pixels(64)), own(pixels(64)))
