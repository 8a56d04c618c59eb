"""What llama.cpp's engine reads in the heads of GGUF files, and in its own log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scripts import tiny_gguf as tiny
from scripts import tiny_gguf_kinds as kinds

from byzerllm.engines import engine, environments
from byzerllm.engines.base import EngineOptions, Memory
from byzerllm.errors import EngineMissing, InvalidInput
from byzerllm.spec import DeploymentSpec

LLAMA = engine("llama_cpp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, another with the same words, a reranker, an adapter and a projector."""
    folder = tmp_path_factory.mktemp("gguf")
    tiny.write(folder / "model.gguf", say="one two")
    tiny.write(folder / "draft.gguf", say="one two", shape=tiny.Shape(hidden=32, layers=1))
    tiny.write(folder / "stranger.gguf", say="three")
    kinds.write_reranker(folder / "rank.gguf")
    kinds.write_lora(folder / "lora.gguf")
    kinds.write_projector(folder / "mmproj.gguf")
    (folder / "no-template.gguf").write_bytes(
        (folder / "model.gguf").read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templ@te")
    )
    return folder


def parsed(folder: Path, model: str, slots: Any = 1, gpus: Any = 0, **params: str) -> EngineOptions:
    files = {name: ",".join(str(folder / f) for f in text.split(",")) if ".gguf" in text else text
             for name, text in params.items()}  # fmt: skip
    return LLAMA.parse(
        DeploymentSpec(
            name="tiny",
            pretrained_model_type="custom/auto",
            model_path=str(folder / model),
            worker_concurrency=slots,
            gpus_per_worker=gpus,
            infer_params=files,
        )
    )


@pytest.fixture(autouse=True)
def _gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "built_for_gpus", lambda python: True)


