"""What is read of links in the calling thread's network namespace."""

from __future__ import annotations

from pyroute2 import IPRoute

from cni.node import links


def test_a_glance_shows_of_a_link_what_netlink_shows() -> None:
    with IPRoute() as netlink:
        found, told = links.glance("lo"), links.find(netlink, name="lo")
    assert found is not None
    assert told is not None
    assert (found.index, found.mac, found.mtu, found.up) == (told.index, told.mac, told.mtu, told.up)
    assert links.glance("none-of-these") is None
