# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Networks of transformers, made from small configurations; one of them with adapters of peft."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from network import Network, pictures, tokens
from torch import nn

_WIDTHS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_PICTURES = {"image_size": 32, "patch_size": 8}
_STAGES = {"depths": [1, 1, 1, 1]}
_FILTERS = {
    "conv_dim": [32, 32],
    "conv_stride": [4, 4],
    "conv_kernel": [8, 4],
    "num_feat_extract_layers": 2,
}
_WORDS = {"vocab_size": 100, "max_position_embeddings": 32}
_UNCACHED = {"use_cache": False}
_CAUSAL = {**_UNCACHED, "bos_token_id": 1, "eos_token_id": 2}

CONFIGURATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "BERT": ("BertConfig", "BertForSequenceClassification", {**_WIDTHS, **_WORDS}),
    "GPT-2": ("GPT2Config", "GPT2LMHeadModel", {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4, **_CAUSAL}),
    "Llama": ("LlamaConfig", "LlamaForCausalLM", {**_WIDTHS, **_WORDS, "num_key_value_heads": 2, **_CAUSAL}),
    "T5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "vocab_size": 100,
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "use_cache": False,
        },
    ),
    "ViT": ("ViTConfig", "ViTForImageClassification", {**_WIDTHS, **_PICTURES}),
    "DeiT": ("DeiTConfig", "DeiTForImageClassification", {**_WIDTHS, **_PICTURES}),
    "Swin": (
        "SwinConfig",
        "SwinForImageClassification",
        {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
    ),
    "Whisper": (
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {
            "vocab_size": 100,
            "num_mel_bins": 20,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "max_source_positions": 30,
            "max_target_positions": 32,
            "pad_token_id": 0,
            "decoder_start_token_id": 1,
            **_CAUSAL,
        },
    ),
    "wav2vec2": (
        "Wav2Vec2Config",
        "Wav2Vec2ForCTC",
        {**_WIDTHS, **_FILTERS, "vocab_size": 30, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
    ),
    "CLIP": (
        "CLIPConfig",
        "CLIPModel",
        {
            "text_config": {**_WIDTHS, **_WORDS, "bos_token_id": 1, "eos_token_id": 2},
            "vision_config": {**_WIDTHS, **_PICTURES},
            "projection_dim": 32,
        },
    ),
    "SegFormer": (
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        {
            **_STAGES,
            "hidden_sizes": [16, 32, 48, 64],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 64,
            "num_labels": 5,
        },
    ),
    "DETR": (
        "DetrConfig",
        "DetrForObjectDetection",
        {
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone_config": ("ResNetConfig", {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], **_STAGES}),
            "d_model": 64,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "num_queries": 10,
        },
    ),
}
"""By name: the configuration's class, the network's class, and what differs from the configuration's defaults."""


def _words() -> dict[str, Any]:
    ids = tokens(100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _pixels(size: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"pixel_values": pictures(size, samples=4)()}


BATCHES: dict[str, Callable[[], dict[str, Any]]] = {
    "BERT": _words,
    "GPT-2": _words,
    "Llama": _words,
    "T5": lambda: {**_words(), "decoder_input_ids": tokens(100, length=8)},
    "ViT": _pixels(32),
    "DeiT": _pixels(32),
    "Swin": _pixels(64),
    "Whisper": lambda: {"input_features": torch.randn(4, 20, 60), "decoder_input_ids": tokens(100, length=8)},
    "wav2vec2": lambda: {"input_values": torch.randn(4, 800)},
    "CLIP": lambda: {**_words(), "pixel_values": pictures(32, samples=4)()},
    "SegFormer": _pixels(64),
    "DETR": _pixels(64),
}


def rows() -> Iterator[Network]:
    """Every network."""
    for name in CONFIGURATIONS:
        yield Network("transformers", name, functools.partial(_make, name), BATCHES[name])
    yield Network("transformers", "Llama with LoRA of peft", _with_lora, _words)


def _make(name: str) -> nn.Module:
    import transformers

    configuration, network, settings = CONFIGURATIONS[name]
    settings = {
        key: getattr(transformers, value[0])(**value[1]) if isinstance(value, tuple) else value
        for key, value in settings.items()
    }
    return getattr(transformers, network)(getattr(transformers, configuration)(**settings))


def _with_lora() -> nn.Module:
    import peft

    return peft.get_peft_model(_make("Llama"), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
