"""Vendors' own formats for speech and images, each through the real server."""

from __future__ import annotations

import base64
import http.client
from typing import TYPE_CHECKING

import pytest
from tests.fakes import RESET, FakeUpstream, Reply, json_reply, sse_reply
from tests.gateway import deploy, post, wait_free
from tests.integration.media import SOUND, error_of, of, sound_reply, speak

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Byzer


@pytest.fixture(scope="module")
def vendor() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


def test_azure(server: Byzer, vendor: FakeUpstream) -> None:
    deploy(server, "azure", vendor, of("saas/azure"), base_url=vendor.url, model="zh-CN-XiaoxiaoNeural", max_retries=0)
    vendor.script(sound_reply(SOUND[:99], 0.05, SOUND[99:], kind="audio/x-wav"))
    answer = speak(server, "azure", input="<你好>", response_format="wav")
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "audio/wav", SOUND)
    request = vendor.requests[-1]
    assert request.path == "/cognitiveservices/v1"
    assert request.headers["ocp-apim-subscription-key"] == "sk-upstream"
    assert request.headers["content-type"] == "application/ssml+xml"
    assert request.headers["x-microsoft-outputformat"] == "riff-24khz-16bit-mono-pcm"
    assert request.headers["user-agent"].startswith("byzerllm/")
    assert "authorization" not in request.headers
    assert b'<voice name="zh-CN-XiaoxiaoNeural">&lt;\xe4\xbd\xa0' in request.body
    deploy(server, "azure_body", vendor, of("saas/azure"), base_url=vendor.url, extra_body='{"x": 1}')
    assert "takes no JSON" in error_of(speak(server, "azure_body", voice="x"))["message"]
    vendor.script(Reply([], 401))
    refused = speak(server, "azure")
    assert (refused.status, "saas.service_region" in error_of(refused)["message"]) == (401, True)
    assert error_of(post(server, "azure"))["message"].startswith("azure has no chat. It has: speech.")


def test_azures_voices_are_checked_at_deploy(server: Byzer, vendor: FakeUpstream) -> None:
    params = ["saas.api_key=k", f"saas.base_url={vendor.url}", "saas.model=de-DE-KatjaNeural"]
    command = ("deploy", "--model", "voices", "--pretrained_model_type", "saas/azure", "--infer_params", *params)
    vendor.script(Reply([], 401))
    assert "refused saas.api_key with 401" in server.run(*command, code=1).stderr
    vendor.script(json_reply([{"Name": "x", "ShortName": "de-DE-KatjaNeural", "Locale": "de-DE"}]))
    server.run(*command)
    assert vendor.requests[-1].path == "/cognitiveservices/voices/list"


def test_speech_that_breaks_off(server: Byzer, vendor: FakeUpstream) -> None:
    deploy(server, "cut", vendor, of("saas/azure"), base_url=vendor.url, max_retries=1)
    vendor.script(sound_reply(RESET), sound_reply())
    assert speak(server, "cut").body == SOUND, "nothing was heard yet: it was asked for again"
    vendor.script(sound_reply(SOUND[:99], 0.05, RESET))
    with pytest.raises(http.client.IncompleteRead):
        speak(server, "cut")
    vendor.script(Reply([], headers={"content-type": "audio/mpeg"}), Reply([], headers={"content-type": "audio/mpeg"}))
    silent = speak(server, "cut")
    assert (silent.status, "answered with nothing" in error_of(silent)["message"]) == (502, True)
    wait_free(server, "cut")


def test_volcengines_speech_from_an_older_script(server: Byzer, vendor: FakeUpstream) -> None:
    params = ["saas.api_key=token-1", "saas.app_id=app-1", f"saas.base_url={vendor.url}", "saas.model=volcano_tts"]
    server.run("deploy", "--model", "volcano", "--pretrained_model_type", "saas/volcengine", "--infer_params", *params)
    assert server.http("GET", "/v1/models/volcano").json()["task"] == "speech"
    vendor.script(json_reply({"code": 3000, "data": base64.b64encode(SOUND).decode()}))
    answer = speak(server, "volcano")
    assert (answer.headers["content-type"], answer.body) == ("audio/mpeg", SOUND)
    request = vendor.requests[-1]
    assert (request.path, request.headers["authorization"]) == ("/api/v1/tts", "Bearer;token-1")
    assert request.json()["app"] == {"appid": "app-1", "token": "any", "cluster": "volcano_tts"}
    assert request.json()["audio"] == {"voice_type": "BV705_streaming", "encoding": "mp3"}
    vendor.script(json_reply({"reqid": "r-1", "code": 3050, "message": "no such voice"}))
    refused = speak(server, "volcano", voice="nobody")
    assert (refused.status, error_of(refused)["code"]) == (400, 3050)
    assert error_of(refused)["upstream_request_id"] == "r-1"


def test_minimaxs_speech(server: Byzer, vendor: FakeUpstream) -> None:
    deploy(server, "minimax", vendor, of("saas/minimax"), model="speech-2.6-hd", group_id="g 1")
    good = {"status_code": 0, "status_msg": ""}
    events = [{"data": {"audio": s.hex(), "status": n}, "base_resp": good} for n, s in ((1, SOUND), (2, SOUND))]
    vendor.script(sse_reply(*events, done=False))
    assert speak(server, "minimax").body == SOUND
    assert vendor.requests[-1].path == "/v1/t2a_v2?GroupId=g+1"
    vendor.script(json_reply({"data": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}))
    refused = speak(server, "minimax")
    assert (refused.status, error_of(refused)["message"]) == (402, "insufficient balance")


def test_siliconflows_images(server: Byzer, vendor: FakeUpstream) -> None:
    flux = "black-forest-labs/FLUX.1-dev"
    deploy(server, "flux", vendor, of("saas/siliconflow"), model=flux)
    asked = {"model": "flux", "prompt": "a house", "size": "512x512"}
    with FakeUpstream() as files:
        named = json_reply({"images": [{"url": f"{files.url}/a.png?sig=x%2Fy"}], "seed": 1})
        files.default = Reply([b"the image"], headers={"content-type": "image/png"})
        vendor.script(named, named, named)
        answer = server.http("POST", "/v1/images/generations", asked)
        assert answer.json()["data"] == [{"url": f"{files.url}/a.png?sig=x%2Fy"}]
        assert files.requests == []
        assert vendor.requests[-1].json() == {"model": flux, "prompt": "a house", "image_size": "512x512"}
        answer = server.http("POST", "/v1/images/generations", {**asked, "response_format": "b64_json"})
        assert base64.b64decode(answer.json()["data"][0]["b64_json"]) == b"the image"
        assert files.requests[0].path == "/a.png?sig=x%2Fy"
        assert "authorization" not in files.requests[0].headers
        files.default = Reply([], 403)
        before = len(vendor.requests)
        answer = server.http("POST", "/v1/images/generations", {**asked, "response_format": "b64_json"})
        assert answer.status == 502
        assert "could not be fetched" in error_of(answer)["message"]
        assert len(vendor.requests) == before + 1, "an image that was paid for is not made again"
