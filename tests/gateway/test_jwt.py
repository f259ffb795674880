"""The check for signed tokens, and the keys that it fetches."""

import asyncio
import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from loomgate import clock
from loomgate.gateway.subject import Subject
from loomgate.gateway.verdicts import Door
from tests.gateway.checking import asked, find, nobody
from tests.support.site import Site

pytestmark = pytest.mark.anyio


RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEY = rsa.generate_private_key(65537, 2048)
EC_KEYS = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
EC_PRIVATE = {name: ec.generate_private_key(curve) for name, curve in EC_KEYS.items()}
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def b64n(number: int) -> str:
    return b64(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def rsa_jwk(key: rsa.RSAPrivateKey = RSA_KEY, **more: str) -> dict[str, str]:
    numbers = key.public_key().public_numbers()
    return {"kty": "RSA", "kid": "rsa", "n": b64n(numbers.n), "e": b64n(numbers.e), **more}


def jwks() -> dict[str, Any]:
    keys = [rsa_jwk(), {"kty": "oct", "kid": "oct", "k": b64(b"secret")}, {"kid": "odd"}, {"kty": "RSA"}]
    for name, key in EC_PRIVATE.items():
        numbers = key.public_key().public_numbers()
        curve = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[name]
        keys.append({"kty": "EC", "kid": name, "crv": curve, "x": b64n(numbers.x), "y": b64n(numbers.y), "alg": name})
    keys.append({"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": b64(ED_KEY.public_key().public_bytes_raw())})
    return {"keys": keys}


def signature(algorithm: str, signed: bytes, key: rsa.RSAPrivateKey = RSA_KEY) -> bytes:
    hashed = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}.get(
        algorithm[2:], hashes.SHA256()
    )
    if algorithm.startswith("RS"):
        return key.sign(signed, padding.PKCS1v15(), hashed)
    if algorithm.startswith("PS"):
        return key.sign(signed, padding.PSS(padding.MGF1(hashed), hashed.digest_size), hashed)
    if algorithm == "EdDSA":
        return ED_KEY.sign(signed)
    if algorithm.startswith("ES"):
        private = EC_PRIVATE[algorithm]
        size = (private.curve.key_size + 7) // 8
        return b"".join(n.to_bytes(size, "big") for n in decode_dss_signature(private.sign(signed, ec.ECDSA(hashed))))
    return b""


def token(
    algorithm: str = "RS256", kid: str | None = "rsa", key: rsa.RSAPrivateKey = RSA_KEY, head: Any = None, **claims: Any
) -> str:
    now = clock.timestamp()
    said = {k: v for k, v in {"iat": now, "exp": now + 600, **claims}.items() if v is not None}
    header = {"alg": algorithm, "typ": "JWT", **({} if kid is None else {"kid": kid}), **(head or {})}
    signed = ".".join(b64(json.dumps(part).encode()) for part in (header, said))
    return f"{signed}.{b64(signature(algorithm, signed.encode(), key))}"


def bearing(value: str, name: str = "authorization") -> Subject:
    return asked(headers={name: value})


@pytest.mark.behaviour("GR-22")
async def test_tokens_of_every_algorithm(door: Door) -> None:
    async with Site({"/jwks": (200, jwks())}) as site:
        parameters = {"jwksUri": f"{site.url}/jwks"}
        for algorithm in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"):
            kid = {"R": "rsa", "P": "rsa"}.get(algorithm[0], "ed" if algorithm == "EdDSA" else algorithm)
            good = token(algorithm, kid)
            assert (await find("jwt", parameters, bearing(f"Bearer {good}"), door)).verdict, algorithm
            head, claims, sig = good.split(".")
            first = "A" if sig[0] != "A" else "B"
            found = await find("jwt", parameters, bearing(f"{head}.{claims}.{first}{sig[1:]}"), door)
            assert not found.verdict, algorithm
            assert found.error is None
        assert [seen.method for seen in site.seen] == ["GET"]  # kept


