"""funasr: SenseVoice models, which write speech in Chinese, Cantonese, English, Japanese or Korean down, with emoji for
the speaker's mood and for what else is heard (laughter, applause, music ...), in the host of ``transformers.py``.

The type ``custom/sensevoice`` is run by it, and ``custom/auto`` where the folder holds such a model. A request's
``language`` is ``auto`` (also where there is none), ``zh``, ``yue``, ``en``, ``ja``, ``ko`` or ``nospeech``; a prompt,
a temperature and times (``srt``, ``vtt``, ``verbose_json``) are refused, as the model has none of them.

Without ``vad_model`` a recording may be 5 minutes long, and best is below 30 seconds. With it, which is the folder of a
``fsmn-vad`` model, one of 2 hours is cut where nobody speaks. Nothing is fetched from a hub, and code in a model's
folder is never run. Parameters may have ``backend.`` in front.

A worker has ``--worker_concurrency`` slots, by default 4, and writes one recording after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byzerllm.engines import funasr_folder, hf_folder
from byzerllm.engines import transformers as hf
from byzerllm.engines.base import EngineOptions, Launch, Memory
from byzerllm.engines.hf_folder import Kind
from byzerllm.engines.hf_parameters import PREFIX, read_all
from byzerllm.engines.parameters import BOOLEAN, PATH, Form, Parameter, choice, number, whole
from byzerllm.errors import InvalidInput
from byzerllm.wire.base import Task

if TYPE_CHECKING:
    from byzerllm.spec import DeploymentSpec

TASKS = (Task.TRANSCRIPTION,)
TYPES = ("auto", "sensevoice")
VAD_PREFIX = "vad_kwargs."

_DEVICES = choice("cpu", "cuda", "mps")
_OF_VAD = "the model's own"
_MILLISECONDS = whole(0)
PARAMETERS: Mapping[str, Parameter] = {
    "use_itn": Parameter(BOOLEAN, "true", "write numbers, dates and amounts in figures, and punctuation"),
    "device": Parameter(
        Form(_DEVICES.said, lambda name, text: _DEVICES.read(name, text.strip().lower().removesuffix(":0"))),
        "a GPU where the worker has one",
        "where the models run",
    ),
    "vad_model": Parameter(PATH, "none", "folder of the model that finds where somebody speaks, such as `fsmn-vad`"),
    "merge_vad": Parameter(BOOLEAN, "true", "with `vad_model`: put short stretches of speech together"),
    "merge_length_s": Parameter(whole(1), "15", "with `merge_vad`: seconds up to which they are put together"),
    "batch_size_s": Parameter(
        whole(1), "60", "with `vad_model`, on a GPU: seconds of sound that are worked on at once"
    ),
    **{
        VAD_PREFIX + name: Parameter(form, _OF_VAD, f"of `vad_model`: {meaning}")
        for name, form, meaning in (
            ("max_single_segment_time", whole(1), "milliseconds after which a stretch of speech is cut"),
            ("max_end_silence_time", _MILLISECONDS, "milliseconds of silence that end one"),
            ("max_start_silence_time", _MILLISECONDS, "milliseconds of silence that may be before one"),
            ("sil_to_speech_time_thres", _MILLISECONDS, "milliseconds of speech that begin one"),
            ("speech_to_sil_time_thres", _MILLISECONDS, "milliseconds of silence that count as such"),
            ("lookback_time_start_point", _MILLISECONDS, "milliseconds that are added before one"),
            ("lookahead_time_end_point", _MILLISECONDS, "milliseconds that are added after one"),
            ("speech_noise_thres", number(), "how much likelier than noise speech must be"),
            ("decibel_thres", number(), "loudness in dB below which nothing is speech"),
            ("snr_thres", number(), "loudness over the noise in dB below which nothing is speech"),
        )
    },
}
DEFAULTS: Mapping[str, Any] = {"use_itn": True, "merge_vad": True, "merge_length_s": 15, "batch_size_s": 60}
_NEEDS_VAD = ("merge_vad", "merge_length_s", "batch_size_s")
# The older tool let the folder's own code be run; funasr has that of SenseVoice itself.
_CODE = ("trust_remote_code", "remote_code")

# While funasr loads weights it holds them three times: in the model, as read, and a copy of that.
COPIES = 3


class FunAsr:
    """The engine ``funasr``."""

    name = "funasr"
    secret_params: frozenset[str] = frozenset()

    def parse(self, spec: DeploymentSpec) -> EngineOptions:
        """Check the type and the parameters of ``spec``.

        Raises:
            InvalidInput: names what is wrong and what it may be.
        """
        if spec.kind not in TYPES or spec.is_saas:
            raise InvalidInput(
                f"--pretrained_model_type {spec.pretrained_model_type!r} cannot be run by funasr.",
                hint="Use custom/sensevoice.",
                param="pretrained_model_type",
            )
        if not spec.model_path:
            raise InvalidInput(
                "--model_path is missing: funasr needs the folder of a SenseVoice model.", param="model_path"
            )
        values, warnings = _read(spec.infer_params)
        if values.get("device") == "cuda" and not spec.gpus_per_worker:
            raise InvalidInput("device=cuda needs --gpus_per_worker.", param="device")
        slots = hf.slots_of(spec, hf.OTHER_SLOTS)
        beside = {"kind": Kind.TRANSCRIPTION.value, "task": "sensevoice", "name": spec.name}
        share = {"threads": int(spec.cpus_per_worker), "sharers": spec.num_workers, "gpus": spec.gpus_per_worker}
        return EngineOptions(
            spec.model_path, slots, TASKS, {**beside, **share, "arguments": values}, warnings=tuple(warnings)
        )

    def check(self, options: EngineOptions) -> Memory | None:
        """Look at the files of the models. Blocks for some tenths of a second.

        Raises:
            InvalidInput: a file is missing or cut short, or a model is another one or on a hub.
        """
        arguments = options.values["arguments"]
        _refuse_hub_name(options.model_path, "model_path", "FunAudioLLM/SenseVoiceSmall")
        weights = funasr_folder.weight_bytes(options.model_path, funasr_folder.SENSEVOICE)
        if "vad_model" in arguments:
            _refuse_hub_name(arguments["vad_model"], "vad_model", "funasr/fsmn-vad")
            weights += funasr_folder.weight_bytes(arguments["vad_model"], funasr_folder.VAD, "vad_model")
        if options.values["gpus"] and arguments.get("device") != "cpu":
            return Memory(weights, 0, on_gpu=True, host=COPIES * weights)
        return Memory(COPIES * weights, 0, on_gpu=False)

    def command(self, options: EngineOptions, host: str, port: int, token: str) -> Launch:
        """The process of one worker."""
        return hf.host_launch(self.name, hf.HOST, options, host, port, token)

    def phase(self, line: str) -> str | None:
        return hf.phase(line)

    def cause(self, tail: str) -> str | None:
        return hf.cause(tail)


def _read(params: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The values with the defaults of those that are not given, and warnings."""
    code = [name for name in params if name.removeprefix(PREFIX) in _CODE]
    values, warnings = read_all("funasr", PARAMETERS, {k: v for k, v in params.items() if k not in code})
    warnings += [f"{name} has no effect: funasr has SenseVoice's code itself." for name in code]
    for name in values:
        if (name in _NEEDS_VAD or name.startswith(VAD_PREFIX)) and "vad_model" not in values:
            raise InvalidInput(f"{name} has no meaning without vad_model.", hint="Add vad_model=FOLDER.", param=name)
    return {**DEFAULTS, **values}, warnings


def _refuse_hub_name(path: str, param: str, published: str) -> None:
    """Raises InvalidInput: it is no path but the name of a model, which funasr would fetch."""
    if Path(path).expanduser().exists() or not (hf_folder.looks_like_hub_name(path) or "/" not in path):
        return
    raise InvalidInput(
        f"{param}={path} is no folder here but looks like a name on a hub, and models are read from folders only.",
        hint=f"Run: hf download {published} --local-dir FOLDER, and give {param}=FOLDER as a whole path.",
        param=param,
    )
