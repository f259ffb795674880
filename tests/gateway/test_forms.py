"""The model of a multipart form: found, and changed, without a look at the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomgate.gateway.forms import model_in, with_model

TYPE = "multipart/form-data; boundary=XyZ"


def form(*parts: tuple[str, bytes]) -> bytes:
    made = b"".join(
        b"--XyZ\r\nContent-Disposition: form-data; " + h.encode() + b"\r\n\r\n" + v + b"\r\n" for h, v in parts
    )
    return made + b"--XyZ--\r\n"


FILE = ('name="file"; filename="a.wav"\r\nContent-Type: audio/wav', b'RIFF\r\n\r\nname="model"\r\n\r\nno\x00\xff')


@pytest.mark.behaviour("AUTH-02")
@pytest.mark.parametrize("header", ['name="model"', "name=model", 'name="model"\r\nContent-Type: text/plain'])
@pytest.mark.parametrize("first", [True, False])
def test_the_model_is_found_and_changed_alone(header: str, first: bool) -> None:
    parts = [(header, b"@openai/whisper-1"), FILE, ('name="models"', b"x"), ('name="response_format"', b"json")]
    body = form(*(parts if first else parts[::-1]))
    assert model_in(body, TYPE) == "@openai/whisper-1"
    assert model_in(body, 'multipart/form-data; charset=utf-8; BOUNDARY="XyZ"') == "@openai/whisper-1"
    assert with_model(body, TYPE, "whisper-1") == body.replace(b"@openai/whisper-1", b"whisper-1")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(FILE), TYPE),
        (form(('name="model"', b"m")), "multipart/form-data"),
        (form(('name="model"', b"m")), "multipart/form-data; boundary=other"),
        (form(('name="model"', b"m" * 2000)), TYPE),
        (b"", TYPE),
    ],
)
def test_a_form_without_a_model_stays_as_it_is(body: bytes, content_type: str) -> None:
    assert model_in(body, content_type) is None
    assert with_model(body, content_type, "other") == body


@given(st.binary(max_size=300))
def test_any_bytes_are_borne(body: bytes) -> None:
    model_in(body, TYPE)
    model_in(b"--XyZ\r\n" + body, TYPE)
