"""The lab's network carries packets, and leaves nothing behind."""

from __future__ import annotations

import pytest

from foundation.ovsdb import OvsdbSession, Row, fresh_name
from foundation.ovsdb import operations as op
from lab import processes
from lab.network import Network, VirtualFunction, namespaces
from lab.network.commands import ip, run

pytestmark = pytest.mark.root


async def plug(network: Network, node: str, link: str, port: str) -> None:
    """Gives a link of a node's namespace to br-int, and waits until OVN has installed its flows."""
    session = OvsdbSession(network.chassis[node].ovs, "Open_vSwitch")
    session.monitor({"Interface": ["name", "external_ids"]})
    async with session:
        interface, new = fresh_name(), fresh_name()
        await session.transact(
            op.insert("Interface", {"name": link, "external_ids": {"iface-id": port}}, uuid_name=interface),
            op.insert("Port", {"name": link, "interfaces": interface}, uuid_name=new),
            op.mutate("Bridge", [("name", "==", "br-int")], [("ports", "insert", new)]),
        )

        def installed(row: Row) -> bool:
            return row["name"] == link and row["external_ids"].get("ovn-installed") == "true"

        await session.until("Interface", installed, deadline=20)


async def test_a_virtual_function_reaches_a_pod_of_another_node_by_tunnel(network: Network) -> None:
    await network.add_virtual_functions(VirtualFunction("node-host", "vf0", "node-b", "pf0vf0", mtu=1400))
    await namespaces.veth((network.namespace("node-a"), "peer0"), (network.namespace("node-a"), "rep0"), mtu=1400)
    nb = OvsdbSession(network.central.nb, "OVN_Northbound")
    async with nb:
        names = [fresh_name(), fresh_name()]
        await nb.transact(
            *(
                op.insert("Logical_Switch_Port", {"name": f"p{i}", "addresses": "unknown"}, uuid_name=n)
                for i, n in enumerate(names)
            ),
            op.insert("Logical_Switch", {"name": "s", "ports": names}),
        )
    for node, link, address in (("node-host", "vf0", "10.0.0.1"), ("node-a", "peer0", "10.0.0.2")):
        await ip(f"addr add {address}/24 dev {link}", f"link set {link} up", namespace=network.namespace(node))
    await ip("link set rep0 up", namespace=network.namespace("node-a"))
    await ip("link set pf0vf0 up", namespace=network.namespace("node-b"))
    await plug(network, "node-a", "rep0", "p1")
    await plug(network, "node-b", "pf0vf0", "p0")
    # The first packet between two nodes waits for ARP of the tunnel's end.
    where = network.namespace("node-host")
    await run("ip", "netns", "exec", where, "ping", "-c", "1", "-w", "10", "-M", "do", "-s", "1372", "10.0.0.2")


async def test_nothing_is_left(network: Network) -> None:
    records = network.records()
    assert len(records) == 3 + 2 * 3
    assert all(record.alive() for record in records)
    found = Network.attach(network.spec.directory)
    assert found is not None
    await found.down()  # as a second process would, after the first was killed
    assert not any(processes.start_time(record.pid) == record.started for record in records)
    assert not network.spec.directory.exists()
    for node in network.spec.nodes:
        assert not network.namespace_path(node.name).exists()
    assert Network.attach(network.spec.directory) is None
