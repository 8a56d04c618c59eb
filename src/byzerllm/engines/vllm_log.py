"""Reading vLLM's log: what it is doing while it starts, and why it ended."""

from __future__ import annotations

import re

# What a line says, the first that fits; {1} is the expression's first group.
_PHASES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^byzerllm: phase: (.+)"), "{1}"),
    (re.compile(r"non-default args"), "reading the configuration"),
    (re.compile(r"Initializing a V1 LLM engine"), "starting the engine"),
    (re.compile(r"Starting to load model"), "loading weights"),
    (re.compile(r"Loading \w+ checkpoint shards:.*\| (\d+/\d+) "), "loading weights {1} shards"),
    (re.compile(r"Loading weights took"), "loaded weights"),
    (re.compile(r"Using cache directory: \S+ for vLLM's torch.compile|Dynamo bytecode transform"), "compiling"),
    (re.compile(r"Warming up model|[Pp]rofiling/warmup run"), "warming up"),
    (re.compile(r"Capturing (?:CUDA|cuda)\s?graphs?.*?(\d+/\d+) "), "capturing CUDA graphs {1}"),
    (re.compile(r"KV cache size: ([\d,]+) tokens"), "KV cache of {1} tokens"),
    (re.compile(r"Starting vLLM (?:API )?server"), "starting its server"),
)

_KILLED = "One of vLLM's processes was killed, as a rule by the system when it runs out of RAM (dmesg tells)."

