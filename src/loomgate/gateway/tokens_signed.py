"""Signed tokens (JWT): reading one, and whether a public key signed it (RFC 7515, 7517, 7518, 7519).

What must live here: pure checks of a token against a key and a time. What must not: where tokens and keys come from.

Only signatures with a public key: under ``none`` and HS256 anybody who knows the public keys could sign.
"""

import base64
import re
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # RFC 7518 section 3.1, RFC 8037

ALGORITHMS: frozenset[Algorithm] = frozenset(get_args(Algorithm))

_LONGEST = 16 * 1024  # characters of a token
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Token(msgspec.Struct, frozen=True):
    """A token that was read and not yet verified. ``signed`` are the bytes under the signature."""

    algorithm: Algorithm
    key_id: str
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


def seconds(age: int | str) -> int:
    """``1d``, ``12h``, ``30m``, ``45s``, ``2w`` or a number, in seconds. Raises `ValueError` for anything else."""
    if isinstance(age, int):
        return age
    found = re.fullmatch(r"([1-9][0-9]{0,8}) ?([smhdw]?)", age.strip())
    if not found:
        raise ValueError("expected a time such as '1d', '12h' or '30m'")
    return int(found[1]) * _UNITS.get(found[2], 1)


def read(text: str, allowed: frozenset[Algorithm]) -> Token:
    """The token in ``text``. Raises `ValueError` when it is none, or not signed with one of ``allowed``."""
    pieces = text.split(".")
    if len(pieces) != 3 or len(text) > _LONGEST:
        raise ValueError("not a signed token")
    try:
        head = msgspec.json.decode(_bytes(pieces[0]), type=dict[str, Any])
        claims = msgspec.json.decode(_bytes(pieces[1]), type=dict[str, Any])
        signature = _bytes(pieces[2])
    except (ValueError, UnicodeError):
        raise ValueError("not a signed token") from None
    algorithm = head.get("alg")
    if algorithm not in allowed:
        raise ValueError(f"the algorithm {str(algorithm)[:20]!r} is not allowed")
    if "crit" in head:
        raise ValueError("it has extensions that have to be understood")
    key_id = head.get("kid")
    if not isinstance(key_id, str):
        raise ValueError("it does not say which key signed it")
    signed = f"{pieces[0]}.{pieces[1]}".encode()
    return Token(algorithm, key_id, claims, signed, signature)


def verify(token: Token, key: dict[str, Any], *, now: float, tolerance: float, longest: float) -> None:
    """Raises `ValueError` unless the JWK ``key`` signed ``token`` and ``now`` is within its times.

    ``tolerance`` and ``longest``, the greatest age, in seconds.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        _verify_signature(token, key)
    except InvalidSignature:
        raise ValueError("signature verification failed") from None
    except (KeyError, TypeError, AttributeError, UnicodeError, UnsupportedAlgorithm):
        raise ValueError("the key is not usable") from None
    times: dict[str, float] = {}
    for name in ("exp", "nbf", "iat"):
        value = token.claims.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} is not a number")
            times[name] = value
    if "exp" in times and times["exp"] + tolerance <= now:
        raise ValueError("it has expired")
    if "nbf" in times and times["nbf"] - tolerance > now:
        raise ValueError("it is not valid yet")
    if "iat" not in times:
        raise ValueError("it does not say when it was issued")
    if times["iat"] - tolerance > now:
        raise ValueError("it was issued in the future")
    if now - times["iat"] > longest + tolerance:
        raise ValueError("it is too old")


def _bytes(text: str) -> bytes:
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        raise ValueError("not base64url")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _number(key: dict[str, Any], name: str) -> int:
    return int.from_bytes(_bytes(key[name]), "big")


def _verify_signature(token: Token, key: dict[str, Any]) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    name = token.algorithm
    if key.get("alg", name) != name or key.get("use", "sig") != "sig":
        raise ValueError("the key is for something else")
    public = _public(key)
    if name == "EdDSA":
        if not isinstance(public, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            raise ValueError("the key is of another kind")
        public.verify(token.signature, token.signed)
        return
    hashed = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}[name[2:]]()
    if name[0] == "E":
        if not isinstance(public, ec.EllipticCurvePublicKey) or key.get("crv") != _CURVES[name]:
            raise ValueError("the key is of another kind")
        size = (public.curve.key_size + 7) // 8
        if len(token.signature) != 2 * size:
            raise InvalidSignature
        pair = (int.from_bytes(token.signature[:size], "big"), int.from_bytes(token.signature[size:], "big"))
        public.verify(encode_dss_signature(*pair), token.signed, ec.ECDSA(hashed))
        return
    if not isinstance(public, rsa.RSAPublicKey):
        raise ValueError("the key is of another kind")
    if public.key_size < 2048:
        raise ValueError("the key is too short")  # RFC 7518 section 3.3
    padded = padding.PSS(padding.MGF1(hashed), hashed.digest_size) if name[0] == "P" else padding.PKCS1v15()
    public.verify(token.signature, token.signed, padded, hashed)


def _public(key: dict[str, Any]) -> "PublicKeyTypes":
    """The public key of a JWK (RFC 7518 section 6, RFC 8037 section 2)."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

    kind, curve = key.get("kty"), key.get("crv")
    if kind == "RSA":
        return rsa.RSAPublicNumbers(_number(key, "e"), _number(key, "n")).public_key()
    if kind == "EC":
        on = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}[str(curve)]()
        return ec.EllipticCurvePublicNumbers(_number(key, "x"), _number(key, "y"), on).public_key()
    if kind == "OKP" and curve == "Ed25519":
        return ed25519.Ed25519PublicKey.from_public_bytes(_bytes(key["x"]))
    if kind == "OKP" and curve == "Ed448":
        return ed448.Ed448PublicKey.from_public_bytes(_bytes(key["x"]))
    raise ValueError(f"the key is of another kind: {str(kind)[:20]}")
