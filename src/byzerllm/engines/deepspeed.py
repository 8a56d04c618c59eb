"""DeepSpeed: a text model with its matrices divided among GPUs (or processes), in the host of ``transformers.py``.

``backend.tp_size`` is how many ranks share the model, by default the whole GPUs of a worker. With
``backend.replace_with_kernel_inject`` a GPU runs DeepSpeed's own kernels, for architectures that have them; requests
are then answered one after the other. Else they are batched, with 16 slots unless ``--worker_concurrency`` says
otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from byzerllm.engines import hf_folder
from byzerllm.engines import transformers as hf
from byzerllm.engines.base import EngineOptions, Launch, Memory
from byzerllm.engines.hf_folder import Kind
from byzerllm.engines.hf_parameters import DEEPSPEED, read_all
from byzerllm.errors import InvalidInput
from byzerllm.wire.base import Task

if TYPE_CHECKING:
    from byzerllm.spec import DeploymentSpec

TASKS = (Task.CHAT, Task.COMPLETION, Task.TOKENIZE, Task.DETOKENIZE)
BETTER = "vllm is the better choice where it runs: it is quicker and holds more requests at a time."


class DeepSpeed:
    """The engine ``deepspeed``."""

    name = "deepspeed"
    secret_params: frozenset[str] = frozenset()

    def parse(self, spec: DeploymentSpec) -> EngineOptions:
        """Check the type, the GPUs and the parameters of ``spec``.

        Raises:
            InvalidInput: names what is wrong and what it may be.
        """
        wanted = hf.kind_of_type(spec)
        hf.require_path(self.name, spec)
        kind = hf_folder.kind_of(spec.model_path) or wanted or Kind.CAUSAL_LM
        if kind is not Kind.CAUSAL_LM or wanted not in (None, Kind.CAUSAL_LM):
            raise InvalidInput(
                f"deepspeed runs models that generate text; {spec.model_path} is a model of the kind "
                f"{(wanted if kind is Kind.CAUSAL_LM and wanted else kind).value}.",
                hint="Use --infer_backend transformers.",
                param="infer_backend",
            )
        values, warnings = read_all(self.name, DEEPSPEED, spec.infer_params)
        _divide(values, spec.gpus_per_worker)
        injected = values.get("replace_with_kernel_inject", False)
        slots = spec.worker_concurrency or (1 if injected else hf.TEXT_SLOTS)
        beside = {"kind": kind.value, "task": "deepspeed", "name": spec.name, "gpus": spec.gpus_per_worker}
        share = {
            "threads": int(spec.cpus_per_worker) // values["tp_size"],
            "sharers": spec.num_workers * values["tp_size"],
        }
        return EngineOptions(
            model_path=spec.model_path,
            slots=slots,
            tasks=TASKS,
            values={**beside, **share, "arguments": values},
            warnings=(BETTER, *warnings),
        )

    def check(self, options: EngineOptions) -> Memory | None:
        """Look at the model's files. Blocks for some tenths of a second.

        Raises:
            InvalidInput: a file is missing or cut short, or the model cannot be divided in that way.
        """
        hf_folder.refuse_hub_name(options.model_path, self.name)
        arguments = options.values["arguments"]
        hf.check_files(arguments)
        folder = hf_folder.read(options.model_path)
        hf.check_folder(folder, arguments)
        ranks = arguments["tp_size"]
        heads = _key_heads(folder.config)
        if heads and heads % ranks:
            raise InvalidInput(
                f"backend.tp_size={ranks} does not divide the model's {heads} key/value heads.", param="backend.tp_size"
            )
        on_gpu = options.values["gpus"] > 0
        needs = hf.memory_of(folder, arguments, on_gpu=on_gpu)
        # Each rank loads the whole model before its part is cut out. It is then in the file's pages, which all share;
        # but not if the numbers are converted.
        converted = hf.dtype_of(folder, arguments, on_gpu=on_gpu) != folder.dtype
        copies = needs.weights * ranks if converted else 0
        if on_gpu:
            return Memory(needs.weights, needs.cache, on_gpu, ranks, host=copies)
        # A rank alone cuts nothing: its weights stay in these pages.
        return Memory(copies or needs.weights, needs.cache, on_gpu, mapped=ranks == 1 and not converted)

    def command(self, options: EngineOptions, host: str, port: int, token: str) -> Launch:
        """The process of one worker, which starts the other ranks itself."""
        return hf.host_launch(self.name, hf.HOST, options, host, port, token)

    def phase(self, line: str) -> str | None:
        return hf.phase(line)

    def cause(self, tail: str) -> str | None:
        return hf.cause(tail)


def _divide(values: dict[str, Any], gpus: float) -> None:
    """Set the number of ranks from the GPUs, or refuse one that contradicts them."""
    whole = max(1, int(gpus))
    if gpus and values.setdefault("tp_size", whole) != whole:
        raise InvalidInput(
            f"backend.tp_size={values['tp_size']} contradicts --gpus_per_worker {gpus:g}: each rank has one GPU.",
            param="backend.tp_size",
        )
    values.setdefault("tp_size", whole)
    if values.get("replace_with_kernel_inject"):
        if not gpus:
            raise InvalidInput(
                "backend.replace_with_kernel_inject needs a GPU: DeepSpeed has no such kernels for CPUs.",
                hint="Leave it out, or give --gpus_per_worker 1.",
                param="backend.replace_with_kernel_inject",
            )
        if values["tp_size"] > 1:
            raise InvalidInput(
                "backend.replace_with_kernel_inject is for one GPU a worker here.",
                hint="Leave it out to divide the model among several.",
                param="backend.replace_with_kernel_inject",
            )


def _key_heads(config: Any) -> int:
    text = config.get("text_config") or config
    heads = text.get("num_key_value_heads") or text.get("num_attention_heads") or 0
    return heads if isinstance(heads, int) else 0
