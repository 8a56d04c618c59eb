"""The size of a transformer's KV cache, from its ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Where a model of several parts keeps what is said of its language model.
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")
# What older releases of transformers have left out of such a part, as it is what its class has anyway.
_LEFT_OUT: Mapping[str, Mapping[str, int]] = {
    kind: {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, **more}
    for kind, more in {
        "llama": {"max_position_embeddings": 2048},
        "mistral": {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
        "qwen2": {"max_position_embeddings": 32_768, "num_key_value_heads": 32},
    }.items()
}
# Kinds of layers (``layer_types``) whose cache does not grow with the sequence.
_STATES = ("linear", "mamba", "conv", "recurrent", "mlp", "moe", "ssm", "lightning")
_WINDOWS = ("sliding", "chunked", "local")


@dataclass(frozen=True)
class Cache:
    """How many layers keep every token, how many only the last ``window`` ones, and the elements (keys and values)
    that one layer keeps of one token."""

    layers: int
    windowed: int
    window: int
    per_token: int

    def elements(self, tokens: int) -> int:
        """Elements of the cache of one sequence."""
        return self.per_token * (self.layers * tokens + self.windowed * min(tokens, self.window or tokens))


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model; the config itself where it has no parts."""
    for part in _TEXT_PARTS:
        found = config.get(part)
        if isinstance(found, dict) and found:
            text = text_config(found)  # a thinker again has a text_config of its own
            return {**_LEFT_OUT.get(str(text.get("model_type")), {}), **text}
    return config


def read_cache(config: Mapping[str, Any]) -> Cache | None:
    """The cache of the model with that ``config.json``; None where it cannot be told."""
    text = text_config(config)
    layers = _number(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
    per_token = _latent(text) or _keys_and_values(text)
    if not layers or not per_token:
        return None
    full, windowed, window = _layers(text, layers)
    return Cache(full, windowed, window, per_token)


def _latent(text: Mapping[str, Any]) -> int | None:
    """Multi-head latent attention keeps one compressed vector a token for keys and values of all heads."""
    rank = _number(text, "kv_lora_rank")
    return rank + (_number(text, "qk_rope_head_dim") or 0) if rank else None


def _keys_and_values(text: Mapping[str, Any]) -> int | None:
    heads = _number(text, "num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads")
    kv_heads = _number(text, "num_key_value_heads", "num_kv_heads", "n_head_kv", "num_key_value_groups")
    if text.get("multi_query_attention"):
        kv_heads = _number(text, "multi_query_group_num") or 1
    elif text.get("multi_query") and not text.get("new_decoder_architecture"):
        kv_heads = 1
    hidden = _number(text, "hidden_size", "n_embd", "d_model")
    size = _number(text, "head_dim", "kv_channels", "d_kv")
    if not size and hidden and heads:
        size = hidden // heads
    kv_heads = kv_heads or heads
    return 2 * kv_heads * size if kv_heads and size else None


def _layers(text: Mapping[str, Any], layers: int) -> tuple[int, int, int]:
    """Layers with the whole sequence, layers with a window, and the window."""
    window = _number(text, "sliding_window", "attention_chunk_size", "window_size") or 0
    kinds = text.get("layer_types") or text.get("layers_block_type")
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str):  # Nemotron-H: one letter a layer, a star for attention
        return pattern.count("*"), 0, 0
    if isinstance(kinds, list) and kinds:
        names = [str(kind) for kind in kinds]
        states = sum(any(word in name for word in _STATES) for name in names)
        windowed = sum(any(word in name for word in _WINDOWS) for name in names)
        return len(names) - states - windowed, windowed, window
    every = _number(text, "full_attention_interval", "attn_layer_period")
    if every:  # the other layers keep a state
        return max(1, layers // every), 0, 0
    if not window or text.get("use_sliding_window") is False:
        return layers, 0, 0
    pattern_length = _number(text, "sliding_window_pattern", "_sliding_window_pattern")
    if not pattern_length and text.get("model_type") == "gemma2":
        pattern_length = 2
    full = layers // pattern_length if pattern_length else _number(text, "max_window_layers") or 0
    full = min(full, layers)
    return full, layers - full, window


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of these that is a positive whole number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
