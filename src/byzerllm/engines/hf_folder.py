"""Reading a Hugging Face model folder without torch: what it is, how large, and whether all of it is there.

Standard library and ``errors.py`` only, as the engines' own processes use it too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from byzerllm.engines.funasr_folder import is_sensevoice
from byzerllm.engines.hf_cache import Cache, read_cache, text_config
from byzerllm.engines.hf_weights import DTYPE_BYTES, Weights, bad, read_json, read_weights, unreadable
from byzerllm.errors import InvalidInput

__all__ = ["DTYPE_BYTES", "Folder", "Kind", "is_folder", "kind_of", "looks_like_hub_name", "read"]

CONFIG, PIPELINE, MODULES = "config.json", "model_index.json", "modules.json"
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json", "tekken.json")
_TOKENIZER = ("tokenizer*", "vocab.*", "*.tiktoken", "*.model", "tekken.json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")


class Kind(str, Enum):
    """What a model does, in words for a person."""

    CAUSAL_LM = "causal LM"  # from text to text
    MULTIMODAL_CHAT = "multimodal chat"  # about images, sounds or both
    EMBEDDING = "embedding model"
    RERANKER = "reranker"  # or another classifier of text
    TRANSCRIPTION = "speech recognition"
    SPEECH = "text to speech"
    IMAGE = "text to image"


_TEXT = (Kind.CAUSAL_LM, Kind.MULTIMODAL_CHAT, Kind.EMBEDDING, Kind.RERANKER)

# By the end of an architecture's name, the first that fits.
_BY_ARCHITECTURE: tuple[tuple[str, Kind], ...] = (
    ("ForSequenceClassification", Kind.RERANKER),
    ("ForTextToSpeech", Kind.SPEECH),
    ("ForTextToWaveform", Kind.SPEECH),
    ("ForSpeechSeq2Seq", Kind.TRANSCRIPTION),
    ("ForCTC", Kind.TRANSCRIPTION),
    ("ForRNNT", Kind.TRANSCRIPTION),
    ("ForTDT", Kind.TRANSCRIPTION),
    ("ForMaskedLM", Kind.EMBEDDING),
    ("EncoderModel", Kind.EMBEDDING),
    ("ForCausalLM", Kind.CAUSAL_LM),
    ("LMHeadModel", Kind.CAUSAL_LM),
    ("ForConditionalGeneration", Kind.CAUSAL_LM),
    ("ChatModel", Kind.CAUSAL_LM),
)
# Where the architecture's name does not tell.
_BY_MODEL_TYPE: Mapping[str, Kind] = {
    **dict.fromkeys(("whisper", "moonshine", "speech_to_text", "cohere_asr"), Kind.TRANSCRIPTION),
    **dict.fromkeys(
        ("vits", "bark", "csm", "dia", "parler_tts", "fastspeech2_conformer", "musicgen", "seamless_m4t"), Kind.SPEECH
    ),
    **dict.fromkeys(("clip", "siglip", "siglip2", "chinese_clip", "align", "colpali", "colqwen2"), Kind.EMBEDDING),
    **dict.fromkeys(("qwen2_5_omni", "qwen3_omni_moe"), Kind.MULTIMODAL_CHAT),
    "chatglm": Kind.CAUSAL_LM,
}
_SENSES = ("vision_config", "visual", "vision_tower", "mm_vision_tower", "audio_config", "img_processor", "vit_config")


@dataclass(frozen=True)
class Folder:
    """A model folder whose files were found to be whole.

    ``dtype`` is torch's name of the type that it was saved in. ``context_length`` is in tokens, None where it is not
    limited or not told. ``labels`` is the number of classes of a classifier, else 0. ``quantization`` names the
    method, empty if there is none. ``chat_template`` is the name of the file that holds one.
    """

    path: Path
    kind: Kind
    model_type: str
    architectures: tuple[str, ...]
    dtype: str
    context_length: int | None
    tensors: Weights
    labels: int
    quantization: str
    remote_code: bool
    chat_template: str | None
    cache: Cache | None
    config: Mapping[str, Any]

    @property
    def weights(self) -> int:
        """Bytes of all weights on the disk."""
        return self.tensors.size

    def weight_bytes(self, width: float | None = None) -> int:
        """Bytes of all weights in memory; ``width`` is that of a floating-point number (None: as saved)."""
        stored = self._width()
        return self.tensors.loaded(stored if width is None else width, stored)

    def cache_bytes(self, tokens: int, *, width: float | None = None) -> int:
        """Bytes of the KV cache of one sequence of so many tokens, all layers; 0 where that cannot be told."""
        if self.cache is None:
            return 0
        return int(self.cache.elements(tokens) * (self._width() if width is None else width))

    def _width(self) -> float:
        return DTYPE_BYTES.get(self.dtype, 2)


def is_folder(path: str) -> bool:
    """Whether it is a folder with a model in Hugging Face's form, whole or not."""
    found = Path(path).expanduser()
    try:
        return any((found / name).is_file() for name in (CONFIG, PIPELINE))
    except OSError:
        return False


