"""vLLM's own arguments: how the text of a ``backend.`` parameter is read, and the flags that come of it.

The tables are of vLLM ``TABLE_VERSION``. Another version may have arguments that they lack: their values are passed as
they look, and ``vllm_installed`` asks that version whether it has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from byzerllm.engines import parameters
from byzerllm.engines.parameters import BOOLEAN, Parameter
from byzerllm.errors import InvalidInput
from byzerllm.spec import parse_bool, parse_float, parse_int

PREFIX = "backend."
TABLE_VERSION = "0.32.0"


class Form(str, Enum):
    """How an argument is written on vLLM's command line."""

    SWITCH = "switch"  # --name or --no-name
    FLAG = "flag"  # --name or nothing
    WHOLE = "whole"
    NUMBER = "number"
    LIST = "list"
    TEXT = "text"  # or JSON


_SWITCHES = """
    allow_deprecated_quantization async_scheduling cohere_is_reasoning_model cudagraph_metrics dcp_q_replicate
    disable_cascade_attn disable_chunked_mm_input disable_custom_all_reduce disable_hybrid_kv_cache_manager
    disable_nccl_for_dp_synchronization disable_sliding_window enable_auto_tool_choice enable_batch_sharded_sampling
    enable_chunked_prefill enable_cumem_allocator enable_dbo enable_elastic_ep enable_ep_weight_filter enable_eplb
    enable_expert_parallel enable_fault_tolerance enable_flash_late_interaction enable_flashinfer_autotune
    enable_force_include_usage enable_hc_sp enable_layerwise_nvtx_tracing enable_log_deltas enable_log_outputs
    enable_log_requests enable_logging_iteration_details enable_lora enable_mamba_cache_stochastic_rounding
    enable_mamba_shared_prefix_checkpoint enable_mfu_metrics enable_mixed_moe_lora_format enable_mm_embeds
    enable_moe_shared_loras enable_nccl_comm_suspend enable_per_request_metrics enable_prefix_caching
    enable_prompt_embeds enable_prompt_tokens_details enable_request_id_headers enable_return_routed_experts
    enable_server_load_tracking enable_shm_tensor_arena enable_sleep_mode enable_tokenizer_info_endpoint
    enable_tower_connector_lora enable_trace_replay enforce_eager exclude_tools_when_tool_choice_none
    fail_on_environ_validation fully_sharded_loras interleave_mm_strings jit_monitor_verbose kv_cache_metrics
    kv_sharing_fast_prefill language_model_only log_error_stack long_prefill_token_threshold_adaptive
    mm_device_do_normalize mm_encoder_only numa_bind ray_workers_use_nsight return_sampling_mask
    return_tokens_as_token_ids scheduler_reserve_full_isl skip_mm_profiling skip_tokenizer_init
    sleep_mode_offload_cudagraph specialize_active_lora swa_bounded_replay tokens_only trust_remote_code
    trust_request_chat_template trust_request_mm_kwargs use_fp64_gumbel use_replayssm use_tqdm_on_load
"""
_FLAGS = "aggregate_engine_logging disable_log_stats"
_WHOLES = """
    block_size cp_kv_cache_interleave_size cpu_distributed_timeout_seconds dbo_decode_token_threshold
    dbo_prefill_token_threshold dcp_kv_cache_interleave_size decode_context_parallel_size distributed_timeout_seconds
    elastic_ep_max_dp_size kv_cache_memory_bytes long_prefill_token_threshold mamba_block_size mamba_cache_philox_rounds
    max_cpu_loras max_cudagraph_capture_size max_log_len max_logprobs max_lora_cls_labels max_lora_rank max_loras
    max_model_len max_num_active_seqs max_num_batched_tokens max_num_queued_reqs max_num_queued_tokens
    max_num_scheduled_tokens max_num_seqs max_parallel_loading_workers mm_shm_cache_max_object_size_mb
    num_gpu_blocks_override offload_group_size offload_num_in_group offload_prefetch_step pipeline_parallel_size
    prefill_context_parallel_size prefill_schedule_interval prefix_cache_retention_interval prefix_match_unit
    renderer_num_workers replayssm_buffer_len safetensors_prefetch_block_size safetensors_prefetch_num_threads seed
    shutdown_timeout spec_tokens sse_keep_alive_interval stream_interval tensor_parallel_size ubatch_size
"""
_NUMBERS = """
    cpu_offload_gb device_memory_utilization gpu_memory_utilization kv_cache_metrics_sample kv_offloading_size
    mm_encoder_fp8_scale_save_margin mm_ipc_gpu_memory_gb mm_processor_cache_gb video_pruning_rate watermark
"""
_LISTS = """
    allowed_media_domains collect_detailed_traces cpu_offload_params cudagraph_capture_sizes ignore_patterns
    kv_cache_dtype_skip_layers logits_processors lora_modules lora_target_modules numa_bind_cpus numa_bind_nodes
    offload_params sleep_preserve_parameter_names
"""
_TEXTS = """
    additional_config all2all_backend allowed_local_media_path anthropic_disabled_thinking_effort attention_backend
    attention_config aux_output_config chat_template chat_template_content_format code_revision cohere_format
    compilation_config config_format convert custom_histogram_buckets dcp_comm_backend default_chat_template_kwargs
    default_mm_loras device_ids diffusion_config distributed_executor_backend download_dir dtype ec_manager_config
    ec_transfer_config engram_config eplb_config expert_placement_strategy fault_tolerance_config fingerprint_mode
    fingerprint_value gdn_prefill_backend generation_config hf_config_path hf_overrides hf_token io_processor_plugin
    ir_op_priority jit_monitor_mode kda_decode_backend kda_prefill_backend kernel_config kv_cache_dtype
    kv_events_config kv_offloading_backend kv_transfer_config limit_mm_per_prompt linear_backend load_format
    log_config_file log_level logging_config logprobs_mode lora_dtype mamba_backend mamba_cache_dtype mamba_cache_mode
    mamba_ssm_cache_dtype mamba_ssu_algorithm media_io_kwargs middleware mm_encoder_attn_backend mm_encoder_attn_dtype
    mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path mm_encoder_tp_mode mm_hasher_algorithm
    mm_processor_cache_type mm_processor_device mm_processor_kwargs mm_tensor_ipc model_class_overrides model_impl
    model_loader_extra_config moe_backend offload_backend optimization_level otlp_traces_endpoint
    override_generation_config per_request_spec_decode_metrics performance_mode pooler_config prefix_caching_hash_algo
    profiler_config pt_load_map_location quantization quantization_config reasoning_config reasoning_parser
    reasoning_parser_plugin response_role revision runner safetensors_load_strategy scheduler_cls scheduling_policy
    show_hidden_metrics_for_version sparse_indexer_topk_backend spec_method spec_model speculative_config
    structured_outputs_config tokenizer tokenizer_mode tokenizer_revision tool_call_parser tool_parser_plugin
    tool_server tool_strict_level video_pruning_method watermark_config weight_transfer_config worker_cls
    worker_extension_cls
"""

