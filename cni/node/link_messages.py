"""Attachments and their flows as the messages of the link, and back. Pure."""

import re

from cni.link.errors import BadMessage
from cni.node.assignment import Assignment
from cni.node.attachments import Attachment, FunctionRef
from cni.node.datapath import Flow
from cni.node.offload import Count, FlowVerdict, OffloadReport
from cni.node.request import Bandwidth
from dpu_offload_stubs.link.v1 import link_pb2

_ID = re.compile(r"[0-9a-f]{16}")


def to_message(attachment: Attachment) -> link_pb2.Attachment:
    function, assignment, bandwidth = attachment.function, attachment.assignment, attachment.bandwidth
    return link_pb2.Attachment(
        id=attachment.id,
        generation=attachment.generation,
        function=None
        if function is None
        else link_pb2.Function(
            pf=function.pf,
            vf=function.vf,
            controller=function.controller,
            pci_address=function.address,
            card_serial=function.card,
            scalable=function.scalable,
        ),
        pod_namespace=attachment.pod_namespace,
        pod_name=attachment.pod_name,
        pod_uid=attachment.pod_uid,
        port=attachment.port,
        mac=assignment.mac,
        ips=assignment.ips,
        mtu=assignment.mtu,
        sandbox=attachment.container_id,
        network=attachment.network,
        bandwidth=link_pb2.Bandwidth(
            ingress_rate=bandwidth.ingress_rate,
            ingress_burst=bandwidth.ingress_burst,
            egress_rate=bandwidth.egress_rate,
            egress_burst=bandwidth.egress_burst,
        ),
    )


def from_message(message: link_pb2.Attachment, *, host: str) -> Attachment:
    """As a DPU keeps it. Raises BadMessage for what no cni-node sends."""
    if not _ID.fullmatch(message.id):
        raise BadMessage(f"attachment id {message.id!r} is not 16 hexadecimal digits")
    for field in ("pod_namespace", "pod_name", "port", "sandbox", "network"):
        if not getattr(message, field):
            raise BadMessage(f"attachment {message.id} has no {field}")
    if not message.HasField("function"):
        raise BadMessage(f"attachment {message.id} names no function")
    function, bandwidth = message.function, message.bandwidth
    return Attachment(
        id=message.id,
        generation=message.generation,
        phase="adding",
        kind="sf" if function.scalable else "vf",
        container_id=message.sandbox,
        ifname="",
        network=message.network,
        pod_namespace=message.pod_namespace,
        pod_name=message.pod_name,
        pod_uid=message.pod_uid,
        port=message.port,
        assignment=Assignment(ips=tuple(message.ips), mac=message.mac, mtu=message.mtu),
        function=FunctionRef(
            address=function.pci_address,
            pf=function.pf,
            vf=function.vf,
            controller=function.controller,
            card=function.card_serial,
            scalable=function.scalable,
        ),
        bandwidth=Bandwidth(
            ingress_rate=bandwidth.ingress_rate,
            ingress_burst=bandwidth.ingress_burst,
            egress_rate=bandwidth.egress_rate,
            egress_burst=bandwidth.egress_burst,
        ),
        host=host,
    )


def flows_message(report: OffloadReport) -> link_pb2.Flows:
    return link_pb2.Flows(
        hardware=_count_message(report.hardware),
        software=_count_message(report.software),
        listed=[
            link_pb2.Flow(
                match=one.flow.match,
                in_port=one.flow.in_port,
                actions=one.flow.actions,
                outputs=one.flow.outputs,
                packets=one.flow.packets,
                bytes=one.flow.bytes,
                layer=one.flow.layer,
                hardware=one.flow.hardware,
                reason=one.reason,
            )
            for one in report.flows
        ],
    )


def report_of(message: link_pb2.Description) -> OffloadReport:
    return OffloadReport(
        message.representor,
        _count(message.flows.hardware),
        _count(message.flows.software),
        tuple(
            FlowVerdict(
                Flow(
                    match=one.match,
                    in_port=one.in_port,
                    actions=tuple(one.actions),
                    outputs=tuple(one.outputs),
                    packets=one.packets,
                    bytes=one.bytes,
                    layer=one.layer,
                    hardware=one.hardware,
                ),
                one.reason,
            )
            for one in message.flows.listed
        ),
    )


def _count_message(count: Count) -> link_pb2.FlowCount:
    return link_pb2.FlowCount(flows=count.flows, packets=count.packets, bytes=count.bytes)


def _count(message: link_pb2.FlowCount) -> Count:
    return Count(message.flows, message.packets, message.bytes)