def looks_like_hub_name(path: str) -> bool:
    """Whether it is no path of this machine but a name such as ``Qwen/Qwen3-8B``."""
    return _HUB_NAME.fullmatch(path) is not None and not Path(path).exists()


def refuse_hub_name(path: str, engine: str) -> None:
    """Refuse a name on the hub for an engine that downloads nothing.

    Raises:
        InvalidInput: has the command that downloads it.
    """
    if looks_like_hub_name(path):
        raise InvalidInput(
            f"--model_path {path} is no folder here but looks like a name on the Hugging Face hub, and {engine} reads "
            "folders only.",
            hint=f"Run: hf download {path} --local-dir FOLDER, or use --infer_backend vllm, which downloads it.",
            param="model_path",
        )


def kind_of(path: str) -> Kind | None:
    """What the model is; None if there is no folder that tells, which ``read`` then says the reason of."""
    folder = Path(path).expanduser()
    try:
        return _kind(folder, _config(folder))
    except (InvalidInput, OSError):
        return None


def read(path: str, *, tokenizer: bool = True) -> Folder:
    """All that is known of the model in a folder. Reads its small files and the heads of the large ones.

    ``tokenizer``: whether it must have one of its own.

    Raises:
        InvalidInput: what is missing, cut short, or not what it should be; names the file.
    """
    folder = Path(path).expanduser()
    try:
        return _read(folder, tokenizer)
    except PermissionError as error:
        raise unreadable(folder, error) from None


def _read(folder: Path, tokenizer: bool) -> Folder:
    config = _config(folder)
    kind = _kind(folder, config)
    if kind is None:
        raise bad(f"{folder / CONFIG} names no architectures: it cannot be told what the model is.")
    tensors = _pipeline_weights(folder, config) if kind is Kind.IMAGE else _weights(folder)
    if tokenizer and kind in _TEXT and not any(True for name in _TOKENIZER for _ in folder.glob(name)):
        raise bad(f"{folder} has no tokenizer (tokenizer.json, tokenizer.model, vocab.txt ...).", _WHOLE)
    text = text_config(config)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype") or "")
    dtype = dtype.removeprefix("torch.")
    return Folder(
        path=folder,
        kind=kind,
        model_type=str(config.get("model_type", "")),
        architectures=_architectures(config),
        dtype=dtype if dtype in DTYPE_BYTES else tensors.dtype or "float32",
        context_length=_context_length(folder, config, text),
        tensors=tensors,
        labels=_labels(config) if kind is Kind.RERANKER else 0,
        quantization=_quantization(config, text),
        remote_code="auto_map" in config,
        chat_template=_chat_template(folder) if kind in _TEXT else None,
        cache=read_cache(config) if kind in _TEXT else None,
        config=config,
    )


_WHOLE = "Download the whole model into one folder."


def _config(folder: Path) -> dict[str, Any]:
    """The file that says what it is."""
    for name in (PIPELINE, CONFIG):
        if (folder / name).is_file() or (folder / name).is_symlink():
            return read_json(folder / name)
    if not folder.exists():
        raise bad(f"--model_path {folder} does not exist.")
    if folder.suffix.lower() == ".gguf" or any(folder.glob("*.gguf")):
        raise bad(f"--model_path {folder} holds a GGUF model.", "Use --infer_backend llama_cpp.")
    if not folder.is_dir():
        raise bad(f"--model_path {folder} is a file, not the folder of a model.")
    if is_sensevoice(str(folder)):
        raise bad(f"--model_path {folder} holds a SenseVoice model.", "Use --infer_backend funasr.")
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path", "")
        raise bad(f"--model_path {folder} holds a LoRA adapter, no model.", f"Name its base model's folder ({base}).")
    raise bad(f"--model_path {folder} holds no {CONFIG}: it is no model folder.", _WHOLE)


