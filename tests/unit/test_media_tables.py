"""Which format and which task an instance for speech, images and the like gets from its vendor's table."""

from __future__ import annotations

import pytest

from byzerllm.control.upstreams import saas_upstreams
from byzerllm.errors import InvalidInput, UpstreamBroken, UpstreamError
from byzerllm.providers.parse import SaasOptions, parse
from byzerllm.providers.registry import providers, read_table
from byzerllm.routing.failover import is_transient
from byzerllm.routing.worker import Media, PassThrough, Translated
from byzerllm.spec import DeploymentSpec
from byzerllm.wire.base import Task
from byzerllm.wire.openai import PATHS


def options(kind: str, **params: str) -> SaasOptions:
    named = {f"saas.{name}": value for name, value in {"api_key": "k", **params}.items()}
    return parse(DeploymentSpec(name="m", pretrained_model_type=f"saas/{kind}", infer_params=named), {})


@pytest.mark.parametrize(
    ("kind", "params", "wire", "task"),
    [
        ("openai", {"model": "tts-1-hd"}, "openai", Task.SPEECH),
        ("openai", {"model": "gpt-4o-mini-tts"}, "openai", Task.SPEECH),
        ("openai", {"model": "whisper-1"}, "openai", Task.TRANSCRIPTION),
        ("openai", {"model": "dall-e-3"}, "openai", Task.IMAGE),
        ("openai", {"model": "gpt-5-mini"}, "openai", Task.CHAT),
        ("openai", {"model": "BAAI/bge-Reranker-v2-m3"}, "openai", Task.RERANK),
        ("openai", {"model": "text-embedding-3-small"}, "openai", Task.EMBEDDING),
        ("azure", {}, "speech_azure", Task.SPEECH),
        ("volcengine", {"app_id": "a"}, "speech_volcengine", Task.SPEECH),  # the older tool's script
        ("volcengine", {"app_id": "a", "model": "volcano_tts"}, "speech_volcengine", Task.SPEECH),
        ("volcengine", {"model": "volcano_icl"}, "speech_volcengine", Task.SPEECH),
        ("volcengine", {"app_id": "a", "model": "seed-tts-2.0"}, "speech_volcengine_v3", Task.SPEECH),
        ("volcengine", {"model": "ep-2026"}, "openai", Task.CHAT),
        ("minimax", {"model": "speech-2.6-hd"}, "speech_minimax", Task.SPEECH),
        ("minimax", {"model": "MiniMax-M2"}, "openai", Task.CHAT),
        ("minimax", {"model": "abab6.5s-chat", "group_id": "g"}, "minimax_pro", Task.CHAT),
        ("minimax", {"model": "abab6.5s-chat", "group_id": "g", "wire": "openai"}, "openai", Task.CHAT),
        ("minimax", {"model": "MiniMax-M2", "wire": "speech_minimax"}, "speech_minimax", Task.SPEECH),
        ("siliconflow", {}, "images_siliconflow", Task.IMAGE),
        ("siliconflow", {"model": "Qwen/Qwen-Image-Edit"}, "images_siliconflow", Task.IMAGE),
        ("siliconflow", {"model": "Qwen/Qwen3-8B"}, "openai", Task.CHAT),
        ("siliconflow", {"model": "FunAudioLLM/SenseVoiceSmall"}, "openai", Task.TRANSCRIPTION),
        ("qianwen", {"model": "qwen3-tts-flash"}, "speech_dashscope", Task.SPEECH),
        ("qianwen", {"model": "qwen-max"}, "openai", Task.CHAT),
    ],
)
def test_the_model_decides_on_format_and_task(kind: str, params: dict[str, str], wire: str, task: Task) -> None:
    found = options(kind, **params)
    assert (found.provider.wire, found.task) == (wire, task)
    [upstream] = saas_upstreams(found, found.base_url)
    assert isinstance(upstream, PassThrough if wire == "openai" else Translated if task is Task.CHAT else Media)
    assert task in upstream.tasks


