"""The container side of an attachment: an interface in the pod's network namespace, made, examined or taken away."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from pyroute2 import IPRoute

from cni.node import links
from cni.node.attachments import Attachment, Original
from cni.node.devices import Device
from cni.node.errors import InterfaceTaken, LinkFailed, UnknownContainer
from cni.node.finishing import together
from cni.node.link_events import LinkEvent, LinkEvents
from cni.node.links import Link
from cni.node.netns import NetworkNamespace, opened
from cni.node.result import Interface
from foundation.pci import Sysfs
from foundation.pci.errors import PciError

_log = logging.getLogger(__name__)

# The kernel gives a card's function back to the node a moment after its namespace has died.
_RETURN_SECONDS = 1.0


def veth_name(identity: str) -> str:
    """The node's end of an attachment's veth pair; recognisably ours, unique, at most 15 bytes."""
    return f"dpo{identity[:12]}"


class ContainerSide:
    """`userspace` tells whether OVS' datapath is its own, so that pods must finish their checksums themselves."""

    def __init__(
        self, node: NetworkNamespace, sysfs: Sysfs, events: LinkEvents, *, userspace: Callable[[], bool]
    ) -> None:
        self._node = node
        self._sysfs = sysfs
        self._userspace = userspace
        self._returning: dict[str, asyncio.Event] = {}
        events.subscribe(self._note, on_loss=lambda: None)

    async def examine(self, device: Device) -> Original | None:
        """How a function is now, to be restored later; None for one that lacks its netdev."""
        if not device.netdev and device.kind != "vfio":
            return None

        def look(netlink: IPRoute) -> Original | None:
            pf = links.find(netlink, name=device.pf_netdev) if device.pf_netdev else None
            admin = links.admin_mac(netlink, pf.index, device.function.vf) if pf is not None else ""
            if not device.netdev:
                return Original(admin_mac=admin)
            link = links.find(netlink, name=device.netdev)
            return Original(link.name, link.mac, link.mtu, link.altnames, admin) if link is not None else None

        return await self._node.run(look)

    async def free_name(self, namespace: NetworkNamespace, ifname: str) -> None:
        """Raises InterfaceTaken when the pod has an interface of this name."""
        await namespace.run(lambda _: links.rename_possible(ifname))

    async def attach(
        self, attachment: Attachment, namespace: NetworkNamespace, *, linked: asyncio.Event
    ) -> tuple[Interface, ...]:
        """Makes the interface as recorded. `linked` is set as soon as the node's side can be plugged.

        Returns the interfaces for the CNI result, the pod's one last.
        """
        if attachment.kind == "veth":
            return await self._attach_veth(attachment, namespace, linked)
        linked.set()
        assert attachment.function is not None
        if attachment.kind == "vfio":
            await self._set_admin_mac(attachment, attachment.assignment.mac)
            pod = Interface(
                name=attachment.ifname,
                mac=attachment.assignment.mac,
                sandbox=namespace.path,
                mtu=attachment.assignment.mtu,
                pci=attachment.function.address,
            )
            return (pod,)
        link = await self._attach_function(attachment, namespace)
        address = "" if attachment.function.scalable else attachment.function.address
        return (_pod_interface(attachment, link, namespace, address),)

    async def detach(self, attachment: Attachment) -> None:
        """Takes the interface away and gives a function back as it was; succeeds on anything that is gone already."""
        with contextlib.ExitStack() as stack:
            namespace = _still_there(attachment, stack)
            if attachment.kind == "veth":
                await self._detach_veth(attachment, namespace)
            elif attachment.kind == "vfio":
                if attachment.original is not None and attachment.original.admin_mac:
                    await self._set_admin_mac(attachment, attachment.original.admin_mac)
            else:
                await self._detach_function(attachment, namespace)

    async def mismatch(self, attachment: Attachment) -> str:
        """The first thing in the pod that is not as ADD left it, as a sentence; "" when all is."""
        if attachment.kind == "vfio":
            return "" if self._sysfs.exists(_address(attachment)) else f"function {_address(attachment)} is gone"
        try:
            with opened(attachment.netns) as namespace:
                if attachment.netns_inode not in (0, namespace.inode):
                    return f"{attachment.netns} is another network namespace than at ADD"
                return await namespace.run(lambda netlink: _compare(netlink, attachment))
        except UnknownContainer as error:
            return str(error)

    async def present(self, attachment: Attachment) -> bool:
        """Whether the pod still has the interface. Raises UnknownContainer when its namespace is gone."""
        with opened(attachment.netns) as namespace:
            if attachment.netns_inode not in (0, namespace.inode):
                raise UnknownContainer(f"{attachment.netns} is another network namespace than at ADD")
            if attachment.kind == "vfio":
                return True
            found = await namespace.run(lambda netlink: _ours(netlink, attachment, attachment.ifname))
            return found is not None

    async def marked(self) -> list[Link]:
        """Links in the node's namespace that carry our mark."""
        found = await self._node.run(links.all_links)
        return [link for link in found if links.marked(link.alias) is not None]

    async def clear(self, link: Link) -> None:
        """Removes an orphan's link: a veth end is deleted, a function gets back what its mark says."""
        mark = links.marked(link.alias)
        if mark is None:
            return
        _, original = mark
        if link.kind == "veth" and original is None:
            await self._node.run(lambda netlink: links.delete(netlink, link.name))
        else:
            await self._node.run(lambda netlink: _restore(netlink, link, original))

    # --- veth ------------------------------------------------------------------------------------------------------

    async def _attach_veth(
        self, attachment: Attachment, namespace: NetworkNamespace, linked: asyncio.Event
    ) -> tuple[Interface, ...]:
        assignment, alias = attachment.assignment, links.mark(attachment.id)
        # The pair is made from the node's side, so that its end is up before OVS sees it: OVS adds flags to those it
        # read before, and would take a link down that came up meanwhile.
        namespace.warm()
        await self._node.run(
            lambda netlink: links.create_veth(
                netlink,
                name=attachment.link,
                peer=attachment.ifname,
                peer_namespace=namespace.fd,
                peer_mac=assignment.mac,
                mtu=assignment.mtu,
            )
        )
        linked.set()

        def configure(netlink: IPRoute) -> Link:
            link = links.glance(attachment.ifname)
            if link is None:
                raise LinkFailed(f"interface {attachment.ifname} vanished as soon as it was made; did the sandbox end?")
            own = assignment.of_interface()
            return links.configure(netlink, link, own, alias=alias, finish_checksums=self._userspace())

        def marked(netlink: IPRoute) -> Link:
            end = links.glance(attachment.link)
            if end is None:
                raise LinkFailed(f"the node's end {attachment.link} of the veth pair vanished; did the sandbox end?")
            links.change(netlink, end.index, f"mark {end.name}", ifalias=alias)
            return end

        link, end = await together(namespace.run(configure), self._node.run(marked))
        node_end = Interface(name=end.name, mac=end.mac, mtu=end.mtu)
        return node_end, _pod_interface(attachment, link, namespace, "")

    async def _detach_veth(self, attachment: Attachment, namespace: NetworkNamespace | None) -> None:
        def remove_in_pod(netlink: IPRoute) -> None:
            end = links.find_marked(netlink, attachment.id)
            if end is not None:
                links.delete(netlink, end.name)

        removed = await self._node.run(lambda netlink: links.delete(netlink, attachment.link))
        if not removed and namespace is not None:
            await namespace.run(remove_in_pod)

    # --- a card's function -----------------------------------------------------------------------------------------

    async def _attach_function(self, attachment: Attachment, namespace: NetworkNamespace) -> Link:
        assignment, original = attachment.assignment, attachment.original
        assert original is not None
        alias = links.mark(attachment.id, original)

        def hand_over(netlink: IPRoute) -> None:
            link = self._netdev(attachment) or links.find_marked(netlink, attachment.id)
            if link is None:
                raise LinkFailed(
                    f"function {_address(attachment)} has no network device on this node any more; see who took it"
                )
            links.change(netlink, link.index, f"mark {link.name}", ifalias=alias)
            links.remove_altnames(netlink, link.index, original.altnames)
            links.move(netlink, link, namespace=namespace.fd, name=attachment.ifname)

        def finish(netlink: IPRoute) -> Link | None:
            link = links.glance(attachment.ifname)
            if link is None:
                return None
            return links.configure(netlink, link, assignment.of_interface(), alias=alias, finish_checksums=False)

        namespace.warm()
        if original.admin_mac:
            await self._set_admin_mac(attachment, assignment.mac)
        await self._node.run(hand_over)
        link = await namespace.run(finish)
        if link is None:
            raise LinkFailed(f"function {_address(attachment)} did not arrive in {namespace.path}")
        return link

    async def _detach_function(self, attachment: Attachment, namespace: NetworkNamespace | None) -> None:
        original = attachment.original
        assert original is not None

        def give_back(netlink: IPRoute) -> bool:
            """Whether it is wholly as it was."""
            link = _ours(netlink, attachment, attachment.ifname)
            if link is None:
                return False
            # The mark goes last, so a function with other names still to be restored keeps it.
            attributes = {} if original.altnames else _as_before(link, original)
            try:
                links.move(netlink, link, namespace=self._node.fd, name=original.name, **attributes)
            except InterfaceTaken:
                # The kernel moves first and renames then: the function may be back already, under its name in the pod.
                if links.find_marked(netlink, attachment.id) is not None:
                    links.move(netlink, link, namespace=self._node.fd, name=veth_name(attachment.id))
                return False
            return bool(attributes)

        def restore(netlink: IPRoute) -> bool:
            link = _ours(netlink, attachment, original.name)
            if link is not None:
                _restore(netlink, link, original)
            return link is not None

        returned = self._returning[attachment.id] = asyncio.Event()
        try:
            restored = namespace is not None and await namespace.run(give_back)
            if not restored and not await self._node.run(restore) and namespace is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(returned.wait(), _RETURN_SECONDS)
                    await self._node.run(restore)
            if original.admin_mac:
                await self._set_admin_mac(attachment, original.admin_mac)
        finally:
            del self._returning[attachment.id]

    def _netdev(self, attachment: Attachment) -> Link | None:
        """The function's netdev on the node, by its PCI address; in the thread of the node's namespace."""
        assert attachment.function is not None
        try:
            if attachment.function.scalable:
                names = self._sysfs.scalable_function(attachment.function.address).netdevs
            else:
                names = self._sysfs.netdevs(attachment.function.address)
        except PciError:
            return None
        return next((link for name in names if (link := links.glance(name)) is not None), None)

    async def _set_admin_mac(self, attachment: Attachment, mac: str) -> None:
        """Through the physical function, where its driver lets it: guests of vfio-pci then start with this address."""
        function = attachment.function
        if function is None or not function.pf_address or not mac or function.scalable:
            return
        names = self._sysfs.netdevs(function.pf_address)

        def work(netlink: IPRoute) -> None:
            for name in names:
                pf = links.find(netlink, name=name)
                if pf is not None and links.admin_mac(netlink, pf.index, function.vf):
                    links.set_admin_mac(netlink, pf.index, function.vf, mac)
                    return

        if names:
            await self._node.run(work)

    def _note(self, event: LinkEvent) -> None:
        mark = links.marked(event.alias)
        if mark is not None and not event.gone and (waiting := self._returning.get(mark[0])) is not None:
            waiting.set()