def _architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("architectures") or config.get("_class_name")
    if isinstance(names, str):
        return (names,)
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def _kind(folder: Path, config: Mapping[str, Any]) -> Kind | None:
    if "_class_name" in config or (folder / PIPELINE).is_file():
        return Kind.IMAGE
    names = _architectures(config)
    if any(name.endswith("ForSequenceClassification") for name in names):
        return Kind.RERANKER  # newer cross-encoders have a modules.json too
    if (folder / MODULES).is_file():
        return Kind.EMBEDDING
    known = _BY_MODEL_TYPE.get(str(config.get("model_type", "")))
    if known is not None:
        return known
    remote = config.get("auto_map")
    if isinstance(remote, dict) and not names:
        names = tuple(name.removeprefix("AutoModel") for name in remote)
    for end, kind in _BY_ARCHITECTURE:
        if any(name.endswith(end) for name in names):
            perceives = kind is Kind.CAUSAL_LM and any(config.get(key) for key in _SENSES)
            return Kind.MULTIMODAL_CHAT if perceives else kind
    return Kind.EMBEDDING if any(name.endswith("Model") for name in names) else None


def _weights(folder: Path) -> Weights:
    found = read_weights(folder)
    if found is None:  # older sentence-transformers have the encoder in a folder of its own
        found = read_weights(folder / "0_Transformer")
    if found is None:
        gguf = any(folder.glob("*.gguf"))
        hint = "For its .gguf files use --infer_backend llama_cpp." if gguf else _WHOLE
        raise bad(f"{folder} has no weights (*.safetensors or *.bin).", hint)
    return found


def _pipeline_weights(folder: Path, index: Mapping[str, Any]) -> Weights:
    """Of each part that a diffusers pipeline names and that has any."""
    total: dict[str, int] = {}
    for part, source in index.items():
        if isinstance(source, list) and source and source[0] is not None and (folder / part).is_dir():
            found = read_weights(folder / part, "diffusion_pytorch_model") or read_weights(folder / part)
            for dtype, size in found.bytes_by_dtype.items() if found else ():
                total[dtype] = total.get(dtype, 0) + size
    if not total:
        raise bad(f"{folder} has no weights in the folders that {PIPELINE} names.", _WHOLE)
    return Weights(total)


_LENGTHS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len", "n_ctx",
)  # fmt: skip
# Rotary scalings whose result max_position_embeddings holds already.
_SCALED = ("default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "mrope")


def _context_length(folder: Path, config: Mapping[str, Any], text: Mapping[str, Any]) -> int | None:
    for name in ("sentence_bert_config.json", "0_Transformer/sentence_bert_config.json"):
        limit = read_json(folder / name).get("max_seq_length") if (folder / name).is_file() else None
        if isinstance(limit, int):
            return limit
    lengths = [text[key] for key in _LENGTHS if isinstance(text.get(key), int) and text[key] > 0]
    if not lengths:
        return None
    length = float(min(lengths))
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    if isinstance(rope, dict) and "gemma3" not in str(config.get("model_type")):
        kind, factor = rope.get("rope_type", rope.get("type", "default")), rope.get("factor")
        if kind not in _SCALED and isinstance(factor, (int, float)):
            length *= factor
    if "roberta" in str(config.get("model_type")):  # its positions begin after that of the padding
        length -= 1 + int(config.get("pad_token_id") or 1)
    return int(length)


def _labels(config: Mapping[str, Any]) -> int:
    labels = config.get("id2label")
    if isinstance(labels, dict) and labels:
        return len(labels)
    number = config.get("num_labels")
    return number if isinstance(number, int) else 2  # what transformers makes of a config that does not say


def _quantization(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    for key in ("quantization_config", "compression_config"):
        found = config.get(key) or text.get(key)
        if isinstance(found, dict):
            return str(found.get("quant_method") or "bitsandbytes")
    return ""


def _chat_template(folder: Path) -> str | None:
    for name in TEMPLATE_FILES:
        path = folder / name
        if path.is_file() and (not name.endswith("config.json") or read_json(path).get("chat_template")):
            return name
    return None
