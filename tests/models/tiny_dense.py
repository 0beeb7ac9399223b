"""Small configs of transformers' kinds of segmenter and depth model; those without a size of their own take 64 pixels."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

_LAYERS = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
_VIT = {**_LAYERS, "image_size": 64, "patch_size": 16, "intermediate_size": 64}
_NECK = {"neck_hidden_sizes": [8, 16, 16, 16], "fusion_hidden_size": 16}
_TOKENS = {"out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
_DINO = {**_LAYERS, "model_type": "dinov2", "image_size": 56, "patch_size": 14, "mlp_ratio": 2, **_TOKENS}
_ANYTHING = {**_NECK, "head_hidden_size": 8, "reassemble_hidden_size": 32, "backbone_config": _DINO}
_PYRAMID = {
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1] * 4,
    "depths": [1] * 4,
    "decoder_hidden_size": 16,
}
_STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, **_STAGES}
_PATCH = {**_LAYERS, "model_type": "dinov2", "image_size": 32, "patch_size": 16, "mlp_ratio": 2}
TINY: dict[str, dict[str, Any]] = {
    "beit": {**_VIT, "out_indices": [1, 2, 3, 4], "use_relative_position_bias": True},
    "chmv2": {
        "backbone_config": {
            **_VIT,
            **_TOKENS,
            "model_type": "dinov3_vit",
            "num_register_tokens": 2,
            "key_bias": True,
            "reshape_hidden_states": True,
            "apply_layernorm": True,
            "return_class_token": True,
        },
        "post_process_channels": [8, 16, 16, 16],
        "fusion_hidden_size": 16,
        "head_hidden_size": 8,
        "number_output_channels": 16,
    },
    "data2vec-vision": {**_VIT, "out_indices": [0, 1, 2, 3]},
    "depth_anything": _ANYTHING,
    "depth_pro": {
        "patch_size": 32,
        "fusion_hidden_size": 16,
        "intermediate_hook_ids": [3, 2],
        "intermediate_feature_dims": [16, 16],
        "scaled_images_ratios": [0.5, 1.0],
        "scaled_images_overlap_ratios": [0.0, 0.25],
        "scaled_images_feature_dims": [16, 16],
        "use_fov_model": False,
        "image_model_config": _PATCH,
        "patch_model_config": _PATCH,
        "fov_model_config": _PATCH,
    },
    "dpt": {**_VIT, **_NECK, "patch_size": 8, "image_size": 32, "backbone_out_indices": [0, 1, 2, 3]},
    "glpn": _PYRAMID,
    "mobilenet_v2": {"image_size": 64, "depth_multiplier": 0.35},
    "mobilevit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
        "aspp_out_channels": 16,
    },
    "mobilevitv2": {"image_size": 64, "width_multiplier": 0.25, "aspp_out_channels": 16},
    "prompt_depth_anything": _ANYTHING,
    "sapiens2": {
        **_VIT,
        "image_size": [64, 64],
        "num_key_value_heads": 2,
        "head_config": {"upsample_out_channels": [16, 8], "conv_out_channels": [8]},
    },
    "segformer": {**_PYRAMID, "image_size": 64},
    "tipsv2_dpt": {
        **_NECK,
        "num_depth_bins": 16,
        "backbone_config": {
            **_VIT,
            **_TOKENS,
            "model_type": "tipsv2_vision_model",
            "image_size": 56,
            "patch_size": 14,
            "apply_layernorm": True,
        },
    },
    "upernet": {"backbone_config": _CONVNEXT, "hidden_size": 16, "auxiliary_in_channels": 24, "auxiliary_channels": 8},
    "zoedepth": {
        **_NECK,
        "bottleneck_features": 16,
        "bin_embedding_dim": 8,
        "num_relative_features": 8,
        "num_attractors": [4, 2, 2, 1],
        "backbone_config": {
            **_VIT,
            **_STAGES,
            "model_type": "beit",
            "use_relative_position_bias": True,
            "reshape_hidden_states": False,
        },
    },
}
SIZES = {"depth_pro": 64, "glpn": 64, "segformer": 64, "upernet": 64}
"""Sides of the images of kinds whose config has none, or none that is small."""


def small_config(kind: str, **changes: Any) -> Any:
    """Return the small config of a kind."""
    return AutoConfig.for_model(kind, **TINY[kind], **changes)
