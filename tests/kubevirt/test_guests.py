"""What a guest is told by DHCP and by its router, as the rows say: for each family, binding and option."""

from __future__ import annotations

from typing import Any

import pytest

from cni.controller.config import DnsConfig
from foundation.ovsdb import Row
from tests.controller.stage import Northbound, Stage
from tests.kubevirt.conftest import nodes
from tests.kubevirt.objects import interface, launcher, spec, vm, vmi
from tests.kubevirt.scene import network, port, run

DNS = {"v4": ["10.96.0.10"], "v6": ["fd96::a"], "dual": ["10.96.0.10", "fd96::a"]}
V4 = {
    "server_id": "10.1.1.1",
    "server_mac": "0a:58:0a:01:01:01",
    "router": "10.1.1.1",
    "lease_time": "3600",
    "mtu": "1400",
    "hostname": '"m"',
    "domain_name": '"ns.svc.cluster.local"',
    "domain_search_list": '"ns.svc.cluster.local,svc.cluster.local,cluster.local"',
}
V6 = {"domain_search": '"ns.svc.cluster.local"'}


def service(ips: list[str], name: str = "kube-dns", namespace: str = "kube-system") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": ips[0], "clusterIPs": ips, "ports": [{"port": 53, "protocol": "UDP"}]},
    }


def options(stage: Stage, family: int, name: str = "ns_vm_m") -> dict[str, str] | None:
    refers = port(stage, name)[f"dhcpv{family}_options"]
    if not refers:
        return None
    row = next(row for row in stage.rows("DHCP_Options") if row.uuid in refers)
    return dict(row["options"])


def router(stage: Stage, node: str = "n1") -> Row:
    return stage.named("Logical_Router_Port")[f"router-to-{node}"]


@pytest.mark.parametrize("families", DNS)
async def test_a_guest_is_told_of_router_names_and_mtu_in_each_family(northbound: Northbound, families: str) -> None:
    async with Stage(northbound.remote) as stage:
        stage.put("node", *nodes(families))
        stage.put("service", service(DNS[families]))
        run(stage, "a", on="n1")
        await stage.settle()
        has_v4, has_v6 = families != "v6", families != "v4"
        assert options(stage, 4) == ({**V4, "dns_server": "10.96.0.10"} if has_v4 else None)
        v6 = options(stage, 6)
        assert (v6 is None) is not has_v6
        if v6 is not None:
            assert v6.pop("server_id") == router(stage)["mac"] or has_v4
            assert v6 == {**V6, "dns_server": "fd96::a"}
        told = router(stage)["ipv6_ra_configs"]
        assert told.get("address_mode") == ("dhcpv6_stateful" if has_v6 else None)
        assert told.get("rdnss") == ("fd96::a" if has_v6 else None)
        assert told.get("mtu") == ("1400" if has_v6 else None)
        assert told.get("dnssl") == ("svc.cluster.local,cluster.local" if has_v6 else None)
        assert ("fe80::/10" in str(port(stage)["port_security"])) is has_v6


@pytest.mark.parametrize("families", DNS)
async def test_the_clusters_dns_may_come_later_have_another_name_and_be_configured(
    northbound: Northbound, families: str
) -> None:
    dns = DnsConfig(service="dns/coredns", domain="k8s.example")
    async with Stage(northbound.remote, dns=dns, mtu=8900) as stage:
        stage.put("node", *nodes(families))
        run(stage, "a", on="n1")
        await stage.settle()
        family = 6 if families == "v6" else 4
        assert "dns_server" not in (options(stage, family) or {})
        stage.put("service", service(["10.96.0.10", "fd96::a"], "coredns", "dns"))
        await stage.settle()
        told = options(stage, family) or {}
        assert told["dns_server"] == ("fd96::a" if family == 6 else "10.96.0.10")
        assert told.get("mtu") == (None if family == 6 else "8900")
        search = told.get("domain_search") or told["domain_search_list"]
        assert search.startswith('"ns.svc.k8s.example')
        if families != "v4":
            assert router(stage)["ipv6_ra_configs"]["rdnss"] == "fd96::a"


async def test_servers_of_the_settings_come_before_the_services(northbound: Northbound) -> None:
    async with Stage(northbound.remote, dns=DnsConfig(servers=["192.0.2.53", "192.0.2.54", "2001:db8::53"])) as stage:
        stage.put("node", *nodes("dual"))
        stage.put("service", service(["10.96.0.10"]))
        run(stage, "a", on="n1")
        await stage.settle()
        assert (options(stage, 4) or {})["dns_server"] == "{192.0.2.53, 192.0.2.54}"
        assert (options(stage, 6) or {})["dns_server"] == "2001:db8::53"