def _still_there(attachment: Attachment, stack: contextlib.ExitStack) -> NetworkNamespace | None:
    """The pod's namespace if it is still the very one of ADD."""
    if not attachment.netns:
        return None
    try:
        namespace = stack.enter_context(opened(attachment.netns))
    except UnknownContainer:
        return None
    return namespace if attachment.netns_inode in (0, namespace.inode) else None


def _ours(netlink: IPRoute, attachment: Attachment, name: str) -> Link | None:
    """The attachment's link: under `name` as a rule; else among all links, of which a host with many VFs has many."""
    link = links.find(netlink, name=name)
    mark = links.marked(link.alias) if link is not None else None
    return link if mark is not None and mark[0] == attachment.id else links.find_marked(netlink, attachment.id)


def _restore(netlink: IPRoute, link: Link, original: Original | None) -> None:
    """Gives a function's netdev its name, MAC, MTU and alternative names back, and takes the mark off last."""
    if link.up:
        links.change(netlink, link.index, f"take {link.name} down", state="down")
    attributes = _as_before(link, original)
    if original is not None:
        links.restore_altnames(netlink, link.index, original.altnames)
        if link.name != original.name:
            attributes["ifname"] = _free_name(netlink, link, original.name)
    # The kernel takes these in one step, the alias after the others.
    links.change(netlink, link.index, f"restore {link.name} to {attributes}", **attributes)


