"""Vendors' formats for speech and images: what is sent, what is made of the answers, what is refused."""

from __future__ import annotations

import base64
import json
import xml.etree.ElementTree as ET
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm.errors import InvalidInput, UpstreamBroken, UpstreamError
from byzerllm.wire import MEDIA, check_wire, media_format
from byzerllm.wire.base import Outgoing, Request, Task, Vendor, decode_request
from byzerllm.wire.media import Download, MediaFormat

SOUND = bytes(range(256)) * 3
VOICES = {"": {"voice": "table-voice"}}
SPEECH = [name for name in MEDIA if name.startswith("speech_")]


def vendor(model: str = "its-model", **params: str) -> Vendor:
    return Vendor(model, "The Vendor", params, frozenset(), VOICES)


def asked(task: Task = Task.SPEECH, **fields: Any) -> Request:
    return decode_request(task, msgspec.json.encode({"model": "m", **fields}))


def outgoing(name: str, to: Vendor | None = None, **fields: Any) -> Outgoing:
    return media_format(name).request(asked(**{"input": "hi", **fields}), to or vendor())


def sent(name: str, to: Vendor | None = None, **fields: Any) -> Any:
    return json.loads(outgoing(name, to, **fields).body)


def refused(name: str, **fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        outgoing(name, **fields)
    return caught.value


def heard(name: str, *pieces: bytes, **fields: Any) -> bytes | Download:
    """What comes of an answer; where it is no download, all of it."""
    decoder = media_format(name).decoder(asked(input="hi", **fields), 7)
    got = b"".join(decoder.feed(piece) for piece in pieces)
    rest = decoder.close()
    return rest if isinstance(rest, Download) else got + rest


def fails(name: str, *pieces: bytes, **fields: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        heard(name, *pieces, **fields)
    return caught.value


def content_type(name: str, **fields: Any) -> bytes:
    return media_format(name).decoder(asked(input="hi", **fields), 7).content_type


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- what all have in common ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEDIA)
def test_every_format_is_found_by_its_name(name: str) -> None:
    check_wire(name)
    found: MediaFormat = media_format(name)
    assert found.name == name
    assert found.tasks == ({Task.IMAGE} if name.startswith("images") else {Task.SPEECH})
    error = found.error(429, {"retry-after": "3"}, b'{"code":"Busy","message":"slow down"}')
    assert (error.status, error.message, error.vendor_code, error.retry_after) == (429, "slow down", "Busy", 3)


@pytest.mark.parametrize("name", SPEECH)
def test_what_a_vendor_cannot_do_is_refused_by_name(name: str) -> None:
    for field, value in (("instructions", "whisper"), ("stream_format", "sse"), ("its_own", 1)):
        error = refused(name, **{field: value})
        assert error.message.endswith(f"leave out '{field}'.")
        assert error.param == field
    assert refused(name, response_format="midi").param == "response_format"
    assert "not of OpenAI's form" in refused(name, input=7).message
    outgoing(name, stream_format="audio", response_format=None, speed=None)
    with pytest.raises(InvalidInput, match="'voice' is missing") as caught:
        media_format(name).request(asked(input="hi"), Vendor(""))
    assert caught.value.param == "voice"


@pytest.mark.parametrize("name", SPEECH)
def test_the_callers_voice_goes_before_the_tables(name: str) -> None:
    assert b"table-voice" in outgoing(name, vendor("")).body
    for voice in ("mine", {"id": "mine"}):
        body = outgoing(name, voice=voice).body
        assert b"mine" in body
        assert b"table-voice" not in body


# -- azure ------------------------------------------------------------------------------------------------------------


def spoken(body: bytes) -> ET.Element:
    return ET.fromstring(body)


def test_azures_request() -> None:
    voice = vendor("zh-CN-XiaoxiaoNeural")
    out = outgoing("speech_azure", voice, input="1 < 2 & 你好")
    assert out.path == "/cognitiveservices/v1"
    assert out.headers == {
        "Content-Type": "application/ssml+xml",
        "X-Microsoft-OutputFormat": "audio-48khz-192kbitrate-mono-mp3",
    }
    speak = spoken(out.body)
    assert speak.get("{http://www.w3.org/XML/1998/namespace}lang") == "zh-CN"
    assert (speak[0].get("name"), speak[0].text, len(speak[0])) == ("zh-CN-XiaoxiaoNeural", "1 < 2 & 你好", 0)
    assert b"1 &lt; 2 &amp; " in out.body


def test_azures_options() -> None:
    out = outgoing("speech_azure", voice="my \"own' <voice>", language="de-DE", speed=1.5, response_format="wav")
    speak = spoken(out.body)
    assert speak.get("{http://www.w3.org/XML/1998/namespace}lang") == "de-DE"
    assert speak[0].get("name") == "my \"own' <voice>"
    assert (speak[0][0].get("rate"), speak[0][0].text) == ("1.5", "hi")
    assert out.headers["X-Microsoft-OutputFormat"] == "riff-24khz-16bit-mono-pcm"
    assert b'xml:lang="en-US"' in outgoing("speech_azure", voice="own").body
    assert refused("speech_azure", input="a\x00b").param == "input"
    assert content_type("speech_azure", response_format="opus") == b"audio/ogg"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff")))
def test_azure_gets_any_text_as_it_is(text: str) -> None:
    assert "".join(spoken(outgoing("speech_azure", input=text).body).itertext()) == text


def test_azures_sound_passes_as_it_comes() -> None:
    assert heard("speech_azure", SOUND[:5], SOUND[5:]) == SOUND


def test_azures_errors_are_explained_where_it_says_nothing() -> None:
    error = media_format("speech_azure").error
    assert "saas.service_region" in error(401, {"x-requestid": "r-1"}, b" ").message
    assert error(401, {"x-requestid": "r-1"}, b"").request_id == "r-1"
    assert error(400, {}, b"Unsupported voice x.").message == "Unsupported voice x."
    assert error(502, {}, b"").message == "the upstream answered with status 502 and no message"


# -- volcengine -------------------------------------------------------------------------------------------------------


def test_volcengines_request() -> None:
    to = vendor("volcano_tts", app_id="app-1")
    body = sent("speech_volcengine", to, voice="BV001", speed=1.2, emotion="happy", response_format="opus")
    number = body["request"].pop("reqid")
    assert body == {
        "app": {"appid": "app-1", "token": "any", "cluster": "volcano_tts"},
        "user": {"uid": "byzerllm"},
        "audio": {"voice_type": "BV001", "encoding": "ogg_opus", "speed_ratio": 1.2, "emotion": "happy"},
        "request": {"text": "hi", "text_type": "plain", "operation": "query"},
    }
    assert number
    assert number != sent("speech_volcengine", to)["request"]["reqid"]
    assert sent("speech_volcengine")["audio"] == {"voice_type": "table-voice", "encoding": "mp3"}
    assert outgoing("speech_volcengine").path == "/api/v1/tts"


def test_volcengines_answer() -> None:
    answer = {"reqid": "r", "code": 3000, "message": "Success", "sequence": -1, "data": b64(SOUND)}
    body = json.dumps(answer).encode()
    assert heard("speech_volcengine", body[:100], body[100:]) == SOUND


@pytest.mark.parametrize(("code", "status"), [(3001, 400), (3003, 429), (3005, 503), (3030, 504), (3099, 502)])
def test_volcengines_errors_inside_an_answer(code: int, status: int) -> None:
    body = json.dumps({"reqid": "r-1", "code": code, "message": "its words"}).encode()
    error = fails("speech_volcengine", body)
    assert (error.status, error.vendor_code, error.message, error.request_id) == (status, code, "its words", "r-1")


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b'{"code":3000}', b'{"code":3000,"data":"***"}'])
def test_volcengines_broken_answers(body: bytes) -> None:
    assert isinstance(fails("speech_volcengine", body), UpstreamBroken)


