"""AWS signatures, against AWS's published test suite and AWS's own SDK."""

import hashlib

import pytest

from loomgate import clock
from loomgate.providers.bedrock import Bedrock
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import HttpCall, Target
from loomgate.providers.sigv4 import AwsKeys, SigV4, region_of
from loomgate.wire.chat import Chat, ChatMessage

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
TOKEN = (
    "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwt"
    "hAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVX"
    "AkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
)
AT = 1440938160.0  # 2015-08-30T12:36:00Z
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
TRIM = {"My-Header1": " value1", "My-Header2": ' "a   b   c"'}

# Name in the suite, method, path, headers, body, session token, signed headers, signature.
SUITE = [
    ("get-vanilla", "GET", "/", {}, b"", None, "host;x-amz-date",
     "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    ("get-vanilla-query-order-key-case", "GET", "/?Param2=value2&Param1=value1", {}, b"", None, "host;x-amz-date",
     "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"),
    ("get-utf8", "GET", "/ሴ", {}, b"", None, "host;x-amz-date",
     "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"),
    ("get-header-value-trim", "GET", "/", TRIM, b"", None, "host;my-header1;my-header2;x-amz-date",
     "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"),
    ("post-vanilla", "POST", "/", {}, b"", None, "host;x-amz-date",
     "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
    ("post-header-value-case", "POST", "/", {"My-Header1": "VALUE1"}, b"", None, "host;my-header1;x-amz-date",
     "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d"),
    ("post-sts-header-before", "POST", "/", {}, b"", TOKEN, "host;x-amz-date;x-amz-security-token",
     "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"),
    ("post-x-www-form-urlencoded", "POST", "/", FORM, b"Param1=value1", None, "content-type;host;x-amz-date",
     "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"),
]  # fmt: skip


def signer(region: str = "us-east-1", service: str = "service", token: str | None = None) -> SigV4:
    keys = AwsKeys(access_key_id="AKIDEXAMPLE", secret_access_key=SECRET, session_token=token)
    return SigV4(keys=keys, region=region, service=service)


@pytest.mark.parametrize(("method", "path", "headers", "body", "token", "signed", "signature"),
                         [row[1:] for row in SUITE], ids=[row[0] for row in SUITE])  # fmt: skip
def test_the_published_suite(
    method: str, path: str, headers: dict[str, str], body: bytes, token: str | None, signed: str, signature: str
) -> None:
    url = "https://example.amazonaws.com" + path
    made = signer(token=token).signature(method, url, headers, body, AT)
    assert made["X-Amz-Date"] == "20150830T123600Z"
    assert made.get("X-Amz-Security-Token") == token
    assert made["Authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        f"SignedHeaders={signed}, Signature={signature}"
    )


# What botocore 1.44.5 makes of the same requests at the same time. Model names hold ":" and "/", whose encoding is
# easily got wrong; a port belongs to the signed host.
@pytest.mark.parametrize(
    ("base", "model", "token", "signature"),
    [
        ("https://bedrock-runtime.eu-central-1.amazonaws.com", "eu.anthropic.claude-sonnet-4-5-20250929-v1:0", None,
         "d235296146272fa8d06665742c2719e8b11be7683a89676b2caf1f63b0ba068a"),
        ("https://bedrock-runtime.eu-central-1.amazonaws.com:443", "eu.anthropic.claude-sonnet-4-5-20250929-v1:0",
         "AQoDYXdzEPT=token/+", "8a1d41465121e50961b9c6ebaeb1d3d21019a7f8fa05f357f93078821c1ccdcb"),
        ("https://bedrock-runtime.eu-central-1.amazonaws.com/",
         "arn:aws:bedrock:eu-central-1:123456789012:inference-profile/eu.amazon.nova-pro-v1:0", None,
         "c0ddb286799efbd80e2bdcffe78163b70d6245fab3e6cc8b77f281636eb54ae5"),
        ("http://127.0.0.1:8123/prefix", "m", "AQoDYXdzEPT=token/+",
         "edb88d350209242d7a3a9dde2718513336d49b7a2a004cb4c151f09c5edec7e5"),
    ],
)  # fmt: skip
def test_a_request_to_bedrock_as_the_sdk_signs_it(base: str, model: str, token: str | None, signature: str) -> None:
    target = Target(vendor=CATALOGUE["bedrock"], base_url=base)
    call = Bedrock().request(Chat(model=model, messages=[ChatMessage(role="user", content="x")]), target)
    made = signer("eu-central-1", "bedrock", token).signature(
        "POST", call.url, call.headers, b'{"messages":[]}', 1763625600.0
    )
    assert made["Authorization"].endswith("Signature=" + signature)


def test_a_call_is_signed_as_of_now() -> None:
    call = HttpCall("https://example.amazonaws.com/", {"Content-Type": "application/json"}, b"{}")
    first = signer()(call)
    assert first.headers["Content-Type"] == "application/json"
    assert (first.url, first.body) == (call.url, call.body)
    clock.advance(3600)
    assert signer()(call).headers["X-Amz-Date"] > first.headers["X-Amz-Date"]


def test_keys_do_not_show() -> None:
    made = signer(token=TOKEN)
    assert set(made.secrets) == {SECRET, TOKEN, "AKIDEXAMPLE"}
    for shown in (repr(made), repr(made.keys), str(Target(vendor=CATALOGUE["bedrock"], base_url="x", auth=made))):
        assert not any(secret in shown for secret in made.secrets)


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://bedrock-runtime.eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://bedrock-runtime-fips.us-gov-west-1.amazonaws.com/x", "us-gov-west-1"),
        ("https://vpce-1-a.bedrock-runtime.ap-southeast-2.vpce.amazonaws.com", "ap-southeast-2"),
        ("https://bedrock-runtime.us-east-1.api.aws", "us-east-1"),
        ("http://127.0.0.1:8000", None),
        ("https://bedrock.example.com", None),
    ],
)
def test_the_region_of_an_address(url: str, region: str | None) -> None:
    assert region_of(url) == region


# "Authenticating Requests: Using the Authorization Header" of the S3 API reference has these four.
S3 = [
    (
        "GET",
        "test.txt",
        {"Range": "bytes=0-9"},
        b"",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    (
        "PUT",
        "test%24file.text",
        {"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
        b"Welcome to Amazon S3.",
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    ("GET", "?lifecycle", {}, b"", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
    ("GET", "?max-keys=2&prefix=J", {}, b"", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
]


@pytest.mark.behaviour("TR-25")
@pytest.mark.parametrize(("method", "path", "headers", "body", "signature"), S3)
def test_s3(method: str, path: str, headers: dict[str, str], body: bytes, signature: str) -> None:
    keys = AwsKeys(access_key_id="AKIAIOSFODNN7EXAMPLE", secret_access_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    signer = SigV4(keys=keys, region="us-east-1", service="s3")
    hashed = {"x-amz-content-sha256": hashlib.sha256(body).hexdigest()}
    url = f"https://examplebucket.s3.amazonaws.com/{path}"
    made = signer.signature(method, url, headers | hashed, body, 1369353600.0)
    assert made["Authorization"].endswith(f"Signature={signature}")