FORMS: Mapping[str, Form] = {
    name: form
    for form, names in (
        (Form.SWITCH, _SWITCHES),
        (Form.FLAG, _FLAGS),
        (Form.WHOLE, _WHOLES),
        (Form.NUMBER, _NUMBERS),
        (Form.LIST, _LISTS),
        (Form.TEXT, _TEXTS),
    )
    for name in names.split()
}

_ADDRESS = "A worker's address and what guards it are byzerllm's own affair: clients reach it through byzerllm's API."
_MANY = "Use --num_workers: each worker is a vLLM of its own."
# What byzerllm decides itself, and what stands in its place.
OURS: Mapping[str, str] = {
    "config": "Give the parameters one by one.",
    "model": "Use --model_path.",
    "model_tag": "Use --model_path.",
    "served_model_name": "The model's name is that of --model.",
    **dict.fromkeys(("host", "port", "uds", "api_key", "root_path", "headless", "grpc", "grpc_port"), _ADDRESS),
    **dict.fromkeys(("allow_credentials", "allowed_origins", "allowed_methods", "allowed_headers"), _ADDRESS),
    **dict.fromkeys(("disable_fastapi_docs", "enable_offline_docs", "enable_scale_out"), _ADDRESS),
    **dict.fromkeys(("disable_access_log_for_endpoints", "disable_uvicorn_access_log"), _ADDRESS),
    **dict.fromkeys(("api_server_count", "nnodes", "node_rank", "master_addr", "master_port"), _MANY),
}
_OUR_PREFIXES = {"uvicorn_": _ADDRESS, "h11_": _ADDRESS, "ssl_": _ADDRESS, "enable_ssl_": _ADDRESS}
_OUR_PREFIXES |= {"data_parallel_": _MANY, "dp_": _MANY}

