"""Sound files as samples of one channel at the rate that a model hears, piece by piece.

Of a long one there is never more in memory than a piece, beside the result, and who reads it may stop after any piece.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

from byzerllm.errors import InvalidInput

LOWEST_RATE, HIGHEST_RATE = 4_000, 384_000  # samples a second, of the files that there are
MAX_SECONDS = 2 * 3600  # of sound, at 48,000 samples a second; of more samples it is less
MAX_FRAMES = MAX_SECONDS * 48_000
MAX_CHANNELS = 8  # of a sound that long; of more channels it is shorter
VALUES = 2**22  # that are read at a time, in all channels: a few bytes may hold hours of silence in many
LOUDEST = 2.0**32  # of a sample: 1 is full scale, and files of integers that were taken for such are beyond it


def pieces(data: bytes, wanted: int, *, longest: float = MAX_SECONDS, param: str = "file") -> Iterator[Any]:
    """The samples of a sound file, one channel, ``wanted`` of them a second.

    Raises:
        InvalidInput: it is none that can be read, or longer than ``longest`` seconds; names ``param``.
    """
    import soundfile

    empty = True
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            check_size(file.samplerate, file.frames, file.channels, longest, param)
            for piece in resampled(_mono(file, param), file.samplerate, wanted):
                empty = False
                yield piece
    except soundfile.LibsndfileError as error:
        raise InvalidInput(
            f"The sound cannot be read: {error.error_string.rstrip('.')}.",
            hint="Send WAV, FLAC, MP3 or Ogg.",
            param=param,
        ) from None
    if empty:
        raise InvalidInput("The sound is empty.", param=param)


def samples(data: bytes, wanted: int, *, longest: float = MAX_SECONDS, param: str = "file") -> Any:
    """The same in one piece."""
    return joined(list(pieces(data, wanted, longest=longest, param=param)))


def at_least(length: int, sound: Any) -> Any:
    """Samples, with silence behind them if they are fewer than ``length``."""
    import numpy as np

    return np.pad(sound, (0, max(0, length - len(sound))))


def joined(parts: list[Any]) -> Any:
    """Arrays behind each other along their last axis. The list is emptied, so that there is no second copy of all."""
    import numpy as np

    whole = np.empty((*parts[0].shape[:-1], sum(part.shape[-1] for part in parts)), parts[0].dtype)
    at = whole.shape[-1]
    while parts:
        part = parts.pop()
        whole[..., at - part.shape[-1] : at] = part
        at -= part.shape[-1]
    return whole


def check_size(rate: int, frames: int, channels: int, longest: float, param: str) -> None:
    """Raises InvalidInput: the numbers in a file's head are such that reading it would take all memory or time."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise InvalidInput(
            f"The sound has {rate} samples a second; it must be {LOWEST_RATE} to {HIGHEST_RATE}.", param=param
        )
    most = min(longest * rate, MAX_FRAMES * min(1, MAX_CHANNELS / channels))
    if frames > most:
        raise InvalidInput(
            f"The sound lasts {frames / rate:.1f} seconds; at its rate at most {most / rate:g} are possible.",
            hint="Send it in parts.",
            param=param,
        )


def _mono(file: Any, param: str) -> Iterator[Any]:
    import numpy as np

    for block in file.blocks(VALUES // file.channels, dtype="float32", always_2d=True):
        mono = block.mean(axis=1)
        if not (np.abs(mono) <= LOUDEST).all():
            raise InvalidInput("The sound has samples that are no numbers, or beyond all measure.", param=param)
        yield mono


def resampled(blocks: Iterator[Any], rate: int, wanted: int) -> Iterator[Any]:
    """A sound with ``wanted`` samples a second instead of ``rate``; the same as if all of it were resampled at once.

    Each piece is filtered together with the edges of its neighbours, and begins where a sample of the old rate and one
    of the new one come together.
    """
    import numpy as np
    from scipy.signal import firwin, resample_poly

    if rate == wanted:
        yield from blocks
        return
    shared = math.gcd(rate, wanted)
    up, down = wanted // shared, rate // shared
    half = 10 * max(up, down)  # as resample_poly makes it by itself, for each piece anew
    window = firwin(2 * half + 1, 1 / max(up, down), window=("kaiser", 5.0)).astype(np.float32)
    edge = (half // up // down + 1) * down  # samples that the filter reaches to each side
    held, before = np.zeros(0, np.float32), 0  # what is still needed, and how much of it is done
    for block in blocks:
        held = np.concatenate([held, block])
        ready = (len(held) - before - edge) // down * down
        if ready <= 0:
            continue
        made = resample_poly(held[: before + ready + edge], up, down, window=window)
        yield made[before * up // down : (before + ready) * up // down]
        done = before + ready
        before = min(done, edge)
        held = held[done - before :]
    if len(held):
        yield resample_poly(held, up, down, window=window)[before * up // down :]
