"""Encoders, encoder-decoders, vision and speech of transformers, and adapters: roles and matrices, from their own sources."""

from __future__ import annotations

from tests.unit.zoo.walk import EMBEDDING, GATE_UP, QKV, Entry, H, M, V

TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 96,
    "max_position_embeddings": 64,
}  # fmt: skip
IMAGE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16, "patch_size": 8,
    "num_labels": 7,
}  # fmt: skip
SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
TOWERS = {
    "text_config": {**TOWER, "vocab_size": 96, "max_position_embeddings": 16, "eos_token_id": 1},
    "vision_config": {**TOWER, "image_size": 16, "patch_size": 8},
}
PIXELS = {"pixel_values": (2, 3, 16, 16)}
BOTH = {"input_ids": (2, 12), "pixel_values": (2, 3, 16, 16)}
MLM, CLASSES, PRETRAINING = "AutoModelForMaskedLM", "AutoModelForImageClassification", "AutoModelForPreTraining"

BERT = {
    "*.embeddings.*_embeddings.weight": EMBEDDING,
    "*.attention.self.*.weight": M,
    "*.attention.output.dense.weight": M,
    "*.layer.?.intermediate.dense.weight": M,
    "*.layer.?.output.dense.weight": M,
}
DEBERTA = {**BERT, "deberta.encoder.rel_embeddings.weight": EMBEDDING, "cls.predictions.transform.dense.weight": M}
VIT = {
    "*.patch_embeddings.projection.weight": EMBEDDING,
    "*.cls_token": V,
    "*.mask_token": V,
    "*.position_embeddings": EMBEDDING,
    "*.attention.[qkvo]_proj.weight": M,
    "*.mlp.fc[12].weight": M,
    "classifier.weight": H,
}
MAYBE = ("*.mask_token", "*.cls_token", "*.position_embeddings")

