"""timm's and torchvision's models: roles and matrices, written down from their sources. Run in a process of its own, with the folder
of the two libraries as argument: torchvision's wheel is built for CUDA, and what it takes to import it beside a CPU build of torch
is no business of other tests. Prints {name: what is wrong, or ""} as JSON."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import nn

from tests.unit.zoo.walk import EMBEDDING, GATE_UP, QKV, Expected, H, M, V, check_routing, check_steps


class Entry(NamedTuple):
    make: Callable[[Any, Any], nn.Module]  # (timm, torchvision.models) -> the model
    expected: Expected
    size: int = 32  # of the images
    narrow: int = 1  # training steps with so many times fewer channels


C = {"num_classes": 7}
SMALL = {**C, "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
PYRAMID = {**C, "embed_dims": (16, 16, 32, 32), "num_heads": (1, 2, 2, 2), "mlp_ratios": (2, 2, 2, 2), "depths": (1, 1, 1, 1)}
KV = ("matrix", "split 2 along output")
BLOCK = {"*.attn.qkv.weight": QKV, "*.attn.proj.weight": M, "*.mlp.fc[12].weight": M}
VIT = {"patch_embed.proj.weight": EMBEDDING, "cls_token": V, "pos_embed": EMBEDDING, **BLOCK, "head.weight": H}
NO_CLASS = {pattern: said for pattern, said in VIT.items() if pattern != "cls_token"}
NO_TABLE = {pattern: said for pattern, said in VIT.items() if pattern != "pos_embed"}
SWIN = {"patch_embed.proj.weight": EMBEDDING, **BLOCK, "*.downsample.reduction.weight": M, "head.fc.weight": H}
TABLE = {"*.relative_position_bias_table": EMBEDDING}
RESNET = {"conv1.weight": EMBEDDING, "*.conv?.weight": M, "*.downsample.0.weight": M, "fc.weight": H}
INVERTED = {
    "conv_stem.weight": EMBEDDING,
    "*.conv_dw.weight": V,
    "*.conv_pw.weight": M,
    "*.conv_pwl.weight": M,
    "*.se.conv_*.weight": M,
    "conv_head.weight": M,
    "classifier.weight": H,
}


def _maxvit(timm: Any, by_head: bool) -> nn.Module:
    source = timm.models.maxxvit
    attention = source.MaxxVitTransformerCfg(dim_head=8, head_first=by_head, rel_pos_type="bias")
    config = source.MaxxVitCfg(embed_dim=(16, 32), depths=(1, 1), block_type=("M", "M"), stem_width=8, transformer_cfg=attention)
    return source.MaxxVit(config, img_size=64, **C)


MAXVIT = {
    "stem.conv1.weight": EMBEDDING,
    "stem.conv2.weight": M,
    "*.conv.shortcut.expand.weight": M,
    "*.conv.conv?_1x1.weight": M,
    "*.conv.conv2_kxk.weight": V,
    "*.conv.se.fc?.weight": M,
    **TABLE,
    **{pattern: said for pattern, said in BLOCK.items() if "qkv" not in pattern},
    "head.fc.weight": H,
}

ZOO = {
    # timm
    "vit": Entry(lambda timm, tv: timm.create_model("vit_tiny_patch16_224", **SMALL), VIT),
    "vit, attention pooling": Entry(
        lambda timm, tv: timm.create_model("vit_base_patch16_siglip_224", **SMALL),
        {**NO_CLASS, "attn_pool.latent": V, "attn_pool.q.weight": M, "attn_pool.kv.weight": KV, "attn_pool.proj.weight": M},
    ),
    "vit, hybrid": Entry(
        lambda timm, tv: timm.create_model("vit_tiny_r_s16_p8_224", img_size=32, embed_dim=32, depth=1, num_heads=4, **C),
        {**VIT, "patch_embed.backbone.conv.weight": EMBEDDING, "patch_embed.proj.weight": M},  # the latter reads features
    ),
    "deit, distilled": Entry(
        lambda timm, tv: timm.create_model("deit_tiny_distilled_patch16_224", **SMALL), {**VIT, "dist_token": V, "head_dist.weight": H}
    ),
    "eva02": Entry(  # its fc1 gives gate and up
        lambda timm, tv: timm.create_model("eva02_tiny_patch14_224", **SMALL), {"*.mlp.fc1.weight": GATE_UP, **VIT}
    ),
    "beit": Entry(lambda timm, tv: timm.create_model("beit_base_patch16_224", **SMALL), {**NO_TABLE, **TABLE}),
    "cait": Entry(  # talking heads
        lambda timm, tv: timm.create_model("cait_xxs24_224", **SMALL),
        {**VIT, "*.attn.proj_[lw].weight": M, "blocks_token_only.*.attn.[qkv].weight": M},
    ),
    "xcit": Entry(
        lambda timm, tv: timm.create_model("xcit_nano_12_p16_224", img_size=32, embed_dim=32, depth=1, num_heads=4, **C),
        {
            "patch_embed.proj.0.0.weight": EMBEDDING,
            "patch_embed.proj.?.0.weight": M,
            "cls_token": V,
            "pos_embed.token_projection.weight": M,
            "*.attn.temperature": V,
            "*.local_mp.conv?.weight": V,
            **BLOCK,
            "cls_attn_blocks.*.attn.[qkv].weight": M,
            "head.weight": H,
        },
    ),
    "swin": Entry(
        lambda timm, tv: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=32, embed_dim=16, depths=(1, 1), num_heads=(2, 4), window_size=4, **C
        ),
        {**SWIN, **TABLE},
    ),
    "swin 2": Entry(
        lambda timm, tv: timm.create_model(
            "swinv2_tiny_window8_256", img_size=32, embed_dim=16, depths=(1, 1), num_heads=(2, 4), window_size=4, **C
        ),
        {**SWIN, "*.logit_scale": V, "*.cpb_mlp.[02].weight": M},
    ),
    "hiera": Entry(
        lambda timm, tv: timm.models.hiera.Hiera(img_size=(64, 64), embed_dim=16, stages=(1, 1, 1, 1), **C),
        {**{pattern: said for pattern, said in NO_CLASS.items() if pattern != "head.weight"}, "blocks.*.proj.weight": M, "head.fc.weight": H},
        64,
    ),
    "levit": Entry(  # q k v for each head, the values wider; where a stage begins k v, wider still
        lambda timm, tv: timm.models.levit.Levit(img_size=64, embed_dim=(32, 32), key_dim=8, depth=(1, 1), num_heads=(2, 4), **C),
        {
            "stem.conv1.linear.weight": EMBEDDING,
            "stem.conv?.linear.weight": M,
            "*.attention_biases": EMBEDDING,
            "stages.0.*.attn.qkv.linear.weight": ("matrix", "2 groups of (8, 8, 16)"),
            "stages.1.*.attn.qkv.linear.weight": ("matrix", "4 groups of (8, 8, 16)"),
            "*.attn_downsample.kv.linear.weight": ("matrix", "4 groups of (8, 32)"),
            "*.attn_downsample.q.ln.linear.weight": M,
            "*.proj.ln.linear.weight": M,
            "*.mlp.ln?.linear.weight": M,
            "head.linear.weight": H,
        },
        64,
    ),
    "tiny_vit": Entry(
        lambda timm, tv: timm.models.tiny_vit.TinyVit(
            embed_dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), window_sizes=(2, 2, 2, 2), **C
        ),
        {
            "patch_embed.conv1.conv.weight": EMBEDDING,
            "patch_embed.conv2.conv.weight": M,
            "*.conv[13].conv.weight": M,
            "*.conv2.conv.weight": V,
            "*.local_conv.conv.weight": V,
            "*.attention_biases": EMBEDDING,
            "stages.1.*.attn.qkv.weight": ("matrix", "2 groups of (8, 8, 8)"),
            "stages.3.*.attn.qkv.weight": ("matrix", "4 groups of (8, 8, 8)"),
            "stages.2.*.attn.qkv.weight": ("matrix", "2 groups of (16, 16, 16)"),
            "*.attn.proj.weight": M,
            "*.mlp.fc?.weight": M,
            "head.fc.weight": H,
        },
        64,
    ),
    "twins": Entry(
        lambda timm, tv: timm.models.twins.Twins(img_size=64, **PYRAMID),
        {
            "patch_embeds.0.proj.weight": EMBEDDING,
            "patch_embeds.?.proj.weight": M,
            "*.attn.q.weight": M,
            "*.attn.kv.weight": KV,
            "*.attn.sr.weight": M,
            "*.attn.proj.weight": M,
            "*.mlp.fc?.weight": M,
            "pos_block.*.weight": V,
            "head.weight": H,
        },
        64,
    ),
    "pvt 2": Entry(
        lambda timm, tv: timm.models.pvt_v2.PyramidVisionTransformerV2(**PYRAMID),
        {
            "patch_embed.proj.weight": EMBEDDING,
            "*.downsample.proj.weight": M,
            "*.attn.q.weight": M,
            "*.attn.kv.weight": KV,
            "*.attn.sr.weight": M,
            "*.attn.proj.weight": M,
            "*.mlp.fc?.weight": M,
            "*.mlp.dwconv.weight": V,
            "head.weight": H,
        },
        64,
    ),
    "coat": Entry(
        lambda timm, tv: timm.models.coat.CoaT(
            img_size=64, patch_size=4, embed_dims=(16, 16, 32, 32), serial_depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2), **C
        ),
        {
            "cls_token?": V,
            "patch_embed1.proj.weight": EMBEDDING,
            "patch_embed?.proj.weight": M,
            "cpe?.proj.weight": V,
            "crpe?.conv_list.*.weight": V,
            "*.factoratt_crpe.qkv.weight": QKV,
            "*.factoratt_crpe.proj.weight": M,
            "*.mlp.fc?.weight": M,
            "head.weight": H,
        },
        64,
    ),
    "gcvit": Entry(
        lambda timm, tv: timm.models.gcvit.GlobalContextVit(
            img_size=64, window_ratio=(16, 16), embed_dim=16, depths=(2, 2), num_heads=(2, 4), **C
        ),
        {
            "stem.conv1.weight": EMBEDDING,
            "*.conv_dw.weight": V,
            "*.conv_pw.weight": M,
            "*.se.fc?.weight": M,
            "*.reduction.weight": M,
            **TABLE,
            "stages.*.blocks.1.attn.qkv.weight": KV,  # every second block has its queries from the whole image
            **BLOCK,
            "head.fc.weight": H,
        },
        64,
    ),
    "maxvit, by head": Entry(lambda timm, tv: _maxvit(timm, True), {
        "stages.0.*.attn.qkv.weight": ("matrix", "2 groups of 3"), "stages.1.*.attn.qkv.weight": ("matrix", "4 groups of 3"), **MAXVIT,
    }, 64),
    "maxvit, thirds": Entry(lambda timm, tv: _maxvit(timm, False), {**MAXVIT, "*.attn.qkv.weight": QKV}, 64),
    "mixer": Entry(
        lambda timm, tv: timm.models.mlp_mixer.MlpMixer(img_size=32, patch_size=8, embed_dim=32, num_blocks=2, **C),
        {"stem.proj.weight": EMBEDDING, "*.mlp_tokens.fc?.weight": M, "*.mlp_channels.fc?.weight": M, "head.weight": H},
    ),
    "gmlp": Entry(
        lambda timm, tv: timm.models.mlp_mixer.MlpMixer(
            img_size=32, patch_size=8, embed_dim=32, num_blocks=2, mlp_ratio=6,
            block_layer=timm.models.mlp_mixer.SpatialGatingBlock, mlp_layer=timm.layers.GatedMlp, **C,
        ),
        {
            "stem.proj.weight": EMBEDDING,
            "*.mlp_channels.fc1.weight": GATE_UP,
            "*.mlp_channels.gate.proj.weight": M,
            "*.mlp_channels.fc2.weight": M,
            "head.weight": H,
        },
    ),
    "convnext": Entry(
        lambda timm, tv: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), **C),
        {
            "stem.0.weight": EMBEDDING,
            "*.conv_dw.weight": V,
            "*.mlp.fc?.weight": M,
            "*.downsample.1.weight": M,
            "head.fc.weight": H,
        },
    ),
    "efficientnet": Entry(lambda timm, tv: timm.create_model("efficientnet_b0", **C), INVERTED, 32, 8),
    "mobilenet 3": Entry(
        lambda timm, tv: timm.create_model("mobilenetv3_small_050", **C), {**INVERTED, "blocks.5.0.conv.weight": M}, 32, 2
    ),
    "resnet": Entry(lambda timm, tv: timm.create_model("resnet18", **C), RESNET, 32, 8),
    "resnet, bottlenecks": Entry(lambda timm, tv: timm.create_model("resnet50", **C), RESNET, 32, 8),
    "botnet": Entry(
        lambda timm, tv: timm.create_model("botnet26t_256", **C),
        {
            "stem.conv1.conv.weight": EMBEDDING,
            "*.conv.weight": M,
            "*.self_attn.qkv.weight": QKV,
            "*.self_attn.pos_embed.*_rel": EMBEDDING,
            "head.fc.weight": H,
        },
        0,
    ),
    "regnet": Entry(  # groups of 8 channels
        lambda timm, tv: timm.create_model("regnety_002", **C),
        {
            "stem.conv.weight": EMBEDDING,
            "s1.*.conv2.conv.weight": ("matrix", "split 3 along output"),
            "s2.*.conv2.conv.weight": ("matrix", "split 7 along output"),
            "s3.*.conv2.conv.weight": ("matrix", "split 19 along output"),
            "s4.*.conv2.conv.weight": ("matrix", "split 46 along output"),
            "*.conv.weight": M,
            "*.se.fc?.weight": M,
            "head.fc.weight": H,
        },
        32,
        4,
    ),
    # torchvision
    "tv vit": Entry(
        lambda timm, tv: tv.VisionTransformer(32, 8, 2, 4, 32, 48, **C),
        {
            "class_token": V,
            "conv_proj.weight": EMBEDDING,
            "encoder.pos_embedding": EMBEDDING,
            "*.self_attention.in_proj_weight": QKV,
            "*.self_attention.out_proj.weight": M,
            "*.mlp.?.weight": M,
            "heads.head.weight": H,
        },
    ),
    "tv swin": Entry(
        lambda timm, tv: tv.SwinTransformer([4, 4], 16, [1, 1], [2, 4], [4, 4], **C),
        {
            "features.0.0.weight": EMBEDDING,
            **TABLE,
            "*.attn.qkv.weight": QKV,
            "*.attn.proj.weight": M,
            "*.mlp.?.weight": M,
            "*.reduction.weight": M,
            "head.weight": H,
        },
    ),
    "tv maxvit": Entry(
        lambda timm, tv: tv.MaxVit((64, 64), 8, 2, [16, 16], [1, 1], 8, 0.0, **C),
        {
            "stem.0.0.weight": EMBEDDING,
            "stem.1.0.weight": M,
            "*.MBconv.proj.1.weight": M,
            "*.conv_a.0.weight": M,
            "*.conv_b.0.weight": V,
            "*.squeeze_excitation.fc?.weight": M,
            "*.conv_c.weight": M,
            **TABLE,
            "*.to_qkv.weight": QKV,
            "*.merge.weight": M,
            "*.mlp_layer.?.weight": M,
            "classifier.3.weight": M,
            "classifier.5.weight": H,
        },
        64,
    ),
    "tv convnext": Entry(
        lambda timm, tv: tv.ConvNeXt([tv.convnext.CNBlockConfig(8, 16, 1), tv.convnext.CNBlockConfig(16, None, 1)], **C),
        {
            "features.0.0.weight": EMBEDDING,
            "features.2.1.weight": M,
            "*.layer_scale": V,
            "*.block.0.weight": V,
            "*.block.[35].weight": M,
            "classifier.2.weight": H,
        },
    ),
    "tv resnet": Entry(lambda timm, tv: tv.resnet18(**C), RESNET, 32, 8),
    "tv vgg": Entry(
        lambda timm, tv: tv.vgg11(**C),
        {"features.0.weight": EMBEDDING, "features.*.weight": M, "classifier.6.weight": H, "classifier.?.weight": M}, 32, 32,
    ),
    "tv alexnet": Entry(
        lambda timm, tv: tv.alexnet(**C),
        {"features.0.weight": EMBEDDING, "features.*.weight": M, "classifier.6.weight": H, "classifier.?.weight": M}, 64, 32,
    ),
    "tv mobilenet 3": Entry(
        lambda timm, tv: tv.mobilenet_v3_small(**C),
        {
            "features.0.0.weight": EMBEDDING,
            "features.12.0.weight": M,
            "features.1.block.0.0.weight": V,  # the first block does not expand
            "features.1.block.2.0.weight": M,
            "features.[23].block.1.0.weight": V,  # these have no squeeze-and-excitation
            "*.block.0.0.weight": M,
            "*.block.1.0.weight": V,
            "*.block.[23].0.weight": M,
            "*.block.?.fc?.weight": M,
            "classifier.0.weight": M,
            "classifier.3.weight": H,
        },
        32,
        4,
    ),
    "tv efficientnet": Entry(
        lambda timm, tv: tv.efficientnet_b0(**C),
        {
            "features.0.0.weight": EMBEDDING,
            "features.8.0.weight": M,
            "features.1.0.block.0.0.weight": V,
            "features.1.0.block.2.0.weight": M,
            "*.block.0.0.weight": M,
            "*.block.1.0.weight": V,
            "*.block.3.0.weight": M,
            "*.block.?.fc?.weight": M,
            "classifier.1.weight": H,
        },
        32,
        8,
    ),
    "tv densenet": Entry(
        lambda timm, tv: tv.densenet121(**C),
        {"features.conv0.weight": EMBEDDING, "*.conv[12].weight": M, "*.transition?.conv.weight": M, "classifier.weight": H}, 32, 8,
    ),
    "tv squeezenet": Entry(
        lambda timm, tv: tv.squeezenet1_1(**C),
        {"features.0.weight": EMBEDDING, "*.squeeze.weight": M, "*.expand?x?.weight": M, "classifier.1.weight": H}, 64, 8,
    ),
    "tv shufflenet": Entry(
        lambda timm, tv: tv.shufflenet_v2_x0_5(**C),
        {
            "conv1.0.weight": EMBEDDING,
            "stage?.0.branch1.0.weight": V,
            "stage?.0.branch1.2.weight": M,
            "stage?.*.branch2.[05].weight": M,
            "stage?.*.branch2.3.weight": V,
            "conv5.0.weight": M,
            "fc.weight": H,
        },
        64,
    ),
    "tv mnasnet": Entry(
        lambda timm, tv: tv.mnasnet0_5(**C),
        {
            "layers.0.weight": EMBEDDING,
            "layers.3.weight": V,
            "layers.6.weight": M,
            "layers.14.weight": M,
            "*.layers.[06].weight": M,
            "*.layers.3.weight": V,
            "classifier.1.weight": H,
        },
        64,
    ),
    "tv googlenet": Entry(
        lambda timm, tv: tv.googlenet(init_weights=False, **C),
        {
            "conv1.conv.weight": EMBEDDING,
            "*.conv.weight": M,
            "aux?.fc1.weight": M,
            "aux?.fc2.weight": H,
            "fc.weight": H,
        },
        64,
        8,
    ),
    "tv inception": Entry(
        lambda timm, tv: tv.inception_v3(init_weights=False, **C),
        {
            "Conv2d_1a_3x3.conv.weight": EMBEDDING,
            "*.conv.weight": M,
            "AuxLogits.fc.weight": H,
            "fc.weight": H,
        },
        299,
        8,
    ),
}  # fmt: skip


@contextlib.contextmanager
def _narrower(by: int) -> Iterator[None]:
    """Layers that are built in here have so many times fewer channels, but for colors and classes."""

    def less(n: int) -> int:
        return n if n <= 7 else max(1, n // by)

    def patched(kind: type, *names: str) -> Any:
        init, order = kind.__init__, kind.__init__.__code__.co_varnames[1:]

        def narrow(self: Any, *args: Any, **kwargs: Any) -> None:
            given = {**dict(zip(order, args, strict=False)), **kwargs}
            given = {key: less(value) if key in names else value for key, value in given.items()}
            if given.get("groups", 1) > 1:
                given["groups"] = math.gcd(given["groups"], given["in_channels"])
            init(self, **given)

        return mock.patch.object(kind, "__init__", narrow)

    with contextlib.ExitStack() as stack:
        for kind in (nn.Conv2d, nn.Linear, nn.modules.batchnorm._NormBase):
            stack.enter_context(patched(kind, "in_channels", "out_channels", "in_features", "out_features", "num_features"))
        yield


def libraries(folder: str) -> tuple[Any, Any, Any]:
    """timm, torchvision's models, and what keeps the operators that they ask for."""
    if folder:
        sys.path.append(folder)
    library = None
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # a wheel for CUDA beside a CPU build of torch: its operators are missing, and nobody here calls them
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm
    import torchvision.models

    return timm, torchvision.models, library


def wrong(entry: Entry, timm: Any, tv: types.ModuleType) -> str:
    try:
        with torch.device("meta"):
            check_routing(entry.make(timm, tv), entry.expected)
        if entry.size:
            torch.manual_seed(0)
            with _narrower(entry.narrow) if entry.narrow > 1 else contextlib.nullcontext():
                model = entry.make(timm, tv)
            images = torch.randn(2, 3, entry.size, entry.size, generator=torch.Generator().manual_seed(1))
            check_steps(model.train(), lambda model: model(images))
    except Exception:
        return traceback.format_exc(limit=-3)
    return ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    timm, tv, _library = libraries(sys.argv[1])
    print(json.dumps({name: wrong(entry, timm, tv) for name, entry in ZOO.items() if not sys.argv[2:] or name in sys.argv[2:]}))
