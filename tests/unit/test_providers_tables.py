"""Every vendor's table: what it says can be used, and what scripts of the older tool give it is accepted."""

from __future__ import annotations

import re
from datetime import date
from importlib import resources

import pytest

from byzerllm.control.upstreams import saas_upstreams
from byzerllm.errors import InvalidInput
from byzerllm.providers.parse import SaasOptions, parse
from byzerllm.providers.registry import provider, providers
from byzerllm.providers.schema import COMMON, Provider, known_params, placeholders
from byzerllm.routing.worker import PassThrough
from byzerllm.spec import DeploymentSpec
from byzerllm.wire import WIRES

TABLES = {p.type: p for p in providers().values()}
SPOKEN = [(p.type, wire) for p in TABLES.values() for wire in dict.fromkeys((p.wire, *p.wires))]
VALUES = {"azure_endpoint": "https://me.openai.azure.com", "api_url": "https://gateway.example/chat"}


def least(kind: str, wire: str) -> SaasOptions:
    """The type in that format with no more than it needs."""
    vendor = provider(kind).speaking(wire)
    named = {n: VALUES.get(n, "1") for n, p in known_params(vendor).items() if p.required}
    named |= {n: VALUES.get(n, "x") for n in placeholders(vendor.base_url)}
    named |= {"model": "m"} if not vendor.default_model and "model" not in vendor.params else {}
    named |= {"wire": wire} if vendor.wires else {}
    if vendor.auth == "sigv4":
        named["api_key"] = "k"
    params = {f"saas.{name}": value for name, value in named.items()}
    return parse(DeploymentSpec(name="m", pretrained_model_type=f"saas/{kind}", infer_params=params), {})


@pytest.mark.parametrize(("kind", "wire"), SPOKEN)
def test_a_type_is_deployed_with_the_least_it_needs(kind: str, wire: str) -> None:
    options = least(kind, wire)
    assert options.model
    assert options.warnings == ()
    assert not options.base_url.endswith("/")
    assert not placeholders(options.base_url)


@pytest.mark.parametrize("vendor", TABLES.values(), ids=lambda p: str(p.type))
def test_a_table_says_who_checked_it_and_when(vendor: Provider) -> None:
    text = (resources.files("byzerllm.providers") / f"{vendor.type}.toml").read_text("utf-8")
    assert date.fromisoformat(vendor.verified) >= date(2026, 11, 1)
    assert text.startswith("# ")
    for found in re.findall(r'.*\ndefault_model = "[^"{]+".*', text):
        assert "#" in found, f"{found}: where does it come from?"


@pytest.mark.parametrize(("kind", "wire"), SPOKEN)
def test_a_parameter_has_a_meaning_in_one_place(kind: str, wire: str) -> None:
    vendor = provider(kind).speaking(wire)
    read_by_code = {"api_key", vendor.pair, *placeholders(vendor.base_url), *COMMON}
    for name, param in vendor.params.items():
        assert param.help, name
        places = [param.header, param.query, param.body, param.same_as, param.ignored or None]
        count = sum(place is not None for place in places)
        assert count <= 1, name
        assert param.same_as is None or param.same_as in known_params(vendor)
        assert param.default is None or not param.required
        if vendor.wire in WIRES and not vendor.wires and name not in read_by_code:
            assert count == 1, f"{name} goes nowhere, and nothing but a format of its own could read it"


@pytest.mark.parametrize(("kind", "wire"), SPOKEN)
def test_secrets_are_marked(kind: str, wire: str) -> None:
    for name, param in provider(kind).speaking(wire).params.items():
        if re.search(r"key$|secret|token$|app_code|password", name):
            assert param.secret, name


