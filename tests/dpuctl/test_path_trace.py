"""The text of ovn-trace as a verdict; the texts are cut from real ones (OVN 23.03)."""

import pytest

from dpuctl.path_trace import End, Hop, Question, Verdict, microflow, read, words

WEB = End(pod="shop/web", port="shop_web", mac="0a:00:00:00:00:01", ips=("10.1.0.5/24", "fd00::5/64"))
DB = End(pod="shop/db", port="shop_db", mac="0a:00:00:00:00:02", ips=("10.2.0.6/24",))
SIX = End(pod="shop/six", port="shop_six", mac="0a:00:00:00:00:03", ips=("fd00::6/64",))

DELIVERED = """
ingress(dp="node-a", inport="shop_web")
---------------------------------------
 0. ls_in_check_port_sec (northd.c:8432): 1, priority 50, uuid 40174195
    next;
25. ls_in_l2_lkup (northd.c:9193): eth.dst == 0a:58:0a:f4:00:01, priority 50, uuid 7c19ab34
    outport = "node-a-to-router";
    output;

egress(dp="node-a", inport="shop_web", outport="node-a-to-router")
------------------------------------------------------------------
 9. ls_out_apply_port_sec (northd.c:5777): 1, priority 0, uuid bf45a962
    output;
    /* output to "node-a-to-router", type "patch" */

ingress(dp="router", inport="router-to-node-a")
-----------------------------------------------
21. lr_in_arp_request (northd.c:12948): 1, priority 0, uuid 513d9385
    output;

egress(dp="router", inport="router-to-node-a", outport="router-to-node-b")
--------------------------------------------------------------------------
 6. lr_out_delivery (northd.c:12995): outport == "router-to-node-b", priority 100, uuid 73960762
    /* output to "router-to-node-b", type "patch" */

ingress(dp="node-b", inport="node-b-to-router")
-----------------------------------------------
 0. ls_in_check_port_sec (northd.c:8432): 1, priority 50, uuid 40174195

egress(dp="node-b", inport="node-b-to-router", outport="shop_db")
-----------------------------------------------------------------
"""
ARRIVES = f"""{DELIVERED}
 9. ls_out_apply_port_sec (northd.c:5777): 1, priority 0, uuid bf45a962
    output;
    /* output to "shop_db", type "" */
"""
REFUSED = f"""{DELIVERED}
 4. ls_out_acl (northd.c:6571): reg0[10] == 1 && (outport == @pg && ip), priority 2000, uuid 82a78f18
    ct_commit {{ ct_mark.blocked = 1; }};
"""
WAY = (
    Hop("node-a", "shop_web", "node-a-to-router"),
    Hop("router", "router-to-node-a", "router-to-node-b"),
    Hop("node-b", "node-b-to-router", "shop_db"),
)


def test_a_packet_that_arrives() -> None:
    found = read(ARRIVES, destination="shop_db")
    assert (found.delivered, found.hops, found.stage, found.flow) == (True, WAY, "", "")


def test_a_packet_that_a_policy_stops() -> None:
    found = read(REFUSED, destination="shop_db")
    assert (found.delivered, found.hops) == (False, WAY)
    assert (found.stage, found.flow) == ("ls_out_acl", "82a78f18")
    assert found.match == "reg0[10] == 1 && (outport == @pg && ip)"


def test_output_to_another_port_is_no_delivery() -> None:
    assert not read(ARRIVES, destination="shop_other").delivered


@pytest.mark.parametrize(
    ("destination", "protocol", "terms"),
    [
        (DB, "tcp", ["ip4.src == 10.1.0.5", "ip4.dst == 10.2.0.6", "tcp.dst == 5432", "eth.dst == 0a:00:00:00:00:99"]),
        (SIX, "udp", ["ip6.src == fd00::5", "ip6.dst == fd00::6", "udp.dst == 5432"]),
        (DB, "icmp", ["icmp4.type == 8"]),
        (SIX, "icmp", ["icmp6.type == 128"]),
    ],
)
def test_the_packet_is_of_a_common_family(destination: End, protocol: str, terms: list[str]) -> None:
    question = Question(source=WEB, destination=destination, protocol=protocol, port=5432)  # type: ignore[arg-type]
    packet = microflow(question, gateway_mac="0a:00:00:00:00:99", same_switch=False)
    assert all(term in packet for term in terms), packet


def test_on_one_switch_the_packet_goes_straight_to_the_destination() -> None:
    packet = microflow(Question(source=WEB, destination=DB), gateway_mac="0a:00:00:00:00:99", same_switch=True)
    assert "eth.dst == 0a:00:00:00:00:02" in packet


def test_without_a_common_family_nothing_can_be_asked() -> None:
    with pytest.raises(ValueError, match=r"shop/db and shop/six have no address family in common"):
        microflow(Question(source=DB, destination=SIX), gateway_mac="", same_switch=True)


def test_the_words_name_the_rule_and_the_place() -> None:
    found = read(REFUSED, destination="shop_db")
    verdict = Verdict(
        question=Question(source=WEB, destination=DB, port=80),
        delivered=found.delivered,
        family=4,
        hops=found.hops,
        stage=found.stage,
        match=found.match,
        flow=found.flow,
        rule="NetworkPolicy shop/db-only, rule ingress.deny",
    )
    told = list(words(verdict))
    assert told[0] == "shop/web -> shop/db, TCP port 80: refused"
    assert "  by NetworkPolicy shop/db-only, rule ingress.deny" in told
    assert any("ends on node-b, a policy's rule refuses it" in line for line in told)
