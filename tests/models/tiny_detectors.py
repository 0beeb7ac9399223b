"""Small configs of transformers' kinds of detector, made for images of 64 pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_MAPS = {"hidden_sizes": [8, 12, 16, 24], "depths": [1] * 4, "embedding_size": 8}
_THREE = {"out_features": ["stage2", "stage3", "stage4"]}
_RESNET = {"model_type": "resnet", "layer_type": "basic", **_MAPS, **_THREE}
_LAST = {**_RESNET, "out_features": ["stage4"]}
_RT_RESNET = {**_RESNET, "model_type": "rt_detr_resnet"}
_HGNET = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 8, 12, 16],
    "stage_mid_channels": [8] * 4,
    "stage_out_channels": [8, 12, 16, 24],
    "stage_num_blocks": [1] * 4,
    "stage_numb_of_layers": [1] * 4,
    "stage_downsample": [False, True, True, True],
    **_MAPS,
    **_THREE,
}
_LAYERS = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
_DETR = {**_LAYERS, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 20, "dropout": 0.0}
_NECK = {"encoder_hidden_dim": 32, "encoder_in_channels": [12, 16, 24], "decoder_in_channels": [32] * 3}
_VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
_GROUPS = {
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "num_queries": 10,
    "group_detr": 3,
}
_LW_VIT = {"pretrain_image_size": 64, "num_windows": 4, "window_block_indices": [0, 1], "out_indices": [1, 2, 3]}
_ORDER = {
    "hidden_size": 36,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "coordinate_size": 6,
    "shape_size": 6,
}
TINY: dict[str, dict[str, Any]] = {
    "yolos": {**_VIT, "intermediate_size": 32, "image_size": [64, 64], "num_detection_tokens": 20},
    "detr": {**_DETR, "backbone_config": _LAST},
    "table-transformer": {**_DETR, "backbone_config": _LAST},
    "conditional_detr": {**_DETR, "backbone_config": _LAST},
    "dab-detr": {**_DETR, "backbone_config": _LAST, "hidden_size": 32},
    "deformable_detr": {**_DETR, "backbone_config": _RESNET, "num_feature_levels": 3},
    "rt_detr": {**_DETR, **_NECK, "backbone_config": _RT_RESNET},
    "rt_detr_v2": {**_DETR, **_NECK, "backbone_config": _RT_RESNET},
    "d_fine": {**_DETR, **_NECK, "backbone_config": _HGNET},
    "deimv2": {**_DETR, **_NECK, "backbone_config": _HGNET},
    "lw_detr": {
        **_GROUPS,
        "backbone_config": {"model_type": "lw_detr_vit", **_VIT, **_LW_VIT},
        "projector_scale_factors": [1.0],
    },
    "rf_detr": {
        **_GROUPS,
        "backbone_config": {"model_type": "rf_detr_dinov2", **_VIT, "num_windows": 2, "out_indices": [1, 2, 3]},
    },
    "pp_doclayout_v2": {
        **_DETR,
        **_NECK,
        "backbone_config": _HGNET,
        "reading_order_config": _ORDER,
        "class_thresholds": [0.5] * 20,
        "class_order": list(range(20)),
        "id2label": {str(number): f"class {number}" for number in range(20)},
        "label2id": {f"class {number}": number for number in range(20)},
    },
    "pp_doclayout_v3": {
        **_DETR,
        **_NECK,
        "backbone_config": {**_HGNET, "out_features": ["stage1", *_THREE["out_features"]]},
        "x4_feat_dim": 8,
        "mask_feature_channels": [8, 8],
    },
}


def write_config(folder: Path, kind: str, **changes: Any) -> Path:
    """Write the ``config.json`` of a small detector, as a folder that a student or ``random:FOLDER`` names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **TINY[kind], **changes}))
    return folder