# What scripts of the older tool say, as saas.NAME=..., and what becomes of it.
OLDER = {
    "openai": "api_key=k model=m base_url=http://h/v1 timeout=5 max_retries=10 local_address=0.0.0.0",
    "official_openai": "api_key=k model=m api_base=http://h/v1 api_version=1 api_type=x",
    "openai_response": "api_key=k model=m api_base=http://h/v1 api_version=1 api_type=x reasoning_effort=low",
    "reasoning_openai": "api_key=k model=m base_url=http://h/v1",
    "azure_openai": "model=m api_version=1 azure_endpoint=https://h azure_deployment=d api_key=k max_retries=10",
    "qianwen": "api_key=k model=qwen-turbo",
    "qianwen_vl": "api_key=k model=qwen-vl-plus",
    "zhipu": "api_key=k model=glm-4",
    "chatglm": "api_key=k public_key=p",
    "minimax": "api_key=k group_id=g model=abab5.5-chat api_url=https://api.minimax.chat/v1/text/chatcompletion_pro",
    "sparkdesk": "appid=a api_key=k api_secret=s gpt_url=wss://spark-api.xf-yun.com/v3.1/chat domain=generalv3 debug=1",
    "qianfan": "api_key=k secret_key=s model=ERNIE-Bot-turbo",
    "baichuan": "api_key=k model=Baichuan2-Turbo baichuan_api_url=https://api.baichuan-ai.com/v1/chat/completions",
    "siliconflow": "api_key=k",
    "claude": "api_key=k model=claude-3-haiku-20240307 base_url=https://h",
    "aws_bedrock": "aws_access_key=a aws_secret_key=s region_name=us-east-1 model=anthropic.claude model_api_version=b",
    "gemini": "api_key=k model=gemini-pro",
    "pangu": "model=pangu-nlp-71b api_url=http://h/chat",
    "filelogger": "log_file=f.json model=m",
    "volcengine": "api_key=b",
    "openrouter": "api_key=k model=openai/gpt-4o-mini base_url=https://openrouter.ai/api/v1 max_retries=10",
}


def older(kind: str, text: str) -> SaasOptions:
    params = {f"saas.{name}": value for name, _, value in (word.partition("=") for word in text.split())}
    return parse(DeploymentSpec(name="m", pretrained_model_type=f"saas/{kind}", infer_params=params), {})


@pytest.mark.parametrize("typed", [",", ",,", ""])
def test_commas_alone_are_no_key(typed: str) -> None:
    with pytest.raises(InvalidInput, match=r"saas\.api_key is missing"):
        older("moonshot", f"api_key={typed} model=m")


@pytest.mark.parametrize(("kind", "text"), OLDER.items())
def test_what_scripts_of_the_older_tool_say_is_accepted(kind: str, text: str) -> None:
    options = older(kind, text)
    assert saas_upstreams(options, options.base_url.replace("builtin:mock", "http://h"))


