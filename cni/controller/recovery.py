"""Addresses that are in the northbound database, given back at the start to who had them; no I/O.

Of two nodes whose subnets overlap the first one has them, and a first list is in the order of names: so the database
decides. Likewise for pods: annotations have claimed before, but one may be lost, or not be written yet; and one may be
copied with its pod onto another (a manifest that was exported, a backup that is put back). Then the pod whose port has
the address is the one that had it from us: the other gets another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cni.controller.addresses.pool import Assignment, Pool
from cni.controller.addresses.subnets import overlap
from cni.controller.model.addressing import IPNetwork, networks
from cni.controller.model.node import Node
from cni.controller.rows import Owner, RowId
from cni.controller.translate.pod import DEFAULT
from cni.controller.world import World
from foundation.ovsdb import Row


def recover_nodes(world: World, routers: Mapping[str, frozenset[IPNetwork]]) -> Iterable[Owner]:
    """`routers`: the nodes that are in the database, with the subnets that they have there. Returns who may have other
    rows now."""
    touched: list[Owner] = []
    for name, subnets in routers.items():
        node = world.nodes.get(name)
        if node is None or name in world.pools or _subnets(node) != subnets:
            continue
        others = {
            each: world.nodes[each]
            for each, pool in world.pools.items()
            if each in world.nodes and routers.get(each) != frozenset(pool.subnets) and overlap(pool.subnets, subnets)
        }
        for other in others:
            touched += world.put_node(other, None)
        touched += world.retry_subnets(name)
        for other, late in others.items():
            touched += world.put_node(other, late)
    return touched


def _subnets(node: Node) -> frozenset[IPNetwork]:
    try:
        return frozenset(networks(node.subnets))
    except ValueError:
        return frozenset()


class _Place(NamedTuple):
    """What `holder` has by its port."""

    pool: Pool
    holder: str
    has: Assignment


def recover_pods(world: World, ports: Iterable[tuple[RowId, Row]]) -> None:
    """`ports`: the switch ports of pods that are in the database."""
    places = [place for row_id, row in ports if (place := _place(world, row_id, row)) is not None]
    without = [each for each in places if each.pool.held(each.holder) is None]
    if not without:
        return
    proven = {(each.pool.token, each.holder, text) for each in places for text in (each.has.mac, *each.has.ips)}
    for pool, holder, has in without:
        for text in (has.mac, *has.ips):
            other = pool.holder(text)
            if other and (pool.token, other, text) not in proven:
                pool.release(other)
        pool.claim(holder, has, partly=True)


def _place(world: World, row_id: RowId, row: Row) -> _Place | None:
    pod = world.pods.get(row_id.key)
    if pod is None or not pod.wired or pod.machine or row["options"].get("iface-id-ver", "") != pod.uid:
        return None
    pool, holder = world.pools.get(pod.node), pod.uid
    if row_id.part != DEFAULT:
        pool, holder = world.networks.place(pod, row_id.part)
    # A port without addresses has a second entry, "unknown".
    mac, *ips = max(row["addresses"], key=len, default="").split() or [""]
    return _Place(pool, holder, Assignment(tuple(ips), mac)) if pool is not None and mac else None
