"""Checks of how the host makes speech and images; see ``torch_checks.py``, which runs them."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import torch

from byzerllm.engines.host.backend import Picture
from byzerllm.engines.host.painting import DiffusionPainter
from byzerllm.engines.host.speech import PipelineSpeaker
from byzerllm.errors import InvalidInput


class Talker:
    """A pipeline that speaks for as long as nobody stops it."""

    def __init__(self) -> None:
        self.model = torch.nn.Sequential(torch.nn.Identity())
        self.begun, self.ended, self.enough = (threading.Event() for _ in range(3))

    def preprocess(self, text: str) -> dict[str, Any]:
        return {"input_ids": torch.zeros(1, len(text.strip("!")))}

    def __call__(self, text: str) -> dict[str, Any]:
        self.begun.set()
        try:
            while not self.enough.is_set():
                self.model(torch.zeros(1))
        finally:
            self.ended.set()
        return {"audio": [[0.5]], "sampling_rate": 8000}


def check_speech_ends_when_nobody_waits_for_it(path: str) -> None:
    talker = Talker()
    speaker = PipelineSpeaker(talker)

    async def leave() -> None:
        speaking = asyncio.ensure_future(speaker.speak("a", None, 1.0))
        await asyncio.to_thread(talker.begun.wait, 60)
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
        assert await asyncio.to_thread(talker.ended.wait, 60)
        talker.enough.set()
        assert (await speaker.speak("a", None, 1.0)).rate == 8000

    try:
        asyncio.run(leave())
    finally:
        talker.enough.set()


class Brush:
    """A pipeline that paints for as long as nobody stops it."""

    def __init__(self) -> None:
        self.components = {"vae": torch.nn.Sequential(torch.nn.Identity()), "scheduler": None}
        self.begun, self.ended = threading.Event(), threading.Event()

    def __call__(self, prompt: str, num_images_per_prompt: int) -> Any:
        self.begun.set()
        try:
            while True:
                self.components["vae"](torch.zeros(1))
        finally:
            self.ended.set()


def check_an_image_ends_when_nobody_waits_for_it(path: str) -> None:
    brush = Brush()

    async def leave() -> None:
        painting = asyncio.ensure_future(DiffusionPainter(brush).paint(Picture("a")))
        await asyncio.to_thread(brush.begun.wait, 60)
        painting.cancel()
        await asyncio.gather(painting, return_exceptions=True)
        assert await asyncio.to_thread(brush.ended.wait, 60)

    asyncio.run(leave())


def check_a_text_with_nothing_to_say_is_refused(path: str) -> None:
    talker = Talker()
    talker.enough.set()
    try:
        asyncio.run(PipelineSpeaker(talker).speak("!", None, 1.0))
    except InvalidInput as error:
        problem = error.message
    else:
        problem = ""
    assert problem == "'input' has nothing in it that this model can say."
