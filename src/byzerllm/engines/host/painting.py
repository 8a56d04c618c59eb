"""Text into images, by diffusers."""

from __future__ import annotations

import inspect
import io
from collections.abc import Mapping
from typing import Any

from byzerllm.engines import hf_folder
from byzerllm.engines.host import loading
from byzerllm.engines.host.backend import Picture
from byzerllm.engines.host.batches import StoppableThread
from byzerllm.errors import InvalidInput


class DiffusionPainter:
    """A ``Painter``."""

    def __init__(self, pipeline: Any) -> None:
        import torch

        self._pipeline = pipeline
        self._known = inspect.signature(pipeline.__call__).parameters
        parts = pipeline.components.values()
        self._thread = StoppableThread(*(part for part in parts if isinstance(part, torch.nn.Module)))

    async def paint(self, picture: Picture) -> list[bytes]:
        return await self._thread.run(self.paint_now, picture)

    def paint_now(self, picture: Picture) -> list[bytes]:
        """Make the images."""
        import torch

        options: dict[str, Any] = {
            "width": picture.width,
            "height": picture.height,
            "negative_prompt": picture.negative,
            "num_inference_steps": picture.steps,
            "guidance_scale": picture.guidance,
            "num_images_per_prompt": picture.count,
        }
        given = {name: value for name, value in options.items() if value is not None}
        for name in given:
            if name not in self._known:
                raise InvalidInput(f"This model takes no {name}.", param=name)
        if picture.seed is not None:
            given["generator"] = torch.Generator("cpu").manual_seed(picture.seed % 2**63)

        try:
            images = self._pipeline(picture.prompt, **given).images
        except ValueError as error:  # sizes and the like that this pipeline refuses
            raise InvalidInput(f"The model refused: {error}") from None
        return [_png(image) for image in images]


def _png(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def load(path: str, values: Mapping[str, Any], slots: int) -> DiffusionPainter:
    """Load a pipeline of diffusers and let it make one step of a small image."""
    import torch
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    loading.phase("loading weights")
    device = loading.device_of(values)
    # Half of float32 is enough for images, but what was made for bfloat16 has numbers beyond those of float16.
    half = torch.bfloat16 if hf_folder.read(path).dtype == "bfloat16" else torch.float16
    own = torch.float32 if device == "cpu" else half
    pipeline = DiffusionPipeline.from_pretrained(
        path, dtype=loading.dtype_of(values, device, own), local_files_only=True
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    painter = DiffusionPainter(pipeline)
    loading.phase("warming up")
    painter.paint_now(Picture("a", steps=1))
    return painter
