"""Which addresses a client may choose: every rule, every spelling that is meant to get around one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomgate.errors import ApiError, SettingError
from loomgate.gateway.hosts import check, is_trusted, trusted_from_env

NOBODY = frozenset[str]()
USUAL = trusted_from_env("localhost, 127.0.0.1, ::1, host.docker.internal, *.localhost")


def refusal(url: str, trusted: frozenset[str] = NOBODY) -> str:
    with pytest.raises(ApiError) as caught:
        check(url, trusted)
    assert caught.value.status == 400
    assert caught.value.message.startswith("Invalid custom host: ")
    return caught.value.message


@pytest.mark.behaviour("HOST-05")
@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h.example/v1", "http://h.example/v1"),
        ("HTTPS://H.Example:8443/V1/", "https://h.example:8443/V1"),
        ("https://8.8.8.8", "https://8.8.8.8"),
        ("https://[2001:4860:4860:0:0:0:0:8888]:443/x", "https://[2001:4860:4860::8888]:443/x"),
        ("http://models/v1", "http://models/v1"),
        ("https://1.2.3.example/", "https://1.2.3.example"),
    ],
)
def test_a_base_is_given_back_so_that_a_path_can_be_appended(url: str, base: str) -> None:
    assert check(url, NOBODY) == base


@pytest.mark.behaviour("HOST-01", "VAL-04")
@pytest.mark.parametrize(
    "url",
    [
        "",
        "h.example",
        "//h.example",
        "ftp://h.example",
        "file:///etc/passwd",
        "http:/h.example",
        "http://",
        "http:///v1",
        "http://user@h.example",
        "http://user:pass@h.example",
        "http://h.example@8.8.8.8",
        "http://h%2eexample",
        "http://h.example.",
        "http://h..example",
        "http://.h.example",
        "http://-h.example",
        "http://h-.example",
        "http://h_h.example",
        "http://" + "a." * 10 + "example",
        "http://" + "a" * 64 + ".example",
        "http://h.example:0",
        "http://h.example:65536",
        "http://h.example:",
        "http://h.example:8o",
        "http://h.example:-1",
        "http://h.ex ample",
        " http://h.example",
        "http://h.example\n",
        "http://h.example\t/v1",
        "http://h\x00.example",
        "http://h.example\\@8.8.8.8",
        "http://hé.example",
        "http://h。example",
        "http://①.example",
        "http://h.example/v1?x=1",
        "http://h.example/v1#x",
        "http://[::1",
        "http://[8.8.8.8]",
        "http://[fe80::1%25eth0]",
        "http://2001:4860:4860::8888",
        "http://h.example/" + "a" * 2048,
    ],
)
def test_what_is_not_an_address_of_a_host_is_refused(url: str) -> None:
    refusal(url)
    refusal(url, USUAL)


@pytest.mark.behaviour("HOST-02")
@pytest.mark.parametrize(
    "host",
    [
        "api.portkey.ai",
        "eu.api.portkey.ai",
        "0.0.0.0",  # noqa: S104 - refused, not bound
        "169.254.169.254",
        "169.254.169.1",
        "metadata",
        "METADATA",
        "metadata.google.internal",
        "metadata.azure.com",
        "instance-data",
        "localhost",
        *(f"x{ending}" for ending in (".local", ".localdomain", ".internal", ".intranet", ".lan", ".home")),
        *(f"x{ending}" for ending in (".corp", ".test", ".invalid", ".onion", ".localhost")),
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "127.0.0.1",
        "127.1.2.3",
        "100.64.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "198.18.0.1",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fc00::1]",
        "[fd12:3456::1]",
        "[ff02::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a9fe:a9fe]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[2002:a9fe:a9fe::1]",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "017700000001",
        "0177.0.0.1",
        "127.1",
        "127.0.1",
        "010.0.0.1",
        "1.2.3.4.5",
        "256.1.1.1",
        "8.8.8.08",
        "h.example.0x7f",
        "h.example.127",
    ],
)
def test_private_hosts_are_refused_however_they_are_spelled(host: str) -> None:
    refusal(f"http://{host}/v1")


@pytest.mark.parametrize("host", ["[::ffff:8.8.8.8]", "[64:ff9b::808:808]", "[2002:808:808::1]"])
def test_an_ipv6_form_of_a_public_ipv4_address_is_public(host: str) -> None:
    assert check(f"https://{host}", NOBODY)


@pytest.mark.behaviour("HOST-03")
@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "127.0.0.1", "[::1]", "[0:0:0:0:0:0:0:1]", "host.docker.internal", "a.b.localhost"],
)
def test_what_the_operator_trusts_is_let_through_and_nothing_is_trusted_by_itself(host: str) -> None:
    url = f"http://{host}:8080/v1"
    refusal(url)
    assert not is_trusted(url, NOBODY)
    assert check(url, USUAL) == url.lower().replace("0:0:0:0:0:0:0:1", "::1")
    assert is_trusted(url, USUAL)


def test_trust_is_for_whole_names() -> None:
    for host in ("xlocalhost", "localhost.example", "127.0.0.2", "docker.internal"):
        assert not is_trusted(f"http://{host}", USUAL)
    assert not is_trusted("http://user@localhost", USUAL)
    assert not is_trusted("nonsense", USUAL)


def test_the_list_of_trusted_hosts_is_read_and_mistakes_in_it_are_told() -> None:
    assert trusted_from_env("") == frozenset()
    assert trusted_from_env(" A.local ,, [FD00::1],*.corp") == {"a.local", "fd00::1", "*.corp"}
    for text in ("http://a.local", "a b", "*.*.local", "a.local:80", "*"):
        with pytest.raises(SettingError):
            trusted_from_env(text)


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_base_or_a_400(text: str) -> None:
    for url in (text, f"http://{text}", f"https://{text}/v1"):
        try:
            base = check(url, NOBODY)
        except ApiError as error:
            assert error.status == 400  # noqa: PT017 - either outcome is right, only its form is held
        else:
            assert check(base, NOBODY) == base


@given(st.ip_addresses())
@settings(max_examples=200, deadline=None)
def test_addresses_are_judged_by_what_they_are(address: object) -> None:
    host = f"[{address}]" if ":" in str(address) else str(address)
    is_inner = getattr(address, "ipv4_mapped", None) is not None or str(address).startswith("64:ff9b::")
    if not is_inner and (not address.is_global or address.is_multicast):  # type: ignore[attr-defined]
        refusal(f"http://{host}")
    assert check(f"http://{host}", trusted_from_env(str(address)))
