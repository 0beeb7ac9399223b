"""What transformers is told so that it loads a model in 8 or 4 bits."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig

import kdcli.models.transformers.quiet  # noqa: F401
from kdcli.base.names import Quantization


def loading_arguments(quantization: Quantization) -> dict[str, Any]:
    """Return what transformers' ``from_pretrained`` takes for it; weights are quantised on the CPU, alike everywhere.

    Outliers of int8 are told apart as LLM.int8 does, by transformers' own threshold.
    """
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # that inputs are cast, every time
    if quantization == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return {"quantization_config": config, "device_map": {"": "cpu"}}
