"""Which engine runs a model where ``--infer_backend`` was left out: by the model's path and the GPUs of a worker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from byzerllm.engines import funasr_folder, hf_folder, llama_cpp, transformers
from byzerllm.engines.hf_folder import Kind
from byzerllm.errors import InvalidInput

if TYPE_CHECKING:
    from byzerllm.spec import DeploymentSpec

# Types of the older tool that have an engine of their own; there it was ``transformers`` that ran them.
OWN_ENGINE = {"sensevoice": "funasr"}
_ON_VLLM = frozenset((Kind.CAUSAL_LM, Kind.MULTIMODAL_CHAT, Kind.EMBEDDING, Kind.RERANKER))


class Choice(NamedTuple):
    """An engine, and why, in words that go between brackets."""

    engine: str
    reason: str


def is_open(spec: DeploymentSpec) -> bool:
    """Whether the engine of a private instance is ours to choose: it was left out, or named as in the older tool."""
    return not spec.infer_backend or (spec.infer_backend == "transformers" and spec.kind in OWN_ENGINE)


def refuse_other(spec: DeploymentSpec) -> None:
    """Raises InvalidInput: the type has an engine of its own, and it is another one that was named."""
    own = OWN_ENGINE.get(spec.kind)
    if own is not None and spec.infer_backend != own:
        raise InvalidInput(
            f"--pretrained_model_type {spec.pretrained_model_type} is run by {own}, not by {spec.infer_backend}.",
            hint="Leave --infer_backend out.",
            param="infer_backend",
        )


def choose(spec: DeploymentSpec) -> Choice:
    """The engine for a private instance; looks at the disk.

    Raises:
        InvalidInput: there is no such type, no model at ``model_path``, or the engine that would run it downloads none.
    """
    if spec.kind not in OWN_ENGINE and spec.kind not in llama_cpp.KINDS:
        transformers.kind_of_type(spec)
    if not spec.model_path:
        raise InvalidInput(
            f"--model_path is missing: {spec.pretrained_model_type} runs weights of your own.",
            hint="It is a .gguf file or a model folder.",
            param="model_path",
        )
    if spec.kind in OWN_ENGINE:
        return Choice(OWN_ENGINE[spec.kind], f"the type {spec.pretrained_model_type}")
    what = _what(spec.model_path)
    if what == "GGUF":
        return Choice("llama_cpp", "a GGUF file")
    if what == _SENSEVOICE and spec.kind == "auto":
        return Choice("funasr", what)
    if spec.kind != "auto":
        hf_folder.refuse_hub_name(spec.model_path, "transformers")
        return Choice("transformers", f"the type {spec.pretrained_model_type}")
    if spec.gpus_per_worker <= 0:
        hf_folder.refuse_hub_name(spec.model_path, "transformers")
        return Choice("transformers", f"{what}, and --gpus_per_worker is 0")
    kind = hf_folder.kind_of(spec.model_path)
    if kind is None or kind in _ON_VLLM:
        return Choice("vllm", f"{what}, and GPUs for its workers")
    return Choice("transformers", f"{what} for {kind.value}")


_SENSEVOICE = "a SenseVoice model"


def _what(model_path: str) -> str:
    path = Path(model_path)
    if path.suffix.lower() == ".gguf" or _is_gguf_folder(path):
        return "GGUF"
    if hf_folder.is_folder(model_path):
        return "a model folder"
    if funasr_folder.is_sensevoice(model_path):
        return _SENSEVOICE
    if hf_folder.looks_like_hub_name(model_path):
        return "a name on the Hugging Face hub"
    there = path.exists()
    raise InvalidInput(
        f"--model_path {model_path} {'is neither a .gguf file nor a model folder' if there else 'does not exist'}.",
        hint="A model folder has a config.json or a model_index.json." if there else None,
        param="model_path",
    )


def _is_gguf_folder(path: Path) -> bool:
    """Whether it has such files and no other weights: some models' GGUF files come with the original config.json."""
    if not path.is_dir():
        return False
    endings = {file.suffix.lower() for file in path.iterdir()}
    return ".gguf" in endings and not endings & {".safetensors", ".bin", ".pt"}
