"""Write a tiny SenseVoice model for funasr, and a detector of speech for it, without a network: for tests.

    python scripts/tiny_funasr.py OUT [--vad]

The model is a real SenseVoiceSmall with chosen weights: it writes ``beep`` for each stretch of a tone of 1000 Hz and
``hush`` for everything else, before that ``zh`` if it is told that language and ``raw`` if numbers are not to be
written in figures, and finds everybody happy. The detector takes everything for speech.

Needs funasr: run it with the interpreter of that engine.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import yaml
from funasr.frontends.wav_frontend import WavFrontend
from funasr.models.fsmn_vad_streaming.encoder import FSMN
from funasr.models.sense_voice.model import SenseVoiceSmall

BPE = "tiny.bpe.model"
MELS, STACKED = 16, 7
SIZE = MELS * STACKED
RATE = 16_000
FRONTEND = {
    "fs": RATE, "window": "hamming", "n_mels": MELS, "frame_length": 25, "frame_shift": 10, "lfr_m": STACKED,
    "lfr_n": 6, "dither": 0.0,
}  # fmt: skip
ENCODER = {
    "output_size": SIZE, "attention_heads": 4, "linear_units": 8, "num_blocks": 1, "tp_blocks": 1, "dropout_rate": 0.0,
    "positional_dropout_rate": 0.0, "attention_dropout_rate": 0.0, "input_layer": "pe",
    "pos_enc_class": "SinusoidalPositionEncoder", "normalize_before": True, "kernel_size": 11, "sanm_shfit": 0,
    "selfattention_layer_type": "sanm",
}  # fmt: skip
VAD_ENCODER = {
    "input_dim": 400, "input_affine_dim": 8, "fsmn_layers": 1, "linear_dim": 8, "proj_dim": 8, "lorder": 20,
    "rorder": 0, "lstride": 1, "rstride": 0, "output_affine_dim": 8, "output_dim": 2,
}  # fmt: skip
# What the model answers to each of its questions, by their numbers in funasr: language, mood, sounds, numbers.
AUTO, MOOD, SOUNDS, CHINESE, FIGURES, WORDS = 0, 1, 2, 3, 14, 15
ANSWERS = {
    AUTO: "<|en|>", MOOD: "<|HAPPY|>", SOUNDS: "<|Speech|>", CHINESE: "▁zh", FIGURES: "<|withitn|>", WORDS: "▁raw",
}  # fmt: skip
BEEP, HUSH = "▁beep", "▁hush"
FLOOR = 9  # of the frequencies, one that is made loud in every frame: silence would be all positions and no sound


def write(folder: Path) -> None:
    """The model, in the layout in which SenseVoiceSmall is published."""
    folder.mkdir(parents=True)
    words = [*ANSWERS.values(), BEEP, HUSH]
    (folder / BPE).write_bytes(tokenizer(words))
    (folder / "am.mvn").write_text(normalisation([10.0 * (i % MELS == FLOOR) for i in range(SIZE)]), "utf-8")
    config = {
        "encoder": "SenseVoiceEncoderSmall",
        "encoder_conf": ENCODER,
        "model": "SenseVoiceSmall",
        "model_conf": {"length_normalized_loss": True, "sos": 1, "eos": 2, "ignore_id": -1},
        "tokenizer": "SentencepiecesTokenizer",
        "tokenizer_conf": {"bpemodel": None, "unk_symbol": "<unk>", "split_with_space": True},
        "frontend": "WavFrontend",
        "frontend_conf": {**FRONTEND, "cmvn_file": None},
    }
    files = {"tokenizer_conf": {"bpemodel": BPE}, "frontend_conf": {"cmvn_file": "am.mvn"}}
    configure(folder, config, **files)
    words_of = sentencepiece.SentencePieceProcessor(model_file=str(folder / BPE))
    torch.save(weights(words_of), folder / "model.pt")


def write_vad(folder: Path) -> None:
    """The detector of speech, in the layout of ``fsmn-vad``."""
    folder.mkdir(parents=True)
    (folder / "am.mvn").write_text(normalisation([0.0] * 400), "utf-8")
    config = {
        "frontend": "WavFrontendOnline",
        "frontend_conf": {**FRONTEND, "n_mels": 80, "lfr_m": 5, "lfr_n": 1},
        "model": "FsmnVADStreaming",
        "model_conf": {"sil_pdf_ids": [0]},
        "encoder": "FSMN",
        "encoder_conf": VAD_ENCODER,
    }
    configure(folder, config, frontend_conf={"cmvn_file": "am.mvn"})
    encoder = FSMN(**VAD_ENCODER)
    for parameter in encoder.parameters():
        parameter.data.zero_()
    encoder.out_linear2.linear.bias.data.copy_(torch.tensor([-10.0, 10.0]))
    torch.save({f"encoder.{name}": value for name, value in encoder.state_dict().items()}, folder / "model.pt")


def configure(folder: Path, config: dict[str, Any], **files: Any) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    named = {"init_param": "model.pt", "config": "config.yaml", **files}
    told = {"framework": "pytorch", "model": {"type": "funasr"}, "file_path_metas": named}
    (folder / "configuration.json").write_text(json.dumps(told), "utf-8")


def tokenizer(words: list[str]) -> bytes:
    """A model of sentencepiece that has these words."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e"] * 10), model_writer=out, vocab_size=len(words) + 9, model_type="char",
        user_defined_symbols=words, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return out.getvalue()


def normalisation(shifts: list[float]) -> str:
    """Kaldi's file that adds these to a frame and scales it by one."""
    size = len(shifts)
    added, ones = " ".join(map(str, shifts)), " ".join(["1"] * size)
    return (
        f"<Nnet>\n<AddShift> {size} {size}\n<LearnRateCoef> 0 [ {added} ]\n"
        f"<Rescale> {size} {size}\n<LearnRateCoef> 0 [ {ones} ]\n</Nnet>\n"
    )


def weights(words: Any) -> dict[str, Any]:
    """The encoder hands on what it gets, so that each frame is answered by itself."""
    model = SenseVoiceSmall(
        encoder="SenseVoiceEncoderSmall", encoder_conf=ENCODER, input_size=SIZE, vocab_size=words.get_piece_size()
    )
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.zero_()
    last = model.ctc.ctc_lo
    for row, word in ANSWERS.items():
        model.embed.weight.data[row, row] = 1000.0
        # A steady sound has the same there in each of the spectra that a frame is made of.
        last.weight.data[words.piece_to_id(word), row::MELS] = -1.0
        last.weight.data[words.piece_to_id(word), row] = STACKED - 1.0
    last.weight.data[words.piece_to_id(BEEP), tone_bin() :: MELS] = 6.0
    last.weight.data[words.piece_to_id(HUSH), FLOOR::MELS] = 2.0
    return dict(model.state_dict())


def tone_bin() -> int:
    """Where the tone is among the frequencies of a frame."""
    samples = 0.5 * torch.sin(2 * torch.pi * 1000 * torch.arange(RATE) / RATE)
    frames, _ = WavFrontend(**FRONTEND)(samples[None], torch.tensor([RATE]))
    return int(frames[0, 10, :MELS].argmax())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vad", action="store_true")
    arguments = parser.parse_args()
    (write_vad if arguments.vad else write)(arguments.out)


if __name__ == "__main__":
    main()