@pytest.mark.parametrize(
    ("kind", "text", "wire", "base_url", "model"),
    [
        ("minimax", OLDER["minimax"], "minimax_pro", "https://api.minimax.chat/v1/text/chatcompletion_pro",
         "abab5.5-chat"),
        ("minimax", "api_key=k group_id=g model=m", "openai", "https://api.minimaxi.com/v1", "m"),
        ("sparkdesk", OLDER["sparkdesk"], "spark", "wss://spark-api.xf-yun.com/v3.1/chat", "generalv3"),
        ("sparkdesk", "appid=a api_key=k api_secret=s", "openai_lenient", "https://spark-api-open.xf-yun.com/v1",
         "generalv3"),
        ("sparkdesk", "api_key=k wire=x2", "openai_lenient", "https://spark-api-open.xf-yun.com/x2", "spark-x"),
        ("qianfan", "api_key=k secret_key=s", "baidu_v1",
         "https://aip.baidubce.com/rpc/2.0/ai_custom/v1/wenxinworkshop", "ERNIE-Bot-turbo"),
        ("qianfan", "api_key=k model=m", "openai", "https://qianfan.baidubce.com/v2", "m"),
        ("baichuan", OLDER["baichuan"], "openai", "https://api.baichuan-ai.com/v1", "Baichuan2-Turbo"),
        ("pangu", "api_url=http://h/chat", "pangu", "http://h/chat", "pangu-nlp-71b"),
        ("pangu", "project_id=p deployment_id=d model=m", "pangu", "https://pangu.cn-southwest-2.myhuaweicloud.com",
         "m"),
        ("pangu", "api_key=k model=m wire=maas", "openai", "https://api.modelarts-maas.com/openai/v1", "m"),
        ("azure_openai", OLDER["azure_openai"], "openai", "https://h/openai/deployments/d", "m"),
        ("azure_openai", "api_base=https://h/ deployment_id=d api_key=k api_version=1", "openai",
         "https://h/openai/deployments/d", "d"),
        ("azure_openai", "wire=v1 azure_endpoint=https://h azure_deployment=d api_key=k", "openai",
         "https://h/openai/v1", "d"),
        ("volcengine", OLDER["volcengine"], "speech_volcengine", "https://openspeech.bytedance.com", "volcano_tts"),
        ("volcengine", "api_key=k model=ep-1", "openai", "https://ark.cn-beijing.volces.com/api/v3", "ep-1"),
        ("volcengine", "api_key=k app_id=a model=c", "speech_volcengine", "https://openspeech.bytedance.com", "c"),
        ("moonshot", "api_key=k model=m region=intl", "openai", "https://api.moonshot.ai/v1", "m"),
        ("kimi", "api_key=k model=m", "openai", "https://api.moonshot.cn/v1", "m"),
        ("ollama", "model=m", "openai", "http://localhost:11434/v1", "m"),
    ],
)  # fmt: skip
def test_format_address_and_model(kind: str, text: str, wire: str, base_url: str, model: str) -> None:
    options = older(kind, text)
    assert (options.provider.wire, options.base_url, options.model) == (wire, base_url, model)


@pytest.mark.parametrize(
    ("kind", "text", "asked"),
    [
        ("openai", "api_key=k", True),
        ("openai", "api_key=k base_url=https://api.openai.com/v1/", True),
        ("openai", "api_key=k model=m base_url=http://h/v1", False),
        ("openai", "api_key=k model=m base_url=http://h/v1 stream_usage=yes", True),
        ("openai", "api_key=k stream_usage=off", False),
        ("qianwen", "api_key=k region=intl", True),
        ("qianwen", "api_key=k base_url=https://dashscope-us.aliyuncs.com/compatible-mode/v1 model=m", True),
        ("qianwen", "api_key=k wire=dashscope", False),
        ("ollama", "model=m", True),
        ("ollama", "model=m base_url=http://h:11434/v1", True),
        ("azure_openai", OLDER["azure_openai"], False),
        ("azure_openai", "wire=v1 azure_endpoint=https://h azure_deployment=d api_key=k", True),
        ("deepseek", "api_key=k model=m wire=beta", True),
        ("deepseek", "api_key=k model=m wire=anthropic", False),
        ("minimax", "api_key=k model=m region=intl", True),
        ("baichuan", "api_key=k", False),
        ("sparkdesk", "api_key=k", False),
        ("sparkdesk", "api_key=k stream_usage=true", True),
    ],
)  # fmt: skip
def test_streams_are_asked_for_their_tokens_where_the_vendor_says_so(kind: str, text: str, asked: bool) -> None:
    options = older(kind, text)
    assert options.asks_usage is options.vendor().asks_usage is asked
    (upstream,) = saas_upstreams(options, options.base_url)
    assert not isinstance(upstream, PassThrough) or upstream.asks_usage is asked


def test_a_format_that_cannot_be_asked_has_no_such_parameter() -> None:
    with pytest.raises(InvalidInput, match=r"Unknown parameter 'saas\.stream_usage'"):
        older("claude", "api_key=k stream_usage=true")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"saas\.azure_endpoint is missing: saas/azure_openai needs it"):
        older("azure_openai", "api_key=k api_version=1 azure_deployment=d")
    with pytest.raises(InvalidInput, match=r"saas\.group_id is missing"):
        older("minimax", "api_key=k wire=minimax_pro model=m")
    with pytest.raises(InvalidInput, match=r"saas\.model is missing"):
        older("deepseek", "api_key=k")