def test_volcengines_request_id_is_in_a_header() -> None:
    assert media_format("speech_volcengine").error(500, {"x-tt-logid": "l-1"}, b"").request_id == "l-1"


def test_volcengines_third_form() -> None:
    to = vendor("seed-tts-2.0", app_id="app-1")
    out = outgoing("speech_volcengine_v3", to, speed=0.5, sample_rate=16000, response_format="pcm")
    assert out.path == "/api/v3/tts/unidirectional"
    assert (out.headers["X-Api-Resource-Id"], out.headers["X-Api-App-Id"]) == ("seed-tts-2.0", "app-1")
    assert out.headers["X-Api-Request-Id"]
    assert json.loads(out.body) == {
        "user": {"uid": "byzerllm"},
        "req_params": {
            "text": "hi",
            "speaker": "table-voice",
            "audio_params": {"format": "pcm", "sample_rate": 16000, "speech_rate": -50},
        },
    }
    plain = outgoing("speech_volcengine_v3")
    assert "X-Api-App-Id" not in plain.headers
    assert json.loads(plain.body)["req_params"]["audio_params"] == {"format": "mp3"}


V3 = b"".join(
    json.dumps(o, ensure_ascii=False).encode()
    for o in (
        {"code": 0, "message": "好", "data": b64(SOUND[:300])},
        {"code": 0, "message": "", "data": None, "sentence": {"text": "你好"}},
        {"code": 0, "message": "", "data": b64(SOUND[300:])},
        {"code": 20000000, "message": "ok", "data": None},
    )
)


