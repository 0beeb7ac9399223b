"""Small configs of every kind of network in transformers, for ``coverage.py``.

A kind's default config is made small by what its keys are called (:data:`SMALL`); what does not fit together then is set
right in :data:`DIFFERENT`.
"""

from __future__ import annotations

from typing import Any

import timm
import transformers
from transformers import AutoConfig
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SIZES = (64, 96, 128)
"""Sides in pixels of the inputs of networks of images; the configs are made for the first."""
IMAGE_SIZE = SIZES[0]
SMALL = {
    32: "hidden_size d_model n_embd dim emb_dim embed_dim d_embed embedding_size word_embed_proj_dim projection_dim "
    "hidden_dim decoder_hidden_size encoder_hidden_size pooler_hidden_size classifier_hidden_size",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers num_encoder_layers "
    "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_key_value_heads "
    "decoder_num_hidden_layers decoder_num_attention_heads num_experts_per_tok n_shared_experts moe_topk "
    "encoder_num_layers",
    48: "intermediate_size ffn_dim d_ff d_inner n_inner encoder_ffn_dim decoder_ffn_dim decoder_intermediate_size "
    "moe_intermediate_size shared_expert_intermediate_size ff_dim intermediate_dim ffn_hidden_size",
    16: "head_dim d_kv attention_head_size kv_channels",
    4: "num_experts num_local_experts n_routed_experts",
    100: "vocab_size",
    128: "max_position_embeddings n_positions n_ctx max_seq_len max_seq_length max_source_positions",
    IMAGE_SIZE: "image_size",
}
_BY_KEY = {key: value for value, keys in SMALL.items() for key in keys.split()}
_MLA = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "q_lora_rank": 16, "kv_lora_rank": 16}
"""Of attention with latent keys and values."""
_SEQUENCE_TO_SEQUENCE = {"eos_token_id": 3, "decoder_start_token_id": 3}
_TWO_STAGES = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
_LINEAR_AND_FULL = {"layer_types": ["linear_attention", "full_attention"]}
_WRAPPED = {"architecture": "test_resnet", "pretrained_cfg": timm.get_pretrained_cfg("test_resnet").to_dict()}
DIFFERENT: dict[str, dict[str, Any]] = {
    # images
    "bit": {"embedding_size": 32, "hidden_sizes": [128] * 4},
    "cvt": {"embed_dim": [8, 16, 32], "depth": [1, 2, 3], "num_heads": [1, 1, 2]},
    "donut-swin": _TWO_STAGES,
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    "focalnet": {"embed_dim": 16, "hidden_sizes": [16, 32, 64, 128]},
    "hgnet_v2": {
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 16, 32, 32],
        "stage_mid_channels": [16] * 4,
        "stage_out_channels": [16, 32, 32, 64],
        "stage_num_blocks": [1] * 4,
        "stage_numb_of_layers": [2] * 4,
        "hidden_sizes": [16, 32, 32, 64],
    },
    "maskformer-swin": _TWO_STAGES,
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "mobilevitv2": {"width_multiplier": 0.25},
    "perceiver": {
        "num_latents": 8,
        "d_latents": 32,
        "num_blocks": 1,
        "num_self_attends_per_block": 1,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 1,
    },
    "rt_detr_resnet": {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [2, 2, 2, 2]},
    "swin": _TWO_STAGES,
    "swinv2": _TWO_STAGES,
    "textnet": {"stem_out_channels": 16},
    "gemma3n_vision": _WRAPPED,
    "timm_wrapper": _WRAPPED,
    # text
    "axk1": _MLA | {"head_dim": 16},
    "bart": _SEQUENCE_TO_SEQUENCE,
    "bigbird_pegasus": _SEQUENCE_TO_SEQUENCE,
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}}
    },
    "deepseek_v2": _MLA | {"num_experts_per_tok": 2},
    "deepseek_v3": _MLA | {"head_dim": 8},
    "esm": {"mask_token_id": 4, "position_embedding_type": "absolute"},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6},
    "lilt": {"hidden_size": 48},
    "mbart": _SEQUENCE_TO_SEQUENCE,
    "ministral": {"head_dim": 16},
    "mistral4": _MLA,
    "mt5": _SEQUENCE_TO_SEQUENCE,
    "mvp": _SEQUENCE_TO_SEQUENCE,
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "plbart": _SEQUENCE_TO_SEQUENCE,
    "qwen3_5_text": _LINEAR_AND_FULL,
    "qwen3_next": _LINEAR_AND_FULL,
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16], "attn_layers": ["local", "lsh"]},
    "t5": _SEQUENCE_TO_SEQUENCE,
    "umt5": _SEQUENCE_TO_SEQUENCE,
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
}
_SPECIAL_TOKENS = {"pad": 0, "unk": 1, "bos": 2, "cls": 2, "eos": 3, "sep": 3}
"""Numbers of the tokens in the tokenizer that goes with models of text."""