@pytest.mark.parametrize(
    ("name", "more", "hostname", "first"),
    [
        ("m", {}, "m", "ns.svc.cluster.local"),
        ("m", {"hostname": "web"}, "web", "ns.svc.cluster.local"),
        ("m", {"hostname": "web", "subdomain": "farm"}, "web", "farm.ns.svc.cluster.local"),
        ("db.prod.example", {}, "db", "ns.svc.cluster.local"),
        ("m" * 70, {}, "m" * 63, "ns.svc.cluster.local"),
    ],
    ids=["its own", "given", "with a subdomain", "with dots", "too long"],
)
async def test_a_guests_name_is_the_one_that_kubevirt_gives_it(
    stage: Stage, name: str, more: dict[str, str], hostname: str, first: str
) -> None:
    stage.put("vmi", vmi(name, spec(**more), on="n1"))
    stage.put("pod", launcher(name, "a", on="n1"))
    await stage.settle()
    told = options(stage, 4, f"ns_vm_{name}") or {}
    assert told["hostname"] == f'"{hostname}"'
    assert told["domain_name"] == f'"{first}"'


async def test_options_of_the_interface_are_given_too(stage: Stage) -> None:
    asked = {
        "bootFileName": "pxe/boot.efi",
        "tftpServerName": "tftp.example",
        "ntpServers": ["192.0.2.1", "192.0.2.2", "ntp.example"],
        "privateOptions": [{"option": 240, "value": "site"}],
    }
    stage.put("network", network("lan", topology="layer2", subnets="10.9.0.0/24,fd09::/64"))
    template = spec(
        interface("default", dhcpOptions=asked), interface("blue", dhcpOptions=asked), networks={"blue": "lan"}
    )
    run(stage, "a", on="n1", template=template, networks="lan")
    await stage.settle()
    for name in ("ns_vm_m", "ns.lan_ns_vm_m"):
        told = options(stage, 4, name) or {}
        assert told["bootfile_name"] == '"pxe/boot.efi"'
        assert told["tftp_server"] == '"tftp.example"'
        assert told["ntp_server"] == "{192.0.2.1, 192.0.2.2}"
    assert stage.refused == []


async def test_text_in_an_option_stays_in_it(stage: Stage) -> None:
    asked = {"bootFileName": 'a"b\\c', "tftpServerName": "192.0.2.9"}
    run(stage, "a", on="n1", template=spec(interface("default", dhcpOptions=asked)))
    await stage.settle()
    told = options(stage, 4) or {}
    assert told["bootfile_name"] == '"a\\"b\\\\c"'
    assert told["tftp_server"] == "192.0.2.9"


@pytest.mark.parametrize(
    ("given", "dhcp"),
    [
        (interface("default"), True),
        (interface("default", "sriov"), True),
        (interface("default", plugin="l2bridge"), True),
        (interface("default", plugin="managedtap"), True),
        (interface("default", "masquerade"), False),
        (interface("default", "passt"), False),
        (interface("default", "passtBinding"), False),
        (interface("default", plugin="passt"), False),
    ],
    ids=lambda given: str({each: given[each] for each in given if each != "name"}) if isinstance(given, dict) else "",
)
@pytest.mark.parametrize("families", DNS)
async def test_dhcp_and_advertisements_are_for_guests_that_ask_themselves(
    northbound: Northbound, families: str, given: dict[str, Any], dhcp: bool
) -> None:
    async with Stage(northbound.remote) as stage:
        stage.put("node", *nodes(families))
        run(stage, "a", on="n1", template=spec(given))
        await stage.settle()
        assert bool(port(stage)["dhcpv4_options"]) is (dhcp and families != "v6")
        assert bool(port(stage)["dhcpv6_options"]) is (dhcp and families != "v4")
        assert bool(router(stage)["ipv6_ra_configs"]) is (dhcp and families != "v4")
        assert bool(list(stage.rows("DHCP_Options"))) is dhcp
        assert stage.annotations["ns/a"]["default"].get("dhcp", False) is dhcp


async def test_the_router_tells_of_itself_again_when_guests_come_back(stage: Stage) -> None:
    for name in ("first", "second"):
        stage.put("vm", vm(name))
        stage.put("vmi", vmi(name, on="n1"))
        stage.put("pod", launcher(name, f"of-{name}", on="n1"))
        await stage.settle()
        assert router(stage)["ipv6_ra_configs"]
        stage.remove("pod", f"ns/of-{name}")
        stage.remove("vmi", f"ns/{name}")
        stage.remove("vm", f"ns/{name}")
        await stage.settle()
        assert not router(stage)["ipv6_ra_configs"]


async def test_an_interface_that_does_not_say_its_binding_waits_for_the_instance(stage: Stage) -> None:
    """KubeVirt completes the instance: the machine may say nothing at all of interfaces."""
    stage.put("vm", vm("m", {"domain": {"devices": {}}}))
    stage.put("pod", launcher("m", "a", on="n1"))
    await stage.settle()
    assert "ns/a" not in stage.annotations
    stage.put("vmi", vmi("m", on="n1"))
    await stage.settle()
    assert stage.annotations["ns/a"]["default"]["dhcp"] is True
    assert not stage.problems