@given(st.lists(st.integers(0, len(V3)), max_size=8))
def test_any_cut_of_volcengines_third_form_gives_the_same_sound(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(V3)]
    pieces = [V3[a:b] for a, b in pairwise(edges)]
    assert heard("speech_volcengine_v3", *pieces) == SOUND


def test_volcengines_third_form_goes_wrong() -> None:
    first = V3.partition(b"}")[0] + b"}"
    assert isinstance(fails("speech_volcengine_v3", first), UpstreamBroken)
    assert isinstance(fails("speech_volcengine_v3", b""), UpstreamBroken)
    for code, status in ((45000001, 400), (55000000, 502), (7, 502), ("x", 502)):
        error = fails("speech_volcengine_v3", first, json.dumps({"code": code, "message": "no"}).encode())
        assert (error.status, error.vendor_code, error.message) == (status, code, "no")
    assert fails("speech_volcengine_v3", b"[]").status == 502


# -- minimax ----------------------------------------------------------------------------------------------------------


def test_minimaxs_request() -> None:
    body = sent("speech_minimax", speed=1.1, emotion="happy", sample_rate=32000, language_boost="auto")
    assert body == {
        "model": "its-model",
        "text": "hi",
        "stream": True,
        "stream_options": {"exclude_aggregated_audio": True},
        "voice_setting": {"voice_id": "table-voice", "speed": 1.1, "emotion": "happy"},
        "audio_setting": {"format": "mp3", "sample_rate": 32000},
        "language_boost": "auto",
    }
    whole = sent("speech_minimax", response_format="wav")
    assert (whole["stream"], whole["audio_setting"]) == (False, {"format": "wav"})
    assert "stream_options" not in whole
    assert outgoing("speech_minimax").path == "/t2a_v2"


def event(status: int, sound: bytes, **more: Any) -> bytes:
    data = {"data": {"audio": sound.hex(), "status": status}, "trace_id": "t-1", **more}
    return b"data: %b\n\n" % json.dumps({**data, "base_resp": {"status_code": 0, "status_msg": ""}}).encode()


STREAM = event(1, SOUND[:10]) + event(1, SOUND[10:]) + event(2, SOUND)


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_any_cut_of_minimaxs_stream_gives_the_same_sound_once(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in pairwise(edges)]
    assert heard("speech_minimax", *pieces) == SOUND


def test_minimaxs_other_answers() -> None:
    assert heard("speech_minimax", event(1, SOUND), event(2, b"")) == SOUND
    assert heard("speech_minimax", event(2, SOUND)[:-2]) == SOUND, "one event, without its empty line"
    whole = event(2, SOUND)[6:]
    assert heard("speech_minimax", b"\n", whole[:9], whole[9:], response_format="wav") == SOUND


@pytest.mark.parametrize(("code", "status"), [(1002, 429), (1004, 401), (1008, 402), (2013, 400), (1000, 502)])
def test_minimaxs_errors_inside_an_answer(code: int, status: int) -> None:
    body = {"data": None, "trace_id": "t-1", "base_resp": {"status_code": code, "status_msg": "its words"}}
    for answer in (json.dumps(body).encode(), event(1, b"x") + b"data: " + json.dumps(body).encode() + b"\n\n"):
        error = fails("speech_minimax", answer)
        assert (error.status, error.vendor_code, error.message, error.request_id) == (status, code, "its words", "t-1")


@pytest.mark.parametrize("body", [b"", event(1, SOUND), b"{}", b"{", b'{"data":{"audio":"xyz","status":2}}'])
def test_minimaxs_broken_answers(body: bytes) -> None:
    assert isinstance(fails("speech_minimax", body), UpstreamBroken)


# -- dashscope --------------------------------------------------------------------------------------------------------


