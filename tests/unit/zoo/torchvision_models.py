"""torchvision's models: roles and matrices, written down from their sources. No import of torchvision: vision.py makes them."""

from __future__ import annotations

from tests.unit.zoo.timm_models import RESNET, TABLE, C
from tests.unit.zoo.walk import EMBEDDING, QKV, H, Image, M, V

TORCHVISION: dict[str, Image] = {
    "vit": Image(
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
    "swin": Image(
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
    "maxvit": Image(
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
    "convnext": Image(
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
    "resnet": Image(lambda timm, tv: tv.resnet18(**C), RESNET, 32, 8),
    "vgg": Image(
        lambda timm, tv: tv.vgg11(**C),
        {"features.0.weight": EMBEDDING, "features.*.weight": M, "classifier.6.weight": H, "classifier.?.weight": M}, 32, 32,
    ),
    "alexnet": Image(
        lambda timm, tv: tv.alexnet(**C),
        {"features.0.weight": EMBEDDING, "features.*.weight": M, "classifier.6.weight": H, "classifier.?.weight": M}, 64, 32,
    ),
    "mobilenet 3": Image(
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
    "efficientnet": Image(
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
    "densenet": Image(
        lambda timm, tv: tv.densenet121(**C),
        {"features.conv0.weight": EMBEDDING, "*.conv[12].weight": M, "*.transition?.conv.weight": M, "classifier.weight": H}, 32, 8,
    ),
    "squeezenet": Image(
        lambda timm, tv: tv.squeezenet1_1(**C),
        {"features.0.weight": EMBEDDING, "*.squeeze.weight": M, "*.expand?x?.weight": M, "classifier.1.weight": H}, 64, 8,
    ),
    "shufflenet": Image(
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
    "mnasnet": Image(
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
    "googlenet": Image(
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
    "inception": Image(
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
