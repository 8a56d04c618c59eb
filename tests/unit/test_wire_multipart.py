"""Forms: the model's name is found and exchanged, every other byte stays, and what is ambiguous is refused."""

from __future__ import annotations

from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import HTTP

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm.errors import InvalidInput
from byzerllm.wire.base import Task
from byzerllm.wire.multipart import Form, decode_form

TYPE = b"multipart/form-data; boundary=abc"
SOUND = b"RIFF\r\n--ab\r\n\r\n\x00\xff--abc"


def part(name: str, content: bytes = b"x", head: str = "") -> bytes:
    return f'--abc\r\nContent-Disposition: form-data; name="{name}"{head}\r\n\r\n'.encode() + content + b"\r\n"


def form(*parts: bytes, end: bytes = b"--abc--\r\n") -> bytes:
    return b"".join(parts) + end


def read(body: bytes, content_type: bytes = TYPE, served_model: str | None = None) -> Form:
    return decode_form(Task.TRANSCRIPTION, content_type, body, served_model=served_model)


def sent(found: Form, model: str) -> bytes:
    return b"".join(found.pieces(model))


FILE = part("file", SOUND, '; filename="a.wav"\r\nContent-Type: audio/wav')


@pytest.mark.parametrize(
    "body",
    [
        form(part("model", b"mine"), FILE),
        form(FILE, part("model", b"mine")),
        form(part("language", b""), part("model", b"mine"), FILE),
        form(part("model", b"mine", "\r\nContent-Type: text/plain"), FILE, end=b"--abc--"),
    ],
)
def test_only_the_models_name_changes(body: bytes) -> None:
    found = read(body)
    assert (found.model, found.stream, found.task) == ("mine", False, Task.TRANSCRIPTION)
    assert sent(found, "whisper-1") == body.replace(b"\r\n\r\nmine\r\n", b"\r\n\r\nwhisper-1\r\n")
    assert sent(found, "mine") == body, "it can be sent again"


def test_the_file_is_not_copied() -> None:
    _, _, rest = read(form(part("model", b"mine"), FILE)).pieces("x")
    assert isinstance(rest, memoryview)


def test_a_served_model_goes_before_the_forms_own() -> None:
    assert read(form(part("model", b"mine"), FILE), served_model="other").model == "other"
    without = read(form(FILE), served_model="other")
    assert (without.model, sent(without, "y")) == ("other", form(part("model", b"y"), FILE))


@pytest.mark.parametrize(
    "content_type",
    [b'Multipart/Form-Data; boundary="abc"', b"multipart/form-data; charset=utf-8; Boundary=abc ;x=y"],
)
def test_content_types(content_type: bytes) -> None:
    found = read(form(part("model", b"mine")), content_type)
    assert found.content_type == b'multipart/form-data; boundary="abc"'


def test_a_files_name_is_no_parts_name() -> None:
    disguised = part("file", b"evil", '; filename="; name=model; \\" name=\\"model"')
    assert read(form(disguised, part("model", b"mine"))).model == "mine"
    turned = b'--abc\r\ncontent-disposition: form-data; filename="; name=model"; NAME=file\r\n\r\nevil\r\n'
    assert read(form(turned, part("model", b"mine"))).model == "mine"


@pytest.mark.parametrize(
    ("content_type", "body", "said"),
    [
        (b"application/json", b"{}", "must be a form"),
        (b"multipart/form-data", b"", "must be a form"),
        (b"multipart/form-data; boundary=" + b"a" * 71, b"", "must be a form"),
        (TYPE, b"", "does not begin with its boundary"),
        (TYPE, b"hello" + form(part("model")), "does not begin with its boundary"),
        (TYPE, form(part("model"), end=b""), "its last boundary is missing"),
        (TYPE, form(part("model"), end=b"--abc--\r\nmore"), "something follows its end"),
        (TYPE, form(part("model"), end=b"--abcd\r\n"), "something follows a boundary"),
        (TYPE, b"--abc\r\n\r\nx\r\n--abc--", "a part has no name"),
        (TYPE, b"--abc\r\nContent-Disposition: form-data\r\n\r\nx\r\n--abc--", "a part has no name"),
        (TYPE, b"--abc\r\nX: " + b"y" * 9000 + b"\r\n\r\nx\r\n--abc--", "no end of its headers"),
        (TYPE, form(part("model"), part("model")), "several parts named 'model'"),
        (TYPE, form(*[part("x")] * 64), "more than 64 parts"),
        (TYPE, form(part("file")), "'model' is missing"),
        (TYPE, form(part("model", b"")), "'model' is missing"),
        (TYPE, form(part("model", b"\xff")), "'model' must be UTF-8"),
    ],
)
def test_refusals(content_type: bytes, body: bytes, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        read(body, content_type)


@given(
    st.lists(st.tuples(st.text("abcdefgh", min_size=1), st.binary().filter(lambda c: b"--abc" not in c)), max_size=6),
    st.text("m0-/.", min_size=1),
    st.data(),
)
def test_any_form_is_read_by_others_as_before(fields: list[tuple[str, bytes]], model: str, data: st.DataObject) -> None:
    where = data.draw(st.integers(0, len(fields)))
    fields = [*fields[:where], ("model", b"mine"), *fields[where:]]
    body = sent(read(form(*(part(name, content) for name, content in fields))), model)
    message = BytesParser(EmailMessage, policy=HTTP).parsebytes(b"Content-Type: " + TYPE + b"\r\n\r\n" + body)
    names = [p.get_param("name", header="content-disposition") for p in message.iter_parts()]
    assert names == [name for name, _ in fields]
    assert b'name="model"\r\n\r\n%b\r\n--abc' % model.encode() in body


@given(st.binary(max_size=200))
def test_no_body_breaks_the_reader(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        read(b"--abc" + body)
