"""Network namespaces of the lab, with the links between them."""

from __future__ import annotations

from pathlib import Path

from lab.network.commands import ip, run

ROOT = Path("/run/netns")


def path(name: str) -> Path:
    """Where a named network namespace is mounted."""
    return ROOT / name


async def create(*names: str) -> None:
    """Makes empty namespaces with their loopback up. Raises CommandFailed when one exists already."""
    await ip(*(f"netns add {name}" for name in names))
    for name in names:
        await ip("link set lo up", namespace=name)


async def remove(name: str) -> None:
    """Removes a namespace, and with it its links; none there is fine."""
    if path(name).exists():
        await run("ip", "netns", "delete", name)


async def no_offload(namespace: str, *links: str) -> None:
    """Makes the kernel finish checksums itself: OVS' userspace datapath does not, so TCP would carry nothing."""
    for link in links:
        await run("ip", "netns", "exec", namespace, "ethtool", "-K", link, "tx", "off")


async def veth(first: tuple[str, str], second: tuple[str, str], *, mtu: int = 0, mac: str = "") -> None:
    """A veth pair between two namespaces, each end given as (namespace, link); `mac` is the first end's."""
    (namespace, name), (other_namespace, other) = first, second
    options = f"{f' mtu {mtu}' if mtu else ''}"
    address = f" address {mac}" if mac else ""
    await ip(
        f"link add {name}{address}{options} netns {namespace} type veth peer name {other}{options} "
        f"netns {other_namespace}"
    )
    await no_offload(namespace, name)
    await no_offload(other_namespace, other)
