"""Which addresses are public."""

import pytest

from app.pools.http_pool.addresses import is_public


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_a_public_address_is_public(address: str) -> None:
    """Global addresses are public, in IPv6 notation too."""
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "2001:0:808:808::f5ff:fffe",
    ],
)  # fmt: skip
def test_a_private_address_is_not(address: str) -> None:
    """Loopback, private, link-local, shared, multicast and reserved ones are not, whatever notation hides them."""
    assert not is_public(address)