def test_memory_is_the_files_and_the_cache_of_all_slots(folder: Path) -> None:
    size = (folder / "model.gguf").stat().st_size
    # 2 layers of keys and values of 32 numbers of 2 bytes, for each of the 2048 tokens that it was trained for
    cache = 2 * (32 + 32) * 2 * 2048
    assert LLAMA.check(parsed(folder, "model.gguf")) == Memory(size, cache, on_gpu=False, mapped=True)
    assert LLAMA.check(parsed(folder, "model.gguf", slots=3, n_ctx="512")) == Memory(
        size, 3 * cache // 4, on_gpu=False, mapped=True
    )
    small = LLAMA.check(parsed(folder, "model.gguf", type_k="q8_0", type_v="q8_0"))
    assert small == Memory(size, cache // 2 * 34 // 32, on_gpu=False, mapped=True)
    more = LLAMA.check(parsed(folder, "model.gguf", lora_path="lora.gguf,lora.gguf", mmproj="mmproj.gguf"))
    others = 2 * (folder / "lora.gguf").stat().st_size + (folder / "mmproj.gguf").stat().st_size
    assert more == Memory(size + others, cache, on_gpu=False, mapped=True)
    read = LLAMA.check(parsed(folder, "model.gguf", use_mmap="false", use_mlock="true"))
    assert read == Memory(size, cache, on_gpu=False, mapped=False)
    ranks = LLAMA.check(parsed(folder, "rank.gguf", reranking="true"))
    assert ranks == Memory((folder / "rank.gguf").stat().st_size, 0, on_gpu=False, mapped=True), "it has no cache"


@pytest.mark.parametrize(
    ("gpus", "params", "where"),
    [
        (0, {"n_gpu_layers": "99"}, (False, 1)),
        (1, {}, None),  # as many as fit
        (1, {"n_gpu_layers": "0"}, (False, 1)),
        (2, {"n_gpu_layers": "3"}, (True, 2)),
        (2, {"n_gpu_layers": "99", "split_mode": "none"}, (True, 1)),
        (4, {"n_gpu_layers": "99", "tensor_split": "1,0,1"}, (True, 2)),
        (1, {"n_gpu_layers": "2"}, None),  # the output stays outside
        (1, {"n_gpu_layers": "-1"}, None),
    ],
)
def test_which_memory_is_meant(folder: Path, gpus: float, params: dict[str, str], where: object) -> None:
    found = LLAMA.check(parsed(folder, "model.gguf", gpus=gpus, **params))
    assert (found and (found.on_gpu, found.shares)) == where


@pytest.mark.parametrize(
    ("model", "params", "said"),
    [
        ("rank.gguf", {}, "is a reranker. Add reranking=true"),
        ("rank.gguf", {"embedding": "true"}, "is a reranker"),
        ("model.gguf", {"reranking": "true"}, "model.gguf has no head that ranks"),
        ("lora.gguf", {}, "no model but a part of one. Give it as lora_path="),
        ("mmproj.gguf", {}, "Give it as mmproj="),
        ("no-template.gguf", {}, r"has no chat template \(tokenizer.chat_template\)"),
        ("model.gguf", {"chat_template": "/nowhere/a.jinja"}, "chat_template=/nowhere/a.jinja does not exist"),
        ("model.gguf", {"lora_path": "none.gguf"}, "lora_path=.*none.gguf does not exist"),
        ("model.gguf", {"lora_path": "model.gguf"}, "lora_path=.*is of the kind 'model', not 'adapter'"),
        ("model.gguf", {"mmproj": "lora.gguf"}, "mmproj=.*is of the kind 'adapter', not 'mmproj'"),
        ("model.gguf", {"model_draft": "stranger.gguf"}, "stranger.gguf has another vocabulary"),
        ("model.gguf", {"model_draft": "rank.gguf"}, "rank.gguf has another vocabulary"),
    ],
)
def test_a_file_for_something_else_is_refused(folder: Path, model: str, params: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        LLAMA.check(parsed(folder, model, **params))


def test_files_that_fit(folder: Path) -> None:
    assert LLAMA.check(parsed(folder, "model.gguf", model_draft="draft.gguf"))
    assert LLAMA.check(parsed(folder, "no-template.gguf", chat_template="none"))
    assert LLAMA.check(parsed(folder, "no-template.gguf", chat_template="chatml"))
    assert LLAMA.check(parsed(folder, "no-template.gguf", embedding="true"))


# -- what its log says -----------------------------------------------------------------------------------------------

LOG = """\
0.00.001.769 I srv          init: build_info: b0-unknown
0.00.003.583 I srv          init: loading model
0.00.004.267 I srv    load_model: loading model '/models/tiny.gguf'
0.00.012.381 I cmn          init: llama threadpool init, n_threads = 1
0.00.015.623 I common_speculative_init_result: loading draft model '/models/draft.gguf'
0.00.014.860 I srv    load_model: initializing, n_slots = 1, n_ctx_slot = 1024, kv_unified = 'false'
0.00.016.263 I srv          init: model loaded
"""


def test_phases() -> None:
    said = [LLAMA.phase(line) for line in LOG.splitlines()]
    assert [phase for phase in said if phase] == [
        "loading weights", "warming up", "loading the draft model's weights", "preparing its slots",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("E llama_model_load: error loading model: unknown model architecture: 'lxama'", "architecture lxama"),
        (
            "E ggml_aligned_malloc: insufficient memory (attempted to allocate 106.03 MB)\n"
            "E llama_model_load: error loading model: unable to allocate CPU buffer",
            "Out of memory: 106.03 MB could not be had",
        ),
        (
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 7605.33 MiB on device 0: cudaMalloc failed: out of "
            "memory",
            "Out of memory: GPU 0 has no 7605.33 MiB left",
        ),
        (
            "error loading model: check_tensor_dims: tensor 'blk.1.ffn_up.weight' not found",
            "lacks the tensor blk.1.ffn",
        ),
        (
            "tensor 'output.weight' data is not within the file bounds, model is corrupted or incomplete",
            "lacks the tensor output.weight",
        ),
        (
            "E mtmd_init_from_file: error: mismatch between text model (n_embd = 512) and mmproj (n_embd = 64)\nx",
            "mmproj belongs to another model: its vectors have 64 numbers, those of the model 512.",
        ),
        (
            "E mtmd_init_from_file: error: Failed to load CLIP model from /m/p.gguf\n",
            "mmproj=/m/p.gguf is no projector",
        ),
        (
            "E llama_adapter_lora_init_from_file_ptr: failed to apply lora adapter: tensor 'output.weight' has "
            "incorrect shape (hint: maybe wrong base model?)",
            "lora_path does not fit the model: tensor 'output.weight' has incorrect shape",
        ),
        (
            "E ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient for CUDA runtime version",
            "The GPU cannot be used: CUDA driver version is insufficient",
        ),
        ("E CUDA error: the provided PTX was compiled with an unsupported toolchain.", "driver is older than the CUDA"),
        ("E CUDA error: no kernel image is available for execution on the device", "The GPU failed: no kernel image"),
    ],
)
def test_causes(line: str, said: str) -> None:
    assert said in (LLAMA.cause(f"0.00.1 I srv init: loading model\n{line}\nbyzerllm: the lines above say why") or "")


def test_most_ends_speak_for_themselves() -> None:
    assert LLAMA.cause(LOG) is None


@pytest.mark.parametrize(
    ("code", "found"),
    [
        (b"\0ggml_backend_cpu_init\0", False),
        (b"\0_Z22ggml_backend_cuda_initi\0", True),
        (b"ggml_backend_vk_reg", True),
        (None, None),
    ],
)
def test_whether_a_build_is_for_gpus_is_read_from_its_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: bytes | None, found: bool | None
) -> None:
    monkeypatch.undo()
    if code is not None:
        library = tmp_path / "lib/python3.12/site-packages/xllamacpp/xllamacpp.abi3.so"
        library.parent.mkdir(parents=True)
        library.write_bytes(b"\x7fELF" + code)
    assert environments.built_for_gpus(str(tmp_path / "bin" / "python")) is found


def test_layers_for_a_gpu_need_a_build_that_knows_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "has_nvidia", lambda: True)
    monkeypatch.setattr(environments, "built_for_gpus", lambda python: False)
    with pytest.raises(EngineMissing, match="is a build for CPUs") as refused:
        LLAMA.check(parsed(folder, "model.gguf", gpus=1, n_gpu_layers="-1"))
    assert (refused.value.hint or "").startswith("Run: byzerllm engine install llama_cpp.")
    assert LLAMA.check(parsed(folder, "model.gguf", gpus=1, n_gpu_layers="0")) is not None, "no layer is to be there"
    assert LLAMA.check(parsed(folder, "model.gguf", n_gpu_layers="-1")) is not None, "it has no GPU, which was said"
    monkeypatch.setattr(environments, "has_nvidia", lambda: False)
    assert LLAMA.check(parsed(folder, "model.gguf", gpus=1)) is None, "the GPU is on another machine"
