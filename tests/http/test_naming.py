"""What headers say about the way of a request, and which of them are refused: nothing is accepted and ignored."""

import pytest

from loomgate.errors import ApiError
from loomgate.http.naming import NOTHING, naming_of
from loomgate.wire.provider_data import OPTION_HEADERS, OPTIONS


def named(**headers: str) -> ApiError | object:
    given = {f"x-portkey-{name.replace('_', '-')}".encode(): value.encode() for name, value in headers.items()}
    try:
        return naming_of(given, None)
    except ApiError as error:
        return error


def refusal(**headers: str) -> ApiError:
    found = named(**headers)
    assert isinstance(found, ApiError), found
    assert (found.status, found.code) == (400, "unsupported_header")
    return found


@pytest.mark.behaviour("RH-30", "RH-31", "RH-32", "RH-33", "RH-34", "RH-40")
def test_every_header_with_provider_data_is_read() -> None:
    for header, option in OPTION_HEADERS.items():
        found = naming_of({f"x-portkey-{header}".encode(): b"value"}, None)
        known = header in ("openai-beta", "anthropic-beta", "anthropic-version")  # sent on as they are (RH-19, RH-21)
        assert found.options == ({} if known else {option: "value"})
    assert set(OPTION_HEADERS.values()) == set(OPTIONS) - {"deployments", "azure_api_version"}  # in a config only


@pytest.mark.behaviour("RH-23")
@pytest.mark.parametrize(
    "name", ["file_purpose", "file_upload_size", "provider_file_name", "provider_model", "provider_batch_endpoint"]
)
def test_headers_of_uploads_are_read_where_files_are(name: str) -> None:
    assert named(**{name: "x"}) == NOTHING


@pytest.mark.behaviour("RH-23")
def test_a_header_of_uploads_that_means_nothing_here_is_refused_by_name() -> None:
    assert "'x-portkey-model-type'" in refusal(model_type="x").message


@pytest.mark.behaviour("RH-24")
@pytest.mark.parametrize("name", ["nitro_mode", "beta", "gateway_transport", "provider_responses_proxy", "aws_regoin"])
def test_headers_that_nobody_knows_are_refused_by_name(name: str) -> None:
    assert f"'x-portkey-{name.replace('_', '-')}'" in refusal(**{name: "x"}).message


@pytest.mark.behaviour("RH-22")
def test_headers_without_effect_say_nothing() -> None:
    assert named(mode="single", retry_count="5", cache="semantic") == NOTHING