# name -> (model type, config, {pattern: (role, matrices)}, task, inputs, …)
ENTRIES = {
    "bert": Entry(
        "bert", TEXT,
        {**BERT, "bert.pooler.dense.weight": M, "cls.predictions.transform.dense.weight": M, "cls.seq_relationship.weight": H},
        PRETRAINING,
    ),
    "roberta": Entry("roberta", TEXT, {**BERT, "lm_head.dense.weight": M}, MLM),
    "electra": Entry(
        "electra", {**TEXT, "embedding_size": 16},
        {
            **BERT,
            "electra.embeddings_project.weight": M,
            "discriminator_predictions.dense.weight": M,
            "discriminator_predictions.dense_prediction.weight": H,
        },
        PRETRAINING,
    ),
    "electra, generator": Entry(
        "electra", {**TEXT, "embedding_size": 16},
        {**BERT, "electra.embeddings_project.weight": M, "generator_predictions.dense.weight": M},
        MLM,
    ),
    "albert": Entry(  # one layer, used twice
        "albert", {**TEXT, "embedding_size": 16},
        {
            "albert.embeddings.*.weight": EMBEDDING,
            "albert.encoder.embedding_hidden_mapping_in.weight": M,
            "*.attention.*.weight": M,
            "*.ffn*.weight": M,
            "predictions.dense.weight": M,
        },
        MLM,
    ),
    "distilbert": Entry(
        "distilbert",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 96, "max_position_embeddings": 64},
        {"*_embeddings.weight": EMBEDDING, "*.attention.*_lin.weight": M, "*.ffn.lin[12].weight": M, "vocab_transform.weight": M},
        MLM,
    ),
    "deberta": Entry(
        "deberta", {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        {"*.attention.self.in_proj.weight": ("matrix", "4 groups of 3"), **DEBERTA},  # q k v for each head
        MLM,
    ),
    "deberta-v2": Entry("deberta-v2", {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, DEBERTA, MLM),
    "modernbert": Entry(
        "modernbert", {**TEXT, "pad_token_id": 0, "cls_token_id": 1, "eos_token_id": 1, "bos_token_id": 1, "sep_token_id": 1},
        {
            "model.embeddings.tok_embeddings.weight": EMBEDDING,
            "*.attn.Wqkv.weight": QKV,
            "*.mlp.Wi.weight": GATE_UP,  # the input first
            "*.Wo.weight": M,
            "head.dense.weight": M,
        },
        MLM,
    ),
    "t5": Entry(
        "t5",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 96,
         "feed_forward_proj": "gated-gelu"},
        {
            "shared.weight": EMBEDDING,
            "*.relative_attention_bias.weight": EMBEDDING,
            "*Attention.[qkvo].weight": M,
            "*.DenseReluDense.*.weight": M,
        },
        "AutoModelForSeq2SeqLM", {"input_ids": (2, 12), "decoder_input_ids": (2, 8)},
    ),
    "bart": Entry(
        "bart", {**SEQ2SEQ, "vocab_size": 96, "max_position_embeddings": 64, "eos_token_id": 1, "forced_eos_token_id": 1},
        {"model.shared.weight": EMBEDDING, "*.embed_positions.weight": EMBEDDING, "*_attn.*_proj.weight": M, "*.fc[12].weight": M},
        "AutoModelForSeq2SeqLM", {"input_ids": (2, 12), "decoder_input_ids": (2, 8)},
    ),
    "whisper": Entry(
        "whisper",
        {**SEQ2SEQ, "vocab_size": 96, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1},
        {
            "model.encoder.conv1.weight": EMBEDDING,  # reads the spectrum
            "model.encoder.conv2.weight": M,
            "*.embed_*.weight": EMBEDDING,
            "*_attn.*_proj.weight": M,
            "*.fc[12].weight": M,
        },
        "AutoModelForSpeechSeq2Seq", {"input_features": (2, 8, 32), "decoder_input_ids": (2, 8)},
    ),
    "moonshine": Entry(
        "moonshine",
        {"hidden_size": 32, "intermediate_size": 48, "encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1,
         "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4, "vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 1},
        {
            "model.encoder.conv1.weight": EMBEDDING,  # reads the wave
            "model.encoder.conv[23].weight": M,
            "*.embed_tokens.weight": EMBEDDING,
            "*_attn.[qkvo]_proj.weight": M,
            "model.encoder.*.mlp.fc[12].weight": M,
            "model.decoder.*.mlp.fc1.weight": GATE_UP,
            "model.decoder.*.mlp.fc2.weight": M,
        },
        "AutoModelForSpeechSeq2Seq", {"input_values": (2, 2000), "decoder_input_ids": (2, 8)},
    ),
    "wav2vec2": Entry(
        "wav2vec2",
        {**TOWER, "vocab_size": 96, "conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3],
         "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4},
        {
            "*.conv_layers.0.conv.weight": EMBEDDING,  # reads the wave
            "*.conv_layers.1.conv.weight": M,
            "*.feature_projection.projection.weight": M,
            "*.pos_conv_embed.conv.parametrizations.weight.original?": V,  # a length and a direction of positions' filters
            "*.attention.*_proj.weight": M,
            "*.feed_forward.*_dense.weight": M,
            "lm_head.weight": H,
        },
        "AutoModelForCTC", {"input_values": (2, 200)},
    ),
    "vit": Entry("vit", IMAGE, VIT, CLASSES, PIXELS, tied=MAYBE),
    "dinov2": Entry("dinov2", IMAGE, VIT, CLASSES, PIXELS, tied=MAYBE),
    "beit": Entry(
        "beit", {**IMAGE, "use_relative_position_bias": True, "layer_scale_init_value": 0.1},
        {**VIT, "*.relative_position_bias_table": EMBEDDING}, CLASSES, PIXELS, tied=MAYBE,
    ),
    "vit_mae": Entry(
        "vit_mae",
        {**IMAGE, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4,
         "decoder_intermediate_size": 24},
        {
            **{pattern: said for pattern, said in VIT.items() if said != H},
            "decoder.decoder_pos_embed": EMBEDDING,
            "decoder.decoder_embed.weight": M,
            "decoder.decoder_pred.weight": H,
        },
        PRETRAINING, PIXELS, tied=MAYBE,
    ),
    "swin": Entry(
        "swin",
        {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4,
         "num_labels": 7},
        {**VIT, "*.relative_position_bias_table": EMBEDDING, "*.downsample.reduction.weight": M}, CLASSES, PIXELS, tied=MAYBE,
    ),
    "hiera": Entry(
        "hiera",
        {"embed_dim": 16, "image_size": [32, 32], "patch_size": [7, 7], "patch_stride": [4, 4], "patch_padding": [3, 3],
         "num_heads": [2, 4], "depths": [1, 1], "query_stride": [2, 2], "num_query_pool": 1, "masked_unit_size": [4, 4],
         "masked_unit_attention": [True, False], "num_labels": 7},
        {
            "*.patch_embeddings.projection.weight": EMBEDDING,
            "*.position_embeddings": EMBEDDING,
            "*.attn.qkv.weight": QKV,  # of twice the width where a stage begins
            "*.proj.weight": M,
            "*.mlp.fc[12].weight": M,
            "classifier.weight": H,
        },
        CLASSES, {"pixel_values": (2, 3, 32, 32)},
    ),
    "convnext": Entry(
        "convnext", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "num_labels": 7},
        {
            "convnext.embeddings.patch_embeddings.weight": EMBEDDING,
            "*.dwconv.weight": V,
            "*.pwconv[12].weight": M,
            "*.downsampling_layer.1.weight": M,
            "classifier.weight": H,
        },
        CLASSES, PIXELS,
    ),
    "resnet": Entry(
        "resnet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "bottleneck", "num_labels": 7},
        {"*.embedder.convolution.weight": EMBEDDING, "*.convolution.weight": M, "classifier.1.weight": H}, CLASSES,
        {"pixel_values": (2, 3, 32, 32)},
    ),
    "segformer": Entry(
        "segformer",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_encoder_blocks": 2, "sr_ratios": [2, 1], "patch_sizes": [7, 3],
         "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "num_labels": 7, "decoder_hidden_size": 16},
        {
            "*.stages.0.patch_embeddings.proj.weight": EMBEDDING,
            "*.stages.1.patch_embeddings.proj.weight": M,  # reads features
            "*.attention.[qkvo]_proj.weight": M,
            "*.sequence_reduction.weight": M,
            "*.dwconv.weight": V,
            "*.mlp.fc[12].weight": M,
            "decode_head.linear_projections.*.weight": M,
            "decode_head.linear_fuse.weight": M,
            "decode_head.classifier.weight": H,
        },
        "AutoModelForSemanticSegmentation", {"pixel_values": (2, 3, 32, 32)},
    ),
    "detr": Entry(
        "detr",
        {**SEQ2SEQ, "num_queries": 5, "use_timm_backbone": False, "backbone": None,
         "backbone_config": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
                             "layer_type": "basic", "out_features": ["stage2"]}},
        {
            "*.embedder.convolution.weight": EMBEDDING,
            "model.backbone.*.convolution.weight": M,
            "model.query_position_embeddings.weight": EMBEDDING,
            "model.input_projection.weight": M,
            "*_attn.[qkvo]_proj.weight": M,
            "*.mlp.fc[12].weight": M,
            "class_labels_classifier.weight": H,
            "bbox_predictor.layers.[01].weight": M,
            "bbox_predictor.layers.2.weight": H,
        },
        "AutoModelForObjectDetection", {"pixel_values": (2, 3, 32, 32)},
        idle=("model.decoder.layers.0.self_attn.*",),  # the first queries are zeros
    ),
    "clip": Entry(
        "clip", {**TOWERS, "projection_dim": 24},
        {
            "*_embedding.weight": EMBEDDING,
            "*.self_attn.*_proj.weight": M,
            "*.mlp.fc[12].weight": M,
            "*_projection.weight": M,  # into the space that text and images share
        },
        "AutoModel", BOTH,
    ),
    "siglip": Entry(
        "siglip", TOWERS,
        {
            "*_embedding.weight": EMBEDDING,
            "*.self_attn.*_proj.weight": M,
            "text_model.head.weight": M,  # named so, and no head: CLIP's text_projection
            "vision_model.head.probe": V,
            "vision_model.head.attention.in_proj_weight": QKV,
            "vision_model.head.attention.out_proj.weight": M,
            "*.mlp.fc[12].weight": M,
        },
        "AutoModel", BOTH,
    ),
    "qwen2_vl": Entry(
        "qwen2_vl",
        {
            "text_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
                            "num_key_value_heads": 2, "vocab_size": 96, "bos_token_id": 1, "eos_token_id": 1,
                            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
            "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
            "image_token_id": 95,
        },
        {
            "model.visual.patch_embed.proj.weight": EMBEDDING,
            "*.attn.qkv.weight": QKV,
            "*.attn.proj.weight": M,
            "*.mlp.fc[12].weight": M,
            "model.visual.merger.mlp.[02].weight": M,
            "*.embed_tokens.weight": EMBEDDING,
            "*.self_attn.[qkvo]_proj.weight": M,
            "*.mlp.*_proj.weight": M,
            "lm_head.weight": H,
        },
        "AutoModelForImageTextToText", {"input_ids": (2, 12)}, idle=("model.visual.*",),
    ),
}  # fmt: skip