def test_dashscopes_request() -> None:
    out = outgoing("speech_dashscope", language_type="Chinese")
    assert out.path == "/services/aigc/multimodal-generation/generation"
    assert out.headers == {}
    spoken_of = {"text": "hi", "voice": "table-voice", "language_type": "Chinese"}
    assert json.loads(out.body) == {"model": "its-model", "input": spoken_of}
    assert outgoing("speech_dashscope", response_format="pcm").headers == {"X-DashScope-SSE": "enable"}
    assert content_type("speech_dashscope") == b"audio/wav"
    assert refused("speech_dashscope", speed=2).param == "speed"
    assert "none of wav, pcm" in refused("speech_dashscope", response_format="mp3").message


def test_dashscopes_file_is_fetched() -> None:
    found = heard("speech_dashscope", b'{"output":{"audio":', b'{"url":"http://h/a.wav"},"finish_reason":"stop"}}')
    assert isinstance(found, Download)
    assert found.urls == ("http://h/a.wav",)
    assert found.finish([SOUND]) == SOUND


def test_dashscopes_error_inside_a_stream_has_the_comments_status() -> None:
    frame = b'event:error\n:HTTP_STATUS/429\ndata:{"code":"Throttling","message":"slow down"}\n\n'
    assert fails("speech_dashscope", frame, response_format="pcm").status == 429


def test_dashscopes_stream() -> None:
    def chunk(sound: bytes, reason: str = "null") -> bytes:
        output = {"audio": {"data": b64(sound), "url": ""}, "finish_reason": reason}
        return b"id:1\nevent:result\n:HTTP_STATUS/200\ndata:%b\n\n" % json.dumps({"output": output}).encode()

    stream = chunk(SOUND[:7]) + chunk(SOUND[7:]) + chunk(b"", "stop")
    assert heard("speech_dashscope", stream[:70], stream[70:-1], response_format="pcm") == SOUND
    assert isinstance(fails("speech_dashscope", chunk(SOUND), response_format="pcm"), UpstreamBroken)
    broken = b'data:{"output":{"audio":{"data":"*"}}}\n\n'
    assert isinstance(fails("speech_dashscope", broken, response_format="pcm"), UpstreamBroken)
    refusal = b'event:error\ndata:{"code":"InvalidParameter","message":"no such voice","request_id":"r-1"}\n\n'
    error = fails("speech_dashscope", refusal, response_format="pcm")
    assert (error.status, error.vendor_code, error.request_id) == (400, "InvalidParameter", "r-1")


@pytest.mark.parametrize("body", [b"", b"{}", b'{"output":{"audio":{}}}', b"[]"])
def test_dashscopes_broken_answers(body: bytes) -> None:
    assert isinstance(fails("speech_dashscope", body), UpstreamBroken)


# -- siliconflow's images ---------------------------------------------------------------------------------------------


def image(**fields: Any) -> Any:
    request = asked(Task.IMAGE, **{"prompt": "a house", **fields})
    return json.loads(media_format("images_siliconflow").request(request, vendor()).body)


def test_siliconflows_request() -> None:
    assert image() == {"model": "its-model", "prompt": "a house"}
    assert image(size="1024x1024", n=2, seed=7, response_format="b64_json", user="u", negative_prompt=None) == {
        "model": "its-model",
        "prompt": "a house",
        "image_size": "1024x1024",
        "batch_size": 2,
        "seed": 7,
    }
    for fields, param in (({"quality": "hd"}, "quality"), ({"prompt": None}, "prompt"),
                          ({"response_format": "x"}, "response_format")):  # fmt: skip
        with pytest.raises(InvalidInput) as caught:
            image(**fields)
        assert caught.value.param == param


def drawn(*pieces: bytes, **fields: Any) -> bytes | Download:
    decoder = media_format("images_siliconflow").decoder(asked(Task.IMAGE, prompt="x", **fields), 7)
    assert b"".join(decoder.feed(piece) for piece in pieces) == b""
    assert decoder.content_type == b"application/json"
    return decoder.close()


def test_siliconflows_answer() -> None:
    body = b'{"images":[{"url":"https://h/1?x=y"},{"url":"https://h/2"}],"timings":{"inference":1.2},"seed":1}'
    named = drawn(body[:20], body[20:])
    assert isinstance(named, bytes)
    assert json.loads(named) == {"created": 7, "data": [{"url": "https://h/1?x=y"}, {"url": "https://h/2"}]}
    found = drawn(body, response_format="b64_json")
    assert isinstance(found, Download)
    assert list(found.urls) == ["https://h/1?x=y", "https://h/2"]
    assert json.loads(found.finish([b"one", b"two"])) == {
        "created": 7,
        "data": [{"b64_json": b64(b"one")}, {"b64_json": b64(b"two")}],
    }
    with pytest.raises(UpstreamBroken):
        drawn(b'{"images":null}')