def small_arguments(config: Any, *, vocab_size: int | None = None) -> dict[str, Any]:
    """Return the arguments of a config's class that make it small, those of its parts included.

    With ``vocab_size`` the special tokens are those of a tokenizer of that size.
    """
    found: dict[str, Any] = {}
    own = config.to_dict()
    for key, value in own.items():
        if key in config.sub_configs:
            part = getattr(config, key)
            if part is not None and hasattr(part, "to_dict"):
                found[key] = small_arguments(part, vocab_size=vocab_size) | (
                    {"model_type": part.model_type} if part.model_type else {}
                )
        elif key in _BY_KEY and type(value) is int:
            found[key] = min(value, _BY_KEY[key])
        elif isinstance(value, (list, tuple)) and value and all(type(number) is int for number in value):
            if key in ("depths", "depth", "num_blocks", "layers") and len(value) > 1:
                found[key] = [1] * len(value)
            elif key in ("hidden_sizes", "embed_dims", "embed_dim", "neck_hidden_sizes") and len(value) > 1:
                found[key] = [16] * len(value)
            elif key in ("num_attention_heads", "num_heads"):
                found[key] = [2] * len(value)
            elif key == "image_size":
                found[key] = [IMAGE_SIZE] * len(value)
    if vocab_size is not None and "vocab_size" in own:
        found["vocab_size"] = vocab_size
        found |= {f"{kind}_token_id": number for kind, number in _SPECIAL_TOKENS.items() if f"{kind}_token_id" in own}
    return found


def small_config(kind: str, *, vocab_size: int | None = None) -> Any:
    """Return a small config of a kind of network, for a tokenizer of ``vocab_size`` where it reads text."""
    small = small_arguments(AutoConfig.for_model(kind), vocab_size=vocab_size)
    return CONFIG_MAPPING[kind](**small | DIFFERENT.get(kind, {}))


def image_classifiers() -> dict[str, tuple[str, ...]]:
    """Return the kinds that classify images, with the names of their classes."""
    return {
        kind: (names,) if isinstance(names, str) else tuple(names)
        for kind, names in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items()
    }


def auto_class(kind: str) -> Any:
    """Return the auto class of transformers that builds a network of images: a classifier, else what there is."""
    if kind in image_classifiers():
        return transformers.AutoModelForImageClassification
    return transformers.AutoModel if kind in auto.MODEL_MAPPING_NAMES else transformers.AutoBackbone


def image_kinds() -> list[str]:
    """Return every kind that classifies images (``KIND/CLASS`` where it has several classes), and every backbone, image
    encoder and vision tower.
    """
    found = set()
    for kind, names in image_classifiers().items():
        found |= {kind} if len(names) == 1 else {f"{kind}/{name}" for name in names}
    towers = {kind for kind in auto.MODEL_MAPPING_NAMES if "vision" in kind}
    others = {*auto.MODEL_FOR_BACKBONE_MAPPING_NAMES, *auto.MODEL_FOR_IMAGE_MAPPING_NAMES, *towers}
    return sorted(found | {kind for kind in others - image_classifiers().keys() if _reads_images(kind)})


def _reads_images(kind: str) -> bool:
    """Whether transformers says that the main input of the kind's model is an image."""
    names = auto.MODEL_MAPPING_NAMES.get(kind) or auto.MODEL_FOR_BACKBONE_MAPPING_NAMES[kind]
    model = getattr(transformers, names if isinstance(names, str) else names[0], None)
    return model is not None and model.main_input_name == "pixel_values"


def text_classifiers() -> set[str]:
    """Return the kinds that classify texts."""
    return set(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)


def text_kinds() -> list[str]:
    """Return every kind that classifies or encodes texts."""
    return sorted(text_classifiers() | set(auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES))


def is_decoder(kind: str) -> bool:
    """Whether it generates text and has no masked language model."""
    if CONFIG_MAPPING[kind]().is_encoder_decoder:
        return False
    return kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