@pytest.mark.parametrize(
    ("kind", "model", "tasks"),
    [
        ("gemini", "gemini-embedding-001", {Task.EMBEDDING}),
        ("gemini", "gemini-3-pro", {Task.CHAT, Task.EMBEDDING}),
        ("claude", "my-embedding", {Task.CHAT}),
        ("claude", "my-rerank", {Task.CHAT}),
    ],
)
def test_a_name_makes_no_task_that_the_format_has_not(kind: str, model: str, tasks: set[Task]) -> None:
    found = options(kind, model=model)
    [upstream] = saas_upstreams(found, found.base_url)
    assert set(upstream.tasks) == tasks


def test_the_speech_services_have_addresses_and_keys_of_their_own() -> None:
    assert options("azure").base_url == "https://eastus.tts.speech.microsoft.com"
    assert options("azure", service_region="westeurope").base_url == "https://westeurope.tts.speech.microsoft.com"
    china = options("azure", service_region="chinaeast2", region="china")
    assert china.base_url == "https://chinaeast2.tts.speech.azure.cn"
    volcano = options("volcengine", app_id="a")
    assert (volcano.model, volcano.base_url) == ("volcano_tts", "https://openspeech.bytedance.com")
    assert options("siliconflow").model == "black-forest-labs/FLUX.1-dev"


def test_a_voice_is_sent_where_the_vendor_demands_one() -> None:
    for model, voice in (("tts-1", {"voice": b'"alloy"'}), ("gpt-5", {})):
        found = options("openai", model=model)
        [upstream] = saas_upstreams(found, found.base_url)
        assert isinstance(upstream, PassThrough)
        assert {name: bytes(value) for name, value in upstream.defaults.items()} == voice
    found = options("openai", model="tts-1", extra_body='{"voice":"nova"}')
    [upstream] = saas_upstreams(found, found.base_url)
    assert isinstance(upstream, PassThrough)
    assert bytes(upstream.defaults["voice"]) == b'"nova"'


def test_an_api_that_has_less_than_its_format() -> None:
    for kind, model, tasks in (
        ("moonshot", "kimi-k2", {Task.CHAT}),
        ("baichuan", "Baichuan4", {Task.CHAT, Task.EMBEDDING}),
        ("deepseek", "deepseek-chat", {Task.CHAT, Task.COMPLETION, Task.RESPONSES}),
        ("openai", "gpt-5", set(PATHS)),
    ):
        found = options(kind, model=model)
        [upstream] = saas_upstreams(found, found.base_url)
        assert set(upstream.tasks) == tasks


TABLE = 'type="t"\ntitle="T"\nwire="openai"\nbase_url="http://h"\nauth="none"\nverified="2026-11-23"\n[models]\n'


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ('"x" = {task = "speach"}', r"Unknown task 'speach' of 'x'\. Known: .*speech"),
        ('"x" = {wire = "speech_azure"}', "which is none of the table's wires"),
    ],
)
def test_a_table_with_facts_that_cannot_be(facts: str, said: str) -> None:
    read_table(TABLE + '"x" = {task = "speech", wire = "openai"}', "t.toml")
    with pytest.raises(InvalidInput, match=said):
        read_table(TABLE + facts, "t.toml")


def test_every_voice_and_format_of_the_tables_can_be_used() -> None:
    facts = [(v, model, facts) for v in providers().values() for model, facts in v.models.items()]
    assert {f["wire"] for _, _, f in facts if "wire" in f} >= {"speech_minimax", "images_siliconflow"}
    assert all(isinstance(f["voice"], str) for _, _, f in facts if "voice" in f)


def test_what_was_paid_for_is_not_made_again() -> None:
    assert is_transient(UpstreamError("x", status=502))
    assert not is_transient(UpstreamError("x", status=502, was_answered=True))
    assert not is_transient(UpstreamBroken("x", was_answered=True))