_JINJA = ("{{", "{%", "{#")  # a template may be given as it is
_SIZE = re.compile(r"\d+|\d+(\.\d+)?[kmgt]|\d+[KMGT]")
_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def our_reason(name: str) -> str | None:
    """Why users do not set that argument of vLLM's; None for those that they do."""
    found = (reason for start, reason in _OUR_PREFIXES.items() if name.startswith(start))
    return OURS.get(name) or next(found, None)


def normal(param: str) -> str:
    """vLLM's name of a parameter: ``backend.max-model-len`` -> ``max_model_len``. What follows a second dot is a key
    within the value and stays as it is."""
    base, dot, key = param.removeprefix(PREFIX).partition(".")
    return base.replace("-", "_") + dot + key


def read(name: str, text: str) -> Any:
    """The value of the argument ``name``: bool, int, float, list of str, or the text itself.

    Raises:
        InvalidInput: a value that this argument cannot have.
    """
    param = PREFIX + name
    return MAIN[name].read(param, text) if name in MAIN else _read(param, text)


def _read(param: str, text: str) -> Any:
    text = text.strip()
    form = FORMS.get(param.removeprefix(PREFIX))
    if not text:
        raise InvalidInput(f"{param} is empty.", param=param)
    if form in (Form.SWITCH, Form.FLAG) or (form is None and text.lower() in ("true", "false")):
        return parse_bool(param, text)
    if form is Form.WHOLE:
        return _whole(param, text)
    if form is Form.NUMBER:
        return parse_float(param, text, 0)
    if form is Form.LIST:
        return _list(param, text)
    if text.startswith("{") and not text.startswith(_JINJA):
        _json(param, text)
    return text


def _whole(param: str, text: str) -> int:
    """A whole number; vLLM's short forms too (1k is 1000, 1K is 1024), and ``auto`` for -1."""
    if text.lower() == "auto":
        return -1
    if _SIZE.fullmatch(text) and text[-1] in _UNITS:
        return int(float(text[:-1]) * _UNITS[text[-1]])
    return parse_int(param, text, -1)


def _list(param: str, text: str) -> list[str]:
    """A JSON list, one JSON object, or words between which there are commas or spaces."""
    if not text.startswith(("[", "{")):
        return [word for word in re.split(r"[,\s]+", text) if word]
    found = _json(param, text)
    items = found if isinstance(found, list) else [found]
    return [item if isinstance(item, str) else json.dumps(item) for item in items]