# Why it ended, and what to do: the first that is found anywhere in the log's end. {name} is the group of that name.
_ADVICE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?m)^byzerllm: cause: (?P<what>.+)"), "{what}"),
    (
        re.compile(
            r"Available memory on node \d+ \((?P<free>[\d.]+)/(?P<all>[\d.]+) GiB\).*?desired CPU memory utilization "
            r"\((?P<share>[\d.]+), (?P<want>[\d.]+) GiB\)"
        ),
        "Out of memory: {free} of {all} GiB of RAM are free, and gpu_memory_utilization={share} (of the RAM, with this "
        "build) asks for {want} GiB. Leave out backend.gpu_memory_utilization or lower it.",
    ),
    (
        re.compile(
            r"Available memory on node \d+ \((?P<free>[\d.]+)/(?P<all>[\d.]+) GiB\).*?memory for kv "
            r"\((?P<want>[\d.]+)[^)]*GiB\)"
        ),
        "Out of memory: {free} of {all} GiB of RAM are free, and the KV cache asks for {want} GiB. Lower "
        "backend.kv_cache_memory_bytes or backend.max_model_len.",
    ),
    (
        re.compile(
            r"Free memory on device (?P<device>\S+) \((?P<free>[\d.]+)/(?P<all>[\d.]+) GiB\) on startup is less than "
            r"desired GPU memory utilization \((?P<share>[\d.]+), (?P<want>[\d.]+) GiB\)"
        ),
        "Out of GPU memory: {free} of {all} GiB are free on {device}, and gpu_memory_utilization={share} asks for "
        "{want} GiB. Something else uses this GPU (nvidia-smi shows it); end it or lower "
        "backend.gpu_memory_utilization.",
    ),
    (
        re.compile(
            r"max seq len \((?P<length>\d+)\), \(?(?P<want>[\d.]+) GiB KV cache is needed, which is larger than the "
            r"available KV cache memory \((?P<have>[\d.]+) GiB\)"
            r"(?:.*?estimated maximum model length is (?P<fits>\d+))?"
        ),
        "The KV cache is too small: one request of {length} tokens needs {want} GiB, and {have} GiB are left beside "
        "the weights. Use backend.max_model_len={fits}, or give it more memory.",
    ),
    (
        re.compile(r"No available memory for the cache blocks"),
        "The weights leave no memory for the KV cache. Raise backend.gpu_memory_utilization, use more GPUs or a "
        "smaller or quantised model.",
    ),
    (
        re.compile(
            r"OutOfMemoryError: (?P<what>CUDA out of memory\. Tried to allocate [^.]+\.?\d* \wiB\.[^\n]{0,160})"
        ),
        "Out of GPU memory: {what} Lower backend.max_num_seqs or backend.max_model_len, use more GPUs or a smaller "
        "model.",
    ),
    (
        re.compile(r"Model architectures (?P<names>\[[^\]]*\]) are not supported"),
        "vLLM does not support the architecture {names}. A newer one may "
        "(byzerllm engine install vllm --version V), or use --infer_backend transformers.",
    ),
    (
        re.compile(r"checkpoint you are trying to load has model type `(?P<name>[^`]+)`"),
        "The model type {name} of config.json is not known to the transformers that this vLLM uses. A newer one may "
        "know it: byzerllm engine install vllm --version V.",
    ),
    (
        re.compile(r"(?:requires you to execute the configuration file|contains custom code which must be executed)"),
        "The model brings Python code of its own. If you trust it: backend.trust_remote_code=true.",
    ),
    (
        re.compile(r"NVIDIA driver on your system is too old \(found version (?P<found>\d+)\)"),
        "The NVIDIA driver (for CUDA {found}) is too old for this vLLM: update the driver, or install an older vLLM "
        "(byzerllm engine install vllm --version V).",
    ),
    (
        re.compile(r"CUDA driver version is insufficient|forward compatibility was attempted on non supported HW"),
        "The NVIDIA driver does not suit the CUDA of this vLLM: update the driver, or install an older vLLM "
        "(byzerllm engine install vllm --version V).",
    ),
    (
        re.compile(r"no kernel image is available for execution"),
        "This build of vLLM has no code for this GPU: it is too old or too new for it.",
    ),
    (
        re.compile(r"(?:ImportError|OSError): (?P<what>lib(?:cud|nccl|cublas)\S*: cannot open shared object file)"),
        "vLLM does not find CUDA ({what}): it was built for another version, or for a machine with a GPU.",
    ),
    (
        re.compile(r"Failed to infer device type|No CUDA GPUs are available"),
        "vLLM can use no GPU. nvidia-smi tells whether the driver works, and up to which CUDA; a container must be "
        "given its GPUs. On a machine without one, byzerllm engine install vllm brings the build for CPUs.",
    ),
    (
        re.compile(r"operator torchvision::nms does not exist"),
        "torchvision does not suit this torch, so that vLLM cannot be imported. Install the engine anew: byzerllm "
        "engine install vllm.",
    ),
    (re.compile(r"Worker proc \S+ died unexpectedly \(exit code: -9\)"), _KILLED),
    (
        re.compile(r"unrecognized arguments: (?P<what>.+)"),
        "This vLLM does not have these arguments: {what}",
    ),
    (re.compile(r"error: argument (?P<what>--.+)"), "vLLM refuses the argument {what}"),
    (re.compile(r"\b\w+\.py: error: (?P<what>.+)"), "vLLM refuses its arguments: {what}"),
    (
        re.compile(r"validation errors? for \w+\n(?:.*\s)?(?P<name>\w+)\n.*?(?P<what>Input should .+?) \[type="),
        "vLLM refuses {name}: {what}.",
    ),
    (re.compile(r"(?m)^[^\n]*\b(?:Value|Assertion) error, (?P<what>.+?)(?: \[type=|$)"), "vLLM refuses this: {what}"),
)
# Where the end begins. Errors before it belong to single requests, which vLLM survives.
_FATAL = re.compile(
    r"(?m)WorkerProc (?:failed to start|hit an exception)|EngineCore (?:failed to start|encountered)|^Traceback "
)
_ERROR = re.compile(r"(?:^|[\]\s])(?P<type>[A-Za-z_][\w.]*(?:Error|Exception)): (?P<text>.+)")
# Errors that only say that there was another one.
_SECOND_HAND = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|in a background process|See root cause above"
)
_LONGEST = 500


def phase(line: str) -> str | None:
    """What a line says that vLLM is doing; None for most."""
    for pattern, text in _PHASES:
        if found := pattern.search(line):
            return text.replace("{1}", found[1] if found.re.groups else "")
    return None


def cause(tail: str) -> str | None:
    """Why it ended, from the last lines; None where they do not tell."""
    for pattern, text in _ADVICE:
        if found := pattern.search(tail):
            groups = {name: (value or "a smaller number").strip() for name, value in found.groupdict().items()}
            return text.format(**groups)
    fatal = _FATAL.search(tail)
    for line in tail[fatal.start() :].splitlines() if fatal else ():  # the first is the cause of those that follow
        found = _ERROR.search(line)
        if found and not _SECOND_HAND.search(line):
            return f"{found['type'].rpartition('.')[2]}: {found['text'][:_LONGEST]}"
    return _KILLED if "engine core exited unexpectedly" in tail else None
