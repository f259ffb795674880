"""What is fetched to prove who calls: each exchange over real HTTP as its vendor documents it, kept, and made anew."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

from loomgate import clock
from loomgate.errors import ProviderError
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.credentials import Credentials
from loomgate.providers.dialect import HttpCall, Target
from loomgate.providers.sigv4 import AwsKeys, SigV4
from loomgate.providers.transport import Timeouts, Transport
from tests.providers.conformance.replay import Canned, Replay

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
ENTRA = {
    "azure_auth_mode": "entra",
    "azure_entra_tenant_id": "11111111-2222-3333-4444-555555555555",
    "azure_entra_client_id": "the-client",
    "azure_entra_client_secret": "hush~hush",
}


def granted(token: str, expires_in: Any = 3599) -> Canned:
    body = {"token_type": "Bearer", "expires_in": expires_in, "access_token": token}
    return Canned(headers=JSON, body=json.dumps(body).encode())


@asynccontextmanager
async def credentials(**environment: str) -> AsyncIterator[Credentials]:
    transport = Transport()
    try:
        yield Credentials(transport, environment)
    finally:
        await transport.close()


def azure(vendor: str = "azure-openai", **options: str) -> Target:
    return Target(vendor=CATALOGUE[vendor], base_url="https://r.openai.azure.com/openai", options=options)


async def proven(made: Credentials, target: Target, *, trusted: bool = True) -> dict[str, str]:
    """The headers that an opened target sends."""
    assert made.needed(target)
    opened = await made.opened(target, Timeouts(), trusted=trusted)
    call = HttpCall("https://r.openai.azure.com/openai/files", opened.own_headers(), b"{}")
    return (opened.auth(call) if opened.auth else call).headers


@pytest.mark.behaviour("RH-30", "PV-02")
async def test_client_credentials_of_entra() -> None:
    async with Replay(granted("first")) as login, credentials(AZURE_AUTHORITY_HOST=login.base_url) as made:
        assert await proven(made, azure(**ENTRA), trusted=False) == {"Authorization": "Bearer first"}
        assert await proven(made, azure(**ENTRA)) == {"Authorization": "Bearer first"}  # kept
        assert (await proven(made, azure("azure-ai", **ENTRA)))["Authorization"] == "Bearer first"
        assert len(login.asked) == 1
        asked = login.asked[0]
        assert asked.target == f"/{ENTRA['azure_entra_tenant_id']}/oauth2/v2.0/token"
        assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
        assert parse_qs(asked.body.decode()) == {
            "client_id": ["the-client"],
            "client_secret": ["hush~hush"],
            "scope": ["https://cognitiveservices.azure.com/.default"],
            "grant_type": ["client_credentials"],
        }
        await proven(made, azure("azure-ai", azure_entra_scope="https://ai.azure.com/.default", **ENTRA))
        assert parse_qs(login.asked[1].body.decode())["scope"] == ["https://ai.azure.com/.default"]


async def test_a_token_is_fetched_once_for_many_and_again_before_it_ends() -> None:
    login = Replay(granted("first"), granted("second"))
    async with login, credentials(AZURE_AUTHORITY_HOST=login.base_url) as made:
        many = await asyncio.gather(*(proven(made, azure(**ENTRA)) for _ in range(10)))
        assert [each["Authorization"] for each in many] == ["Bearer first"] * 10
        assert len(login.asked) == 1
        made.forget("another")
        assert (await proven(made, azure(**ENTRA)))["Authorization"] == "Bearer first"
        made.forget("first")
        assert (await proven(made, azure(**ENTRA)))["Authorization"] == "Bearer second"


async def test_a_token_that_ends_soon_is_replaced() -> None:
    login = Replay(granted("first", 300), granted("second"))
    async with login, credentials(AZURE_AUTHORITY_HOST=login.base_url) as made:
        assert (await proven(made, azure(**ENTRA)))["Authorization"] == "Bearer first"
        assert (await proven(made, azure(**ENTRA)))["Authorization"] == "Bearer second"


@pytest.mark.behaviour("RH-30", "RH-31")
async def test_a_token_of_the_callers_own_goes_as_it_is() -> None:
    async with credentials() as made:
        given = azure(azure_ad_token="Bearer abc")
        assert await proven(made, given, trusted=False) == {"Authorization": "Bearer abc"}
        key = Target(vendor=CATALOGUE["azure-openai"], base_url="https://r.openai.azure.com/openai", api_key="k")
        assert await proven(made, key) == {"api-key": "k"}
        with pytest.raises(ProviderError) as caught:
            await proven(made, azure())
        assert caught.value.kind == "auth"


@pytest.mark.behaviour("RH-30")
@pytest.mark.parametrize("of_app_service", [False, True])
async def test_managed_identity(of_app_service: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"azure_auth_mode": "managed", "azure_managed_client_id": "mine"}
    async with Replay(granted("theirs", "86399")) as service:
        environment = {"IDENTITY_ENDPOINT": service.base_url + "/msi/token", "IDENTITY_HEADER": "853b"}
        if not of_app_service:
            environment = {}
            monkeypatch.setattr("loomgate.providers.credentials._METADATA", service.base_url + "/metadata")
        async with credentials(**environment) as made:
            assert (await proven(made, azure(**options)))["Authorization"] == "Bearer theirs"
            with pytest.raises(ProviderError) as caught:  # a client may not act as this machine
                await proven(made, azure(**options), trusted=False)
            assert caught.value.kind == "auth"
        asked = service.asked[0]
    query = parse_qs(urlsplit(asked.target).query)
    assert (query["resource"], query["client_id"]) == (["https://cognitiveservices.azure.com/"], ["mine"])
    assert asked.body == b""
    if of_app_service:
        assert (query["api-version"], asked.headers["x-identity-header"]) == (["2019-08-01"], "853b")
    else:
        assert (query["api-version"], asked.headers["metadata"]) == (["2018-02-01"], "true")


@pytest.mark.behaviour("RH-30")
async def test_workload_identity(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("eyJ.pods.own\n")
    async with Replay(granted("works")) as login:
        environment = {
            "AZURE_AUTHORITY_HOST": login.base_url + "/",
            "AZURE_TENANT_ID": "contoso.example",
            "AZURE_CLIENT_ID": "from-the-pod",
            "AZURE_FEDERATED_TOKEN_FILE": str(file),
        }
        async with credentials(**environment) as made:
            given = azure(azure_auth_mode="workload", azure_workload_client_id="named")
            assert (await proven(made, given))["Authorization"] == "Bearer works"
            file.write_text("eyJ.the.next")  # the pod's token changes; the one it was exchanged for is still good
            assert (await proven(made, given))["Authorization"] == "Bearer works"
            assert len(login.asked) == 1
            with pytest.raises(ProviderError):
                await proven(made, given, trusted=False)
        form = parse_qs(login.asked[0].body.decode())
    assert login.asked[0].target == "/contoso.example/oauth2/v2.0/token"
    assert form["client_id"] == ["named"]
    assert form["client_assertion"] == ["eyJ.pods.own"]
    assert form["client_assertion_type"] == ["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"azure_auth_mode": "entra"}, "azure_entra_tenant_id"),
        ({"azure_auth_mode": "magic"}, "azure_auth_mode"),
        ({**ENTRA, "azure_entra_tenant_id": "a/../b"}, "azure_entra_tenant_id"),
        ({"azure_auth_mode": "workload"}, "AZURE_FEDERATED_TOKEN_FILE"),
    ],
)
async def test_what_is_missing_is_named(options: dict[str, str], said: str) -> None:
    async with credentials() as made:
        with pytest.raises(ProviderError) as caught:
            await proven(made, azure(**options))
    assert said in caught.value.message
    assert caught.value.kind in ("auth", "invalid")


async def test_a_refusal_is_told_in_their_words() -> None:
    denied = {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."}
    answer = Canned(status=401, headers=JSON, body=json.dumps(denied).encode())
    for answers, kind in ((answer, "auth"), (Canned(status=503), "overloaded"), (Canned(body=b"<html>"), "malformed")):
        async with Replay(answers) as login, credentials(AZURE_AUTHORITY_HOST=login.base_url) as made:
            with pytest.raises(ProviderError) as caught:
                await proven(made, azure(**ENTRA))
            assert caught.value.kind == kind
            if kind == "auth":
                assert "AADSTS7000215" in caught.value.message


# --- AWS ---

KEYS = AwsKeys(access_key_id="AKIDEXAMPLE0000000", secret_access_key="hush/secret+key")
ROLE = "arn:aws:iam::123456789012:role/demo"
ASSUMED = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/demo/loomgate</Arn></AssumedRoleUser>
<Credentials><AccessKeyId>ASIAIOSFODNN7EXAMPLE</AccessKeyId>
<SecretAccessKey>wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEKEY</SecretAccessKey>
<SessionToken>AQoDYXdzEPT//////////wEXAMPLEtc764</SessionToken>
<Expiration>{}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""


def assumed(seconds: float) -> Canned:
    end = datetime.fromtimestamp(clock.now() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Canned(headers={"Content-Type": "text/xml"}, body=ASSUMED.format(end).encode())


def amazon(**options: str) -> Target:
    auth = SigV4(keys=KEYS, region="eu-west-1", service="bedrock")
    return Target(vendor=CATALOGUE["bedrock"], base_url="https://b", auth=auth, region="eu-west-1", options=options)


@pytest.mark.behaviour("RH-32", "PV-08")
async def test_a_role_is_assumed() -> None:
    options = {"aws_auth_type": "assumedRole", "aws_role_arn": ROLE, "aws_external_id": "42"}
    async with Replay(assumed(3600)) as sts, credentials(AWS_ENDPOINT_URL_STS=sts.base_url) as made:
        assert not made.needed(amazon())
        for _ in range(2):
            opened = await made.opened(amazon(**options), Timeouts(), trusted=False)
            assert isinstance(opened.auth, SigV4)
            assert opened.auth.keys == AwsKeys(
                access_key_id="ASIAIOSFODNN7EXAMPLE",
                secret_access_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEKEY",
                session_token="AQoDYXdzEPT//////////wEXAMPLEtc764",
            )
            assert (opened.auth.region, opened.auth.service) == ("eu-west-1", "bedrock")
        (asked,) = sts.asked
    assert parse_qs(asked.body.decode()) == {
        "Action": ["AssumeRole"],
        "Version": ["2011-06-15"],
        "RoleArn": [ROLE],
        "RoleSessionName": ["loomgate"],
        "ExternalId": ["42"],
    }
    # The signature fits what came over the wire.
    at = datetime.strptime(asked.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    signer = SigV4(keys=KEYS, region="eu-west-1", service="sts")
    headers = {"content-type": asked.headers["content-type"]}
    again = signer.signature("POST", f"http://{asked.headers['host']}/", headers, asked.body, at)
    assert again["Authorization"] == asked.headers["authorization"]


async def test_roles_that_are_not_given() -> None:
    denied = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>User is not authorized.</Message></Error>"
    async with Replay(Canned(status=403, body=denied)) as sts, credentials(AWS_ENDPOINT_URL_STS=sts.base_url) as made:
        with pytest.raises(ProviderError) as caught:
            await made.opened(amazon(aws_role_arn=ROLE), Timeouts(), trusted=True)
        assert caught.value.kind == "auth"
        assert "User is not authorized." in caught.value.message
        sts.play(Canned(body=b"<Nothing/>"))
        with pytest.raises(ProviderError) as caught:
            await made.opened(amazon(aws_role_arn=ROLE), Timeouts(), trusted=True)
        assert caught.value.kind == "malformed"
        bare = Target(vendor=CATALOGUE["bedrock"], base_url="https://b", options={"aws_role_arn": ROLE})
        with pytest.raises(ProviderError) as caught:
            await made.opened(bare, Timeouts(), trusted=True)
        assert caught.value.kind == "auth"


# --- Google, Oracle ---


@pytest.mark.behaviour("RH-34")
async def test_a_key_file_may_come_as_provider_data() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    async with Replay(granted("ya29.token")) as google, credentials() as made:
        file = {"type": "service_account", "client_email": "a@b", "private_key": pem, "project_id": "p"}
        file["token_uri"] = google.base_url
        for given in (json.dumps(file), file):
            target = Target(
                vendor=CATALOGUE["vertex-ai"], base_url="https://v", options={"vertex_service_account_json": given}
            )
            opened = await made.opened(target, Timeouts(), trusted=True)
            assert (opened.api_key, opened.project) == ("ya29.token", "p")
        assert len(google.asked) == 1
        with pytest.raises(ProviderError):  # a client's own may not choose where the exchange goes
            await made.opened(target, Timeouts(), trusted=False)


ORACLE = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.mark.behaviour("RH-40", "PV-69")
@pytest.mark.parametrize("phrase", [None, "open sesame"])
async def test_the_signature_of_oracle(phrase: str | None) -> None:
    lock = serialization.BestAvailableEncryption(phrase.encode()) if phrase else serialization.NoEncryption()
    pem = ORACLE.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock).decode()
    options = {
        "oracle_tenancy": "ocid1.tenancy.oc1..t",
        "oracle_user": "ocid1.user.oc1..u",
        "oracle_fingerprint": "20:3b:97",
        "oracle_private_key": pem.replace("\n", "\\n"),  # as a header has it
        **({"oracle_key_passphrase": phrase} if phrase else {}),
    }
    async with credentials() as made:
        target = Target(vendor=CATALOGUE["oracle"], base_url="https://b", api_key="unused", options=options)
        assert made.needed(target)
        opened = await made.opened(target, Timeouts(), trusted=False)
    assert opened.auth is not None
    assert "PRIVATE" not in repr(opened.auth)
    body = b'{"compartmentId":"c"}'
    url = "https://inference.generativeai.eu-frankfurt-1.oci.oraclecloud.com/20231130/actions/chat"
    async with Replay(Canned(body=b"{}")) as server:
        transport = Transport()
        plain = HttpCall(server.base_url + "/20231130/actions/chat?a=b", {"Content-Type": "application/json"}, body)
        async with await transport.send(opened.auth(plain), Timeouts()) as reply:
            await reply.read(100)
        await transport.close()
        (asked,) = server.asked
    sent = asked.headers
    assert sent["x-content-sha256"] == base64.b64encode(hashlib.sha256(body).digest()).decode()
    told = dict(part.split("=", 1) for part in sent["authorization"].removeprefix("Signature ").split(","))
    assert told["version"] == '"1"'
    assert told["algorithm"] == '"rsa-sha256"'
    assert told["keyId"] == '"ocid1.tenancy.oc1..t/ocid1.user.oc1..u/20:3b:97"'
    names = told["headers"].strip('"').split(" ")
    assert set(names) == {"date", "(request-target)", "host", "content-length", "content-type", "x-content-sha256"}
    values = {**sent, "(request-target)": f"post {asked.target}"}
    text = "\n".join(f"{name}: {values[name]}" for name in names)  # from what came over the wire
    signature = base64.b64decode(told["signature"].strip('"'))
    ORACLE.public_key().verify(signature, text.encode(), PKCS1v15(), SHA256())
    got = opened.auth(HttpCall(url, {}, b"", "GET")).headers
    assert 'headers="date (request-target) host"' in got["Authorization"]


async def signed_by(made: Credentials, target: Target) -> HttpCall:
    opened = await made.opened(target, Timeouts(), trusted=False)
    assert opened.auth is not None
    return opened.auth(HttpCall("https://b/x", {}, b""))


@pytest.mark.parametrize("change", [{"oracle_user": ""}, {"oracle_private_key": "nonsense"}])
async def test_a_key_of_oracles_that_is_none(change: dict[str, str]) -> None:
    options = {f"oracle_{name}": "x" for name in ("tenancy", "user", "fingerprint", "private_key")} | change
    async with credentials() as made:
        target = Target(vendor=CATALOGUE["oracle"], base_url="https://b", options=options)
        with pytest.raises(ProviderError) as caught:
            await signed_by(made, target)
    assert caught.value.kind == "auth"