def _as_before(link: Link, original: Original | None) -> dict[str, str | int]:
    """What a function's netdev must be given: MAC and MTU that it had, and no mark of ours."""
    attributes: dict[str, str | int] = {"ifalias": ""}
    if original is not None and original.mac and link.mac != original.mac:
        attributes["address"] = original.mac
    if original is not None and original.mtu and link.mtu != original.mtu:
        attributes["mtu"] = original.mtu
    return attributes


def _free_name(netlink: IPRoute, link: Link, wanted: str) -> str:
    """The name to give back; one of ours where the node gave it away meanwhile."""
    if links.find(netlink, name=wanted) is None:
        return wanted
    mark = links.marked(link.alias)
    ours = veth_name(mark[0]) if mark is not None else link.name
    _log.warning("name %s is taken on the node; the function comes back as %s", wanted, ours)
    return ours


def _compare(netlink: IPRoute, attachment: Attachment) -> str:
    if attachment.assignment.dhcp:
        # KubeVirt gives it another name and MAC, and puts it on a bridge.
        found = _ours(netlink, attachment, attachment.ifname)
        return "" if found is not None else f"the pod has no interface {attachment.ifname}"
    link = links.find(netlink, name=attachment.ifname)
    if link is None:
        return f"the pod has no interface {attachment.ifname}"
    mark = links.marked(link.alias)
    if mark is None or mark[0] != attachment.id:
        return f"interface {attachment.ifname} of the pod is not the one that ADD made"
    assignment = attachment.assignment
    if not link.up:
        return f"interface {link.name} is down"
    if assignment.mac and link.mac != assignment.mac:
        return f"interface {link.name} has MAC {link.mac} instead of {assignment.mac}"
    if assignment.mtu and link.mtu != assignment.mtu:
        return f"interface {link.name} has MTU {link.mtu} instead of {assignment.mtu}"
    missing = sorted(set(assignment.ips) - links.addresses(netlink, link.index))
    if missing:
        return f"interface {link.name} lacks the address {missing[0]}"
    present = links.routes(netlink, link.index)
    for route in assignment.all_routes():
        if (route.dest, route.next_hop) not in present:
            via = f" via {route.next_hop}" if route.next_hop else ""
            return f"the pod lacks the route {route.dest}{via} over {link.name}"
    return ""


def _pod_interface(attachment: Attachment, link: Link, namespace: NetworkNamespace, pci: str) -> Interface:
    return Interface(name=attachment.ifname, mac=link.mac, sandbox=namespace.path, mtu=link.mtu, pci=pci)


def _address(attachment: Attachment) -> str:
    return attachment.function.address if attachment.function else ""
