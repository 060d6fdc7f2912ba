"""The generated stubs against the published contracts: CSI 1.12.0, the OPI storage API, kubelet's three APIs.

contract.json holds the published facts, taken from the published files and not from ours:
messages {name: {field: [number, type, label]}}, enums {name: {value: number}}, services {name: {method: [in, out]}}.
A label is "", "repeated", "optional" or "oneof NAME"; a map's type is "map<K, V>"; "stream " marks a streamed side.
"""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

FIELD = descriptor_pb2.FieldDescriptorProto
CONTRACT = json.loads(Path(__file__).with_name("contract.json").read_text())
MODULES = {
    "csi.v1": ["csi.csi"],
    "opi_api.storage.v1": [
        f"opi.storage.{name}"
        for name in (
            "opicommon",
            "backend_aio",
            "backend_malloc",
            "backend_null",
            "backend_nvme",
            "frontend_nvme",
            "frontend_virtio_blk",
            "middleend_encryption",
            "middleend_qos_volume",
        )
    ],
    "v1beta1": ["kubelet.deviceplugin.v1beta1.api"],
    "v1": ["kubelet.podresources.v1.api"],
    "pluginregistration": ["kubelet.pluginregistration.v1.api"],
}


def stubs(name: str) -> ModuleType:
    return importlib.import_module(f"dpu_offload_stubs.{name}")


def describe(files: list[Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """The facts of FileDescriptorProtos, in contract.json's form."""
    facts: dict[str, dict[str, dict[str, Any]]] = {"messages": {}, "enums": {}, "services": {}}
    for file in files:
        for message in file.message_type:
            _describe_message(facts, message, f"{file.package}.{message.name}")
        for enum in file.enum_type:
            facts["enums"][f"{file.package}.{enum.name}"] = {value.name: value.number for value in enum.value}
        for service in file.service:
            facts["services"][f"{file.package}.{service.name}"] = {
                method.name: [
                    "stream " * method.client_streaming + method.input_type[1:],
                    "stream " * method.server_streaming + method.output_type[1:],
                ]
                for method in service.method
            }
    return facts


def _describe_message(facts: dict[str, dict[str, dict[str, Any]]], message: Any, name: str) -> None:
    maps = {nested.name: nested.field for nested in message.nested_type if nested.options.map_entry}
    fields = facts["messages"][name] = {}
    for field in message.field:
        entry = maps.get(field.type_name.rpartition(".")[2])
        if entry is not None:
            fields[field.name] = [field.number, f"map<{_type(entry[0])}, {_type(entry[1])}>", ""]
            continue
        label = "repeated" if field.label == FIELD.LABEL_REPEATED else "optional" if field.proto3_optional else ""
        if field.HasField("oneof_index") and not field.proto3_optional:
            label = f"oneof {message.oneof_decl[field.oneof_index].name}"
        fields[field.name] = [field.number, _type(field), label]
    for enum in message.enum_type:
        facts["enums"][f"{name}.{enum.name}"] = {value.name: value.number for value in enum.value}
    for nested in message.nested_type:
        if nested.name not in maps:
            _describe_message(facts, nested, f"{name}.{nested.name}")


def _type(field: Any) -> str:
    return field.type_name[1:] or FIELD.Type.Name(field.type).removeprefix("TYPE_").lower()


def facts_of(package: str) -> dict[str, dict[str, dict[str, Any]]]:
    files = []
    for name in MODULES[package]:
        file = descriptor_pb2.FileDescriptorProto()
        stubs(f"{name}_pb2").DESCRIPTOR.CopyToProto(file)
        files.append(file)
    return describe(files)


@pytest.mark.parametrize("package", MODULES)
@pytest.mark.parametrize("kind", ["messages", "enums", "services"])
def test_generated_stubs_hold_the_published_facts(package: str, kind: str) -> None:
    assert facts_of(package)[kind] == CONTRACT[package][kind]


def test_the_contract_is_complete() -> None:
    """Counts taken from the specifications' text, so that an emptied table cannot pass."""
    methods = {name: len(service) for part in CONTRACT.values() for name, service in part["services"].items()}
    assert methods == {
        "csi.v1.Identity": 3,
        "csi.v1.Controller": 15,
        "csi.v1.GroupController": 4,
        "csi.v1.SnapshotMetadata": 2,
        "csi.v1.Node": 8,
        "opi_api.storage.v1.AioVolumeService": 6,
        "opi_api.storage.v1.MallocVolumeService": 6,
        "opi_api.storage.v1.NullVolumeService": 6,
        "opi_api.storage.v1.NvmeRemoteControllerService": 15,
        "opi_api.storage.v1.FrontendNvmeService": 18,
        "opi_api.storage.v1.FrontendVirtioBlkService": 6,
        "opi_api.storage.v1.MiddleendEncryptionService": 6,
        "opi_api.storage.v1.MiddleendQosVolumeService": 6,
        "v1beta1.Registration": 1,
        "v1beta1.DevicePlugin": 5,
        "v1.PodResourcesLister": 3,
        "pluginregistration.Registration": 2,
    }


@pytest.mark.parametrize("package", MODULES)
def test_every_service_can_be_served_and_called(package: str) -> None:
    for name in MODULES[package]:
        grpc_stubs = stubs(f"{name}_pb2_grpc")
        for service in stubs(f"{name}_pb2").DESCRIPTOR.services_by_name:
            assert hasattr(grpc_stubs, f"{service}Servicer")
            assert hasattr(grpc_stubs, f"{service}Stub")
            assert hasattr(grpc_stubs, f"add_{service}Servicer_to_server")
