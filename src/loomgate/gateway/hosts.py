"""Which addresses a client may choose as the base of its calls (GATEWAY HOST-01 to HOST-05).

What must live here: what the text of an address says by itself. What must not: asking the DNS. A name that leads to a
private address is refused where the connection is made (``providers/transport``), since a name may change its mind.
"""

import ipaddress
import re
from urllib.parse import urlsplit

from loomgate.errors import ApiError, SettingError

_LONGEST = 2_048
_MOST_LABELS = 10

_NAME = re.compile(r"[a-z0-9.-]+")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# What a resolver may take for a number: decimal, octal, hexadecimal (and nothing else ends a public name).
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_QUAD = re.compile(r"(0|[1-9][0-9]{0,2})(\.(0|[1-9][0-9]{0,2})){3}")

_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.azure.com", "instance-data"})
_ENDINGS = tuple(".local .localdomain .internal .intranet .lan .home .corp .test .invalid .onion .localhost".split())
# Ranges that the registries give no public meaning to, beyond what `ipaddress` counts as not global.
_RESERVED = tuple(map(ipaddress.ip_network, ("192.88.99.0/24", "192.0.0.0/24", "::/96", "100::/64", "fec0::/10")))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def trusted_from_env(text: str) -> frozenset[str]:
    """The hosts in ``text`` (``TRUSTED_CUSTOM_HOSTS``): names, addresses and ``*.domain``, between commas.

    Raises `SettingError` for what can be none of these.
    """
    found: set[str] = set()
    for item in text.split(","):
        host = item.strip().lower().removeprefix("[").removesuffix("]")
        if not host:
            continue
        if _address(host) is None and not _well_formed(host.removeprefix("*.")):
            raise SettingError("TRUSTED_CUSTOM_HOSTS", "host names, addresses and *.domain between commas", repr(item))
        found.add(_plain(host))
    return frozenset(found)


def check(url: str, trusted: frozenset[str]) -> str:
    """``url`` as the base of an endpoint's address: lower-case host, no slash at the end (HOST-05).

    ``trusted``: hosts for which HOST-02 does not hold, see `trusted_from_env`. Raises a 400 `ApiError` (VAL-04) that
    says what is wrong.
    """
    scheme, host, port, path = _parts(url)
    if not _is_listed(host, trusted) and (why := _refusal(host)) is not None:
        raise _invalid(why)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}{'' if port is None else f':{port}'}{path.rstrip('/')}"


def is_trusted(url: str, trusted: frozenset[str]) -> bool:
    """Whether the operator trusts the host of ``url``, so that it may lead to a private address (HOST-03)."""
    try:
        return _is_listed(_parts(url)[1], trusted)
    except ApiError:
        return False


def _is_listed(host: str, trusted: frozenset[str]) -> bool:
    if not trusted:
        return False
    labels = host.split(".")
    return host in trusted or any("*." + ".".join(labels[i:]) in trusted for i in range(1, len(labels)))


def _invalid(why: str) -> ApiError:
    return ApiError(400, f"Invalid custom host: {why}.", code="invalid_custom_host")


def _parts(url: str) -> tuple[str, str, int | None, str]:
    """Scheme, host (an IPv6 address without brackets), port and path of ``url``, by HOST-01."""
    if len(url) > _LONGEST:
        raise _invalid(f"expected at most {_LONGEST} characters")
    # Before anything is parsed: `urlsplit` drops some of these silently.
    if any(char <= " " or char in "\x7f\\" for char in url) or not url.isascii():
        raise _invalid("expected no white space, control characters, backslashes or characters beyond ASCII")
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in {"http", "https"}:
        raise _invalid("expected an address that begins with http:// or https://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        raise _invalid("expected no user name or password")
    if "%" in authority:
        raise _invalid("expected no % in the host")
    try:
        split = urlsplit(f"{scheme}://{rest}")
        host, port = split.hostname or "", split.port
    except ValueError:
        raise _invalid("expected a host, and a port from 1 to 65535 if there is one") from None
    if "?" in rest or "#" in rest:
        raise _invalid("expected no query and no fragment: the endpoint's path is appended")
    if port == 0 or authority.endswith(":"):
        raise _invalid("expected a port from 1 to 65535")
    host = host.lower()
    if authority.startswith("["):
        if _address(host) is None:
            raise _invalid("expected an IPv6 address between the brackets")
        host = _plain(host)
    elif not _well_formed(host):
        raise _invalid(
            f"expected a host of at most {_MOST_LABELS} names between dots, made of letters, digits and hyphens"
        )
    return scheme, host, port, split.path


def _well_formed(host: str) -> bool:
    if len(host) > 253 or not _NAME.fullmatch(host):
        return False
    labels = host.split(".")
    return len(labels) <= _MOST_LABELS and all(map(_LABEL.fullmatch, labels))


def _address(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _plain(host: str) -> str:
    """One spelling for each IPv6 address."""
    address = _address(host) if ":" in host else None
    return host if address is None else str(address)


def _refusal(host: str) -> str | None:
    """Why ``host`` is not one that anybody may choose (HOST-02)."""
    if ":" in host or _NUMERIC.fullmatch(host.rpartition(".")[2]):
        return _refusal_of_address(host)
    if "api.portkey" in host:
        return f"'{host}' is a gateway itself"
    if host in _NAMES or host == "localhost" or host.endswith(_ENDINGS):
        return f"'{host}' is a name of a private network, which the operator does not trust here (TRUSTED_CUSTOM_HOSTS)"
    return None


def _refusal_of_address(host: str) -> str | None:
    # Spelled otherwise (decimal, octal, hexadecimal, short), the resolver's idea of it may differ from ours.
    if ":" not in host and not _QUAD.fullmatch(host):
        return f"expected an IPv4 address as four decimal numbers, or a name that does not end in one, not '{host}'"
    address = _address(host)
    if address is None:
        return f"'{host}' is not an address"
    if not all(map(_is_public, _meanings(address))):
        return f"{host} is not a public address, and the operator does not trust it here (TRUSTED_CUSTOM_HOSTS)"
    return None


def _meanings(address: _Address) -> list[_Address]:
    """The address itself, and the IPv4 addresses that lie within it for somebody on the way."""
    found: list[_Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        found += [inner for inner in (address.ipv4_mapped, address.sixtofour) if inner is not None]
        found += address.teredo or ()
        if address in _NAT64:
            found.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        if address.ipv4_mapped is not None:
            found.remove(address)
    return found


def _is_public(address: _Address) -> bool:
    if address in _NAT64:
        return True  # by itself: what lies within it is judged beside it
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return not any(address.version == net.version and address in net for net in _RESERVED)