def _json(param: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{param}={text!r} is no JSON: {error}.", param=param) from None


_SAID = {
    Form.SWITCH: BOOLEAN.said,
    Form.FLAG: BOOLEAN.said,
    Form.WHOLE: "whole number",
    Form.NUMBER: "number",
    Form.LIST: "words with commas",
    Form.TEXT: "text",
}
_SIZE_SAID = "whole number, also 32k (32000) or 32K (32768)"


_SHARE_SAID = "number from 0 to 1"


def _share(param: str, text: str) -> float:
    value = parse_float(param, text, 0)
    if value > 1:
        raise InvalidInput(f"{param}={text} must be at most 1.", param=param)
    return value


def _main(name: str, default: str, meaning: str, said: str = "") -> tuple[str, Parameter]:
    read = _share if said == _SHARE_SAID else _read
    return name, Parameter(parameters.Form(said or _SAID[FORMS[name]], read), default, meaning)


# What users set most. A default that could be typed is that of vLLM's own parser; a test compares them.
MAIN: Mapping[str, Parameter] = dict((
    # those of the deployment guide
    _main("gpu_memory_utilization", "0.9 of the GPU, or of the part of it that the worker has (vLLM: `0.92`)",
          "the part of a GPU's memory that weights and KV cache may have together", _SHARE_SAID),
    _main("max_model_len", "the model's own context",
          "the most tokens that a prompt and its answer may have together; `auto`: as many as there is memory for",
          _SIZE_SAID),
    _main("enforce_eager", "`false`; true without a GPU", "no CUDA graphs, no compiling: starts sooner, runs slower"),
    _main("trust_remote_code", "false", "run the Python code that is in the model's folder"),
    # the model
    _main("dtype", "`auto`: as the weights were saved; on a GPU 16 bits instead of float32",
          "data type of the weights and of what is computed", "auto, bfloat16, float16, float32"),
    _main("quantization", "as the model's config.json says", "how the weights are quantised",
          "awq, gptq, fp8, compressed-tensors and others"),
    _main("load_format", "`auto`: safetensors, else PyTorch's own", "form of the weights' files",
          "auto, safetensors, pt, mistral, dummy and others"),
    _main("tokenizer", "the model's own", "another folder or name on the hub for the tokenizer"),
    _main("tokenizer_mode", "auto", "whose tokenizer reads the files", "auto, hf, mistral and others"),
    _main("revision", "the newest", "branch, tag or commit of a model on the hub"),
    _main("download_dir", "the hub's own cache", "folder for models from the hub", "path"),
    _main("hf_token", "none", "token for models on the hub that need one; `env:NAME` keeps it secret"),
    _main("hf_overrides", "none", "changes of the model's config.json", "JSON object"),
    # memory
    _main("kv_cache_memory_bytes", "what `gpu_memory_utilization` leaves; without a GPU 4 GiB at most",
          "bytes of the KV cache, on each GPU", _SIZE_SAID),
    _main("kv_cache_dtype", "`auto`: that of the model", "data type of the KV cache; fp8 takes half the memory",
          "auto, bfloat16, float16, fp8 and others"),
    _main("cpu_offload_gb", "0", "GiB of weights, for each GPU, that stay in RAM: slower"),
    # many requests at once
    _main("max_num_seqs", "the worker's slots: `--worker_concurrency`, else 100",
          "the most requests that are computed at once"),
    _main("max_num_batched_tokens", "2048 to 16384, by the GPU's memory",
          "tokens that are computed in one step: more for throughput, fewer for a steady stream", _SIZE_SAID),
    _main("enable_prefix_caching", "true where the model can", "reuse what earlier requests began with"),
    _main("enable_chunked_prefill", "true where the model can",
          "read long prompts in pieces, between which others go on"),
    _main("tensor_parallel_size", "the whole GPUs of a worker (vLLM: `1`)", "GPUs that share each layer"),
    _main("pipeline_parallel_size", "1", "groups of GPUs that have some of the layers each"),
    _main("speculative_config", "none", "a draft model or method that guesses ahead", "JSON object"),
    # chats
    _main("chat_template", "the model's own", "Jinja template that makes a prompt of messages",
          "path, or the template itself"),
    _main("default_chat_template_kwargs", "none", 'what templates get, such as `{"enable_thinking": false}`',
          "JSON object"),
    _main("enable_auto_tool_choice", "false", "the model may decide to call a tool; needs `tool_call_parser`"),
    _main("tool_call_parser", "none", "in whose form the model writes its calls of tools",
          "hermes, llama3_json, mistral, qwen3_coder and others"),
    _main("reasoning_parser", "none", "in whose form the model thinks; its thoughts are then told from its answer",
          "deepseek_r1, qwen3, openai_gptoss and others"),
    _main("generation_config", "`auto`: the model's own",
          "where the sampling parameters of requests that name none come from; `vllm`: vLLM's own",
          "auto, vllm, path"),
    _main("override_generation_config", "none", "sampling parameters of requests that name none, one by one",
          "JSON object"),
    _main("seed", "0", "seed of what is drawn by chance"),
    _main("max_logprobs", "20", "the most logprobs for each token"),
    # adapters, embeddings, images
    _main("enable_lora", "false", "run the model with LoRA adapters"),
    _main("lora_modules", "none",
          "the adapters; the one with the instance's own name answers its requests; needs `enable_lora`",
          "name=path, with commas"),
    _main("max_lora_rank", "16", "the largest rank of an adapter"),
    _main("runner", "`auto`: by the model", "what the model is for", "auto, generate, pooling"),
    _main("convert", "`auto`: by the model", "make an embedding model or a classifier of another model",
          "auto, embed, classify, none"),
    _main("limit_mm_per_prompt", "none", 'the most images and sounds of a request, such as `{"image": 4}`',
          "JSON object"),
    _main("allowed_media_domains", "none: they come in the request",
          "hosts that vLLM may fetch images and sounds from"),
    _main("allowed_local_media_path", "none: they come in the request",
          "folder that vLLM may read images and sounds from", "path"),
))  # fmt: skip


def flags(values: Mapping[str, Any]) -> Iterator[str]:
    """The words of vLLM's command line for arguments and their values as ``read`` made them."""
    for name, value in values.items():
        base, dot, key = name.partition(".")
        word = base.replace("_", "-") + dot + key
        if value is True:
            yield f"--{word}"
        elif value is False:
            if FORMS.get(name) is not Form.FLAG:
                yield f"--no-{word}"
        elif isinstance(value, list):
            yield from (f"--{word}", *value)
        else:
            yield f"--{word}={value}"  # one word, as a value may begin with a dash
