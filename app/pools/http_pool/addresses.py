"""Which addresses a request may reach: the guard against server-side request forgery."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

# RFC 6052: the last 32 bits are an IPv4 address, which a NAT64 gateway would reach.
_NAT64 = IPv6Network("64:ff9b::/96")


class NotPublic(OSError):
    """An address that ``block_private`` refuses."""

    def __init__(self, address: str) -> None:
        super().__init__(f"{address} is not a public address")


def is_public(address: str) -> bool:
    """Say whether an IP address is reachable from everywhere, whatever notation hides it.

    An IPv6 address that stands for an IPv4 one (mapped, NAT64, 6to4, Teredo) is judged as that.
    """
    ip: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        ip = _embedded(ip) or ip
    return ip.is_global and not ip.is_multicast


def _embedded(ip: IPv6Address) -> IPv4Address | None:
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    if ip.teredo is not None:
        return ip.teredo[1]
    return ip.ipv4_mapped or ip.sixtofour


def require_public(address: str) -> None:
    """Raise ``NotPublic`` unless ``address`` is public."""
    if not is_public(address):
        raise NotPublic(address)
