"""timm's models: roles and matrices, written down from their sources. No import of timm: vision.py makes them."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.unit.zoo.walk import EMBEDDING, GATE_UP, QKV, H, Image, M, V

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


def _botnet(timm: Any) -> nn.Module:
    source = timm.models.byobnet
    blocks = (
        source.ByoBlockCfg(type="bottle", d=1, c=16, s=1, gs=0, br=0.5),
        source.ByoBlockCfg(type="self_attn", d=1, c=32, s=2, gs=0, br=0.5),
    )
    config = source.ByoModelCfg(
        blocks=blocks, stem_chs=32, stem_type="tiered", fixed_input_size=True, self_attn_layer="bottleneck", self_attn_kwargs={}
    )
    return source.ByobNet(config, img_size=64, **C)


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

TIMM: dict[str, Image] = {
    "vit": Image(lambda timm, tv: timm.create_model("vit_tiny_patch16_224", **SMALL), VIT),
    "vit, attention pooling": Image(
        lambda timm, tv: timm.create_model("vit_base_patch16_siglip_224", **SMALL),
        {**NO_CLASS, "attn_pool.latent": V, "attn_pool.q.weight": M, "attn_pool.kv.weight": KV, "attn_pool.proj.weight": M},
    ),
    "vit, hybrid": Image(
        lambda timm, tv: timm.create_model("vit_tiny_r_s16_p8_224", img_size=32, embed_dim=32, depth=1, num_heads=4, **C),
        {**VIT, "patch_embed.backbone.conv.weight": EMBEDDING, "patch_embed.proj.weight": M},  # the latter reads features
    ),
    "deit, distilled": Image(
        lambda timm, tv: timm.create_model("deit_tiny_distilled_patch16_224", **SMALL),
        {**VIT, "dist_token": V, "head_dist.weight": H},
    ),
    "eva02": Image(  # its fc1 gives gate and up
        lambda timm, tv: timm.create_model("eva02_tiny_patch14_224", **SMALL), {"*.mlp.fc1.weight": GATE_UP, **VIT}
    ),
    "beit": Image(lambda timm, tv: timm.create_model("beit_base_patch16_224", **SMALL), {**NO_TABLE, **TABLE}),
    "cait": Image(  # talking heads
        lambda timm, tv: timm.create_model("cait_xxs24_224", **SMALL),
        {**VIT, "*.attn.proj_[lw].weight": M, "blocks_token_only.*.attn.[qkv].weight": M},
    ),
    "xcit": Image(
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
    "swin": Image(
        lambda timm, tv: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=32, embed_dim=16, depths=(1, 1), num_heads=(2, 4), window_size=4, **C
        ),
        {**SWIN, **TABLE},
    ),
    "swin 2": Image(
        lambda timm, tv: timm.create_model(
            "swinv2_tiny_window8_256", img_size=32, embed_dim=16, depths=(1, 1), num_heads=(2, 4), window_size=4, **C
        ),
        {**SWIN, "*.logit_scale": V, "*.cpb_mlp.[02].weight": M},
    ),
    "hiera": Image(
        lambda timm, tv: timm.models.hiera.Hiera(img_size=(64, 64), embed_dim=16, stages=(1, 1, 1, 1), **C),
        {**{pattern: said for pattern, said in NO_CLASS.items() if pattern != "head.weight"}, "blocks.*.proj.weight": M,
         "head.fc.weight": H},
        64,
    ),
    "levit": Image(  # q k v for each head, the values wider; where a stage begins k v, wider still
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
    "tiny_vit": Image(
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
    "twins": Image(
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
    "pvt 2": Image(
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
    "coat": Image(
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
    "gcvit": Image(
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
    "maxvit, by head": Image(lambda timm, tv: _maxvit(timm, True), {
        "stages.0.*.attn.qkv.weight": ("matrix", "2 groups of 3"), "stages.1.*.attn.qkv.weight": ("matrix", "4 groups of 3"),
        **MAXVIT,
    }, 64),
    "maxvit, thirds": Image(lambda timm, tv: _maxvit(timm, False), {**MAXVIT, "*.attn.qkv.weight": QKV}, 64),
    "mixer": Image(
        lambda timm, tv: timm.models.mlp_mixer.MlpMixer(img_size=32, patch_size=8, embed_dim=32, num_blocks=2, **C),
        {"stem.proj.weight": EMBEDDING, "*.mlp_tokens.fc?.weight": M, "*.mlp_channels.fc?.weight": M, "head.weight": H},
    ),
    "gmlp": Image(
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
    "convnext": Image(
        lambda timm, tv: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), **C),
        {
            "stem.0.weight": EMBEDDING,
            "*.conv_dw.weight": V,
            "*.mlp.fc?.weight": M,
            "*.downsample.1.weight": M,
            "head.fc.weight": H,
        },
    ),
    "efficientnet": Image(lambda timm, tv: timm.create_model("efficientnet_b0", **C), INVERTED, 32, 8),
    "mobilenet 3": Image(
        lambda timm, tv: timm.create_model("mobilenetv3_small_050", **C), {**INVERTED, "blocks.5.0.conv.weight": M}, 32, 2
    ),
    "resnet": Image(lambda timm, tv: timm.create_model("resnet18", **C), RESNET, 32, 8),
    "resnet, bottlenecks": Image(lambda timm, tv: timm.create_model("resnet50", **C), RESNET, 32, 8),
    "botnet": Image(
        lambda timm, tv: _botnet(timm),
        {
            "stem.conv1.conv.weight": EMBEDDING,
            "*.conv.weight": M,
            "*.self_attn.qkv.weight": QKV,
            "*.self_attn.pos_embed.*_rel": EMBEDDING,
            "head.fc.weight": H,
        },
        64,
    ),
    "regnet": Image(  # groups of 8 channels
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
}  # fmt: skip
