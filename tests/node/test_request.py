"""What a runtime gives is checked before anything is done: each fault has its code and its sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.node.errors import CODES, CniNodeError, NotJson, code_of
from cni.node.request import Bandwidth, Call, parse, version_of

VARIABLES = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "K8S_POD_INFRA_CONTAINER_ID=c0ffee;K8S_POD_NAME=p;IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_UID=u",
    "DEADLINE_MS": "5000",
}
CONF: dict[str, Any] = {"cniVersion": "1.1.0", "name": "lan", "type": "dpu-offload"}


def parsed(conf: dict[str, Any] | None = None, **variables: str) -> Call:
    given_variables = {key: value for key, value in (VARIABLES | variables).items() if value}
    return parse(given_variables, json.dumps(CONF if conf is None else conf).encode())


def test_a_whole_call() -> None:
    conf = CONF | {
        "deviceID": "0000:03:00.2",
        "netAttachDefName": "n/blue",
        "runtimeConfig": {
            "mac": "0A:58:00:00:00:01",
            "ips": ["10.0.0.1/24"],
            "deviceID": "0000:03:00.2",
            "CNIDeviceInfoFile": "/run/info",
            "bandwidth": {"ingressRate": 1000, "egressRate": 2000, "egressBurst": 3000},
        },
        "somebodyElses": {"field": 1},
    }
    call = parsed(conf)
    assert (call.pod_namespace, call.pod_name, call.pod_uid, call.container_id) == ("n", "p", "u", "c0ffee")
    assert (call.device_id, call.mac, call.ips, call.network) == (
        "0000:03:00.2",
        "0a:58:00:00:00:01",
        ("10.0.0.1/24",),
        "n/blue",
    )
    assert (call.bandwidth.ingress_rate, call.bandwidth.egress_burst, bool(call.bandwidth)) == (1000, 3000, True)
    assert (call.deadline, call.device_info_file) == (5.0, "/run/info")


@pytest.mark.parametrize(
    ("variables", "conf", "code", "sentence"),
    [
        ({"CNI_COMMAND": "EAT"}, None, 4, "not one of"),
        ({"CNI_COMMAND": ""}, None, 4, "not one of"),
        ({"CNI_CONTAINERID": ""}, None, 4, "ADD needs CNI_CONTAINERID"),
        ({"CNI_NETNS": ""}, None, 4, "ADD needs CNI_NETNS"),
        ({"CNI_IFNAME": "", "CNI_NETNS": ""}, None, 4, "CNI_NETNS, CNI_IFNAME"),
        ({"CNI_CONTAINERID": "../x"}, None, 4, "does not allow"),
        ({"CNI_IFNAME": "sixteen-bytes-xx"}, None, 4, "longer than the kernel's 15 bytes"),
        ({"CNI_IFNAME": "a/b"}, None, 4, "no interface name"),
        ({"CNI_IFNAME": ".."}, None, 4, "no interface name"),
        ({"CNI_IFNAME": "eth%d"}, None, 4, "no interface name"),
        ({"CNI_IFNAME": "a b"}, None, 4, "no interface name"),
        ({"CNI_ARGS": "IgnoreUnknown"}, None, 4, "without an equals sign"),
        ({"CNI_ARGS": "IgnoreUnknown=1"}, None, 4, "K8S_POD_NAMESPACE"),
        ({}, CONF | {"cniVersion": "0.2.0"}, 1, "not supported"),
        ({}, CONF | {"cniVersion": "2.0.0"}, 1, "not supported"),
        ({"CNI_COMMAND": "CHECK"}, CONF | {"cniVersion": "0.3.1"}, 1, "since CNI 0.4.0"),
        ({"CNI_COMMAND": "GC"}, CONF | {"cniVersion": "1.0.0"}, 1, "since CNI 1.1.0"),
        ({"CNI_COMMAND": "STATUS"}, CONF | {"cniVersion": "1.0.0"}, 1, "since CNI 1.1.0"),
        ({}, {"cniVersion": "1.1.0"}, 7, "name is ''"),
        ({}, CONF | {"name": "../lan"}, 7, "letters, digits"),
        ({"CNI_COMMAND": "GC"}, {"cniVersion": "1.1.0"}, 7, "name is ''"),
        ({}, {"name": "lan"}, 1, "'0.1.0' is not supported"),
        ({}, CONF | {"runtimeConfig": {"bandwidth": {"ingressRate": -1}}}, 7, "malformed"),
        ({}, CONF | {"runtimeConfig": {"bandwidth": {"egressBurst": 1 << 70}}}, 7, "malformed"),
        ({}, CONF | {"prevResult": {"ips": 5}}, 7, "prevResult's ips are no list"),
        ({}, CONF | {"prevResult": {"interfaces": ["eth0"]}}, 7, "prevResult's interfaces are no list"),
        ({"CNI_COMMAND": "CHECK"}, CONF | {"prevResult": {"dns": [1]}}, 7, "prevResult's dns is no object"),
        ({}, CONF | {"deviceID": 5}, 7, "malformed"),
        ({}, CONF | {"deviceID": "eth7"}, 7, "neither a PCI address"),
        ({}, CONF | {"deviceID": "0000:03:00.2", "runtimeConfig": {"deviceID": "0000:03:00.3"}}, 7, "in runtimeConfig"),
        ({}, CONF | {"runtimeConfig": {"mac": "0a:58"}}, 7, "malformed"),
        ({}, CONF | {"runtimeConfig": {"bandwidth": {"ingressRate": "fast"}}}, 7, "malformed"),
        ({"CNI_COMMAND": "CHECK"}, CONF, 7, "prevResult"),
    ],
)
def test_each_fault_has_its_code(
    variables: dict[str, str], conf: dict[str, Any] | None, code: int, sentence: str
) -> None:
    with pytest.raises(CniNodeError, match=sentence) as caught:
        parsed(conf, **variables)
    assert code_of(caught.value) == code


DEEP = b'{"cniVersion":"1.1.0","name":"lan","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BROKEN = [b"", b"not json", b"{", b'{"cniVersion": "1.1.0"', b"\xff\xfe", b'{"cniVersion":"1.1.0","name":"\xff"}', DEEP]


@pytest.mark.parametrize("config", BROKEN)
def test_what_is_not_json_says_so(config: bytes) -> None:
    with pytest.raises(NotJson, match="is not JSON"):
        parse(VARIABLES, config)
    assert version_of(config) == "1.1.0"


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_order(config: bytes) -> None:
    with pytest.raises(CniNodeError) as caught:
        parse(VARIABLES, config)
    assert code_of(caught.value) in (1, 6, 7)


def test_del_asks_for_little() -> None:
    call = parsed(CNI_COMMAND="DEL", CNI_NETNS="", CNI_ARGS="")
    assert (call.netns, call.pod_name) == ("", "")
    odd = CONF | {"deviceID": 5, "runtimeConfig": {"bandwidth": {"ingressRate": -1}}, "prevResult": "x"}
    assert parsed(odd, CNI_COMMAND="DEL").container_id


def test_null_counts_as_absent() -> None:
    nothing = {"mac": None, "ips": None, "bandwidth": None, "deviceID": None, "CNIDeviceInfoFile": None}
    call = parsed(CONF | {"deviceID": None, "runtimeConfig": nothing, "prevResult": None})
    assert (call.device_id, call.mac, call.ips, call.device_info_file, call.bandwidth) == ("", "", (), "", Bandwidth())
    assert parsed(CONF | {"runtimeConfig": None}) == parsed(CONF)


def test_gc_takes_both_spellings() -> None:
    entry = [{"containerID": "c", "ifname": "eth0"}]
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        call = parsed(CONF | {key: entry}, CNI_COMMAND="GC")
        assert [(one.container_id, one.ifname) for one in call.valid or ()] == [("c", "eth0")]
        assert parsed(CONF | {key: None}, CNI_COMMAND="GC").valid == ()
    assert parsed(CNI_COMMAND="GC").valid is None


def test_a_fault_of_ours_has_a_code_too() -> None:
    assert code_of(RuntimeError("x")) == 999
    assert len(set(CODES.values())) == len(CODES)