@pytest.mark.behaviour("GR-22")
async def test_tokens_that_are_refused(door: Door) -> None:
    async with Site({"/jwks": (200, jwks())}) as site:
        now = clock.timestamp()
        secret = token("HS256", "oct")
        cases = {
            "The request has no such header": "",
            "not a signed token": "Bearer abc",
            "the algorithm 'none'": token("none"),
            "the algorithm 'HS256'": secret,
            "which key signed it": token(kid=None),
            "does not have the key": token(kid="unknown"),
            "signature verification failed": token(key=OTHER_KEY),
            "expired": token(exp=now - 6),
            "not valid yet": token(nbf=now + 60),
            "in the future": token(iat=now + 60),
            "too old": token(iat=now - 86_500, exp=now + 10_000),
            "when it was issued": token(iat=None),
            "exp is not a number": token(exp="soon"),
            "have to be understood": token(head={"crit": ["b64"], "b64": False}),
            "for something else": token("ES256", "ES384"),
            "another kind": token("RS256", "ed"),
            "the key is of another kind": token("RS256", "odd"),
        }
        for said, text in cases.items():
            found = await find("jwt", {"jwksUri": f"{site.url}/jwks"}, bearing(text), door)
            assert not found.verdict, said
            assert found.error is None, said
            assert said in found.data["explanation"], (said, found.data)


async def test_tokens_elsewhere_older_and_of_chosen_algorithms(door: Door) -> None:
    async with Site({"/jwks": (200, jwks())}) as site:
        where = {"jwksUri": f"{site.url}/jwks"}
        assert (await find("jwt", {**where, "headerKey": "X-Token"}, bearing(token(), "x-token"), door)).verdict
        old = token(iat=clock.timestamp() - 100, exp=clock.timestamp() - 50)
        assert not (await find("jwt", where, bearing(old), door)).verdict
        assert (await find("jwt", {**where, "clockTolerance": 60}, bearing(old), door)).verdict
        aged = token(iat=clock.timestamp() - 100)
        for age, fine in (("2m", True), (120, True), ("1m", False), ("90s", False), ("1h", True)):
            assert (await find("jwt", {**where, "maxTokenAge": age}, bearing(aged), door)).verdict is fine, age
        only = {**where, "algorithms": ["ES256"]}
        assert not (await find("jwt", only, bearing(token()), door)).verdict
        assert (await find("jwt", only, bearing(token("ES256", "ES256")), door)).verdict


async def test_keys_are_fetched_again_when_old_or_for_a_new_key_but_not_all_the_time(door: Door) -> None:
    async with Site({"/jwks": (200, {"keys": []})}) as site:
        parameters = {"jwksUri": f"{site.url}/jwks", "cacheMaxAge": 100}
        for _ in range(5):
            assert not (await find("jwt", parameters, bearing(token()), door)).verdict
        assert len(site.seen) == 1  # whoever sends unknown ids does not make us ask each time
        site.answers["/jwks"] = (200, jwks())
        clock.advance(31)
        assert (await find("jwt", parameters, bearing(token()), door)).verdict
        assert len(site.seen) == 2
        clock.advance(60)
        assert (await find("jwt", parameters, bearing(token()), door)).verdict
        assert len(site.seen) == 2
        clock.advance(41)
        assert (await find("jwt", parameters, bearing(token()), door)).verdict
        assert len(site.seen) == 3


@pytest.mark.parametrize("answer", [(500, b""), (200, b"<html>"), (200, {"keys": "none"})])
async def test_without_keys_there_is_no_verdict(door: Door, answer: Any) -> None:
    async with Site({"/jwks": answer}) as site:
        found = await find("jwt", {"jwksUri": f"{site.url}/jwks"}, bearing(token()), door)
        assert found.error is not None
        assert "could not be fetched" in found.error[1]


async def test_keys_that_cannot_be_fetched_are_left_alone_for_a_while(door: Door) -> None:
    async with Site({"/jwks": (500, b"")}) as site:
        parameters = {"jwksUri": f"{site.url}/jwks", "cacheMaxAge": 60}
        several = await asyncio.gather(*(find("jwt", parameters, bearing(token()), door) for _ in range(10)))
        assert all(found.error == several[0].error for found in several)
        assert len(site.seen) == 1
        site.answers["/jwks"] = (200, jwks())
        clock.advance(6)
        assert (await find("jwt", parameters, bearing(token()), door)).verdict
        site.answers["/jwks"] = (500, b"")
        clock.advance(61)
        assert (await find("jwt", parameters, bearing(token()), door)).error is not None  # old keys are no keys


@given(
    st.text(max_size=80)
    | st.lists(st.text(alphabet="eyJhbGciOiJ9._-A", max_size=20), min_size=3, max_size=3).map(".".join)
)
@settings(deadline=None)
async def test_any_header_is_refused_without_an_exception(text: str) -> None:
    found = await find("jwt", {"jwksUri": "http://a.example/"}, bearing(text or "x"), Door(nobody, lambda url: False))
    assert not found.verdict
