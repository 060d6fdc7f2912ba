"""Card processes that cannot be had here: JSON-RPC servers with the methods, parameters and answers known of each.

Parameters are checked by name, so that a card driver which sends something else is refused, as by the real process.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Method = Callable[..., Any]


class Refusal(Exception):
    """An error answer."""


class FakeCard:
    """One process; `log` is what was called, in order, without the questions."""

    def __init__(self) -> None:
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.bdevs: dict[str, dict[str, Any]] = {}
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, path: Path) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(path))

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._writers):
                writer.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        text, decoder = "", json.JSONDecoder()
        try:
            while chunk := await reader.read(65536):
                text += chunk.decode()
                while text:
                    try:
                        request, end = decoder.raw_decode(text)
                    except json.JSONDecodeError:
                        break
                    text = text[end:].lstrip()
                    writer.write(json.dumps(self._answer(request)).encode() + b"\n")
        finally:
            self._writers.discard(writer)
            writer.close()

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        answer = {"jsonrpc": "2.0", "id": request["id"]}
        method: Method | None = getattr(self, f"rpc_{request['method']}", None)
        if method is None:
            return {**answer, "error": {"code": -32601, "message": "Method not found"}}
        params = request.get("params", {})
        try:
            result = method(**params)
        except TypeError as error:
            return {**answer, "error": {"code": -32602, "message": f"Invalid parameters: {error}"}}
        except Refusal as error:
            return {**answer, "error": {"code": -32603, "message": str(error)}}
        if not request["method"].endswith(("_list", "_bdevs", "_version")) and "_get_" not in request["method"]:
            self.log.append((request["method"], params))
        return {**answer, "result": result}

    # --- what each of these processes has from SPDK

    def rpc_spdk_get_version(self) -> Any:
        return {"version": "SPDK v24.05"}

    def rpc_bdev_get_bdevs(self, name: str = "", timeout: int = 0) -> Any:
        if not name:
            return list(self.bdevs.values())
        if name not in self.bdevs:
            raise Refusal("No such device")
        return [self.bdevs[name]]

    def rpc_bdev_null_create(self, name: str, num_blocks: int, block_size: int) -> Any:
        self.bdevs[name] = {"name": name, "product_name": "Null disk", "claimed": False}
        return name

    def rpc_bdev_null_delete(self, name: str) -> Any:
        del self.bdevs[name]
        return True

    def rpc_bdev_nvme_get_controllers(self) -> Any:
        return []

    def rpc_keyring_get_keys(self) -> Any:
        return []


class Snap4(FakeCard):
    def __init__(self) -> None:
        super().__init__()
        virtual = [{"vf_index": n, "pci_bdf": f"82:00.{n + 1}", "vuid": f"VF{n}"} for n in range(2)]
        static = {"hotplugged": False, "emulation_type": "NVMe", "pf_index": 0, "pci_bdf": "82:00.0", "vuid": "PF0"}
        self.physical: list[dict[str, Any]] = [{**static, "vfs": virtual}]
        self.subsystems: dict[str, dict[str, Any]] = {}
        self.namespaces: list[dict[str, Any]] = []
        self.controllers: dict[str, dict[str, Any]] = {}

    def _functions(self) -> list[dict[str, Any]]:
        return [one for physical in self.physical for one in (physical, *physical["vfs"])]

    def rpc_emulation_function_list(self, all: bool = False) -> Any:
        for one in self._functions():
            users = [ctrl for ctrl, its in self.controllers.items() if its["vuid"] == one["vuid"]]
            one.pop("ctrl_id", None)
            if users:
                one["ctrl_id"] = users[0]
        return self.physical

    def rpc_nvme_function_create(self) -> Any:
        number = len(self.physical)
        function = {"hotplugged": True, "emulation_type": "NVMe", "pf_index": number, "pci_bdf": "00:00.0"}
        self.physical.append({**function, "vuid": f"HP{number}", "vfs": []})
        return {"vhca_id": number, "vuid": f"HP{number}"}

    def rpc_nvme_subsystem_list(self) -> Any:
        return list(self.subsystems.values())

    def rpc_nvme_namespace_list(self) -> Any:
        return self.namespaces

    def rpc_nvme_controller_list(self) -> Any:
        return list(self.controllers.values())

    def rpc_nvme_subsystem_create(self, nqn: str, mn: str = "", sn: str = "", mnan: int = 0) -> Any:
        self.subsystems[nqn] = {"nqn": nqn, "mn": mn, "sn": sn, "mnan": mnan}
        return True

    def rpc_nvme_subsystem_destroy(self, nqn: str) -> Any:
        if any(one["nqn"] == nqn for one in (*self.namespaces, *self.controllers.values())):
            raise Refusal("Subsystem is busy")
        del self.subsystems[nqn]
        return True

    def rpc_nvme_namespace_create(self, bdev_name: str, nqn: str, nsid: int, uuid: str = "") -> Any:
        self.namespaces.append({"bdev_name": bdev_name, "nqn": nqn, "nsid": nsid, "uuid": uuid})
        return True

    def rpc_nvme_namespace_destroy(self, nqn: str, nsid: int) -> Any:
        if any(nsid in one["namespaces"] for one in self.controllers.values() if one["nqn"] == nqn):
            raise Refusal("Namespace is attached")
        self.namespaces = [one for one in self.namespaces if (one["nqn"], one["nsid"]) != (nqn, nsid)]
        return True

    def rpc_nvme_controller_create(self, nqn: str, vuid: str, suspended: bool, num_queues: int = 0) -> Any:
        name = f"NVMeCtrl{len(self.controllers) + 1}"
        self.controllers[name] = {
            "ctrl_id": name,
            "nqn": nqn,
            "vuid": vuid,
            "suspended": suspended,
            "namespaces": [],
            "plugged": False,
        }
        return {"ctrl_id": name}

    def rpc_nvme_controller_attach_ns(self, ctrl_id: str, nsid: int) -> Any:
        self.controllers[ctrl_id]["namespaces"].append(nsid)
        return True

    def rpc_nvme_controller_detach_ns(self, ctrl_id: str, nsid: int) -> Any:
        self.controllers[ctrl_id]["namespaces"].remove(nsid)
        return True

    def rpc_nvme_controller_resume(self, ctrl_id: str) -> Any:
        self.controllers[ctrl_id]["suspended"] = False
        return True

    def rpc_nvme_controller_suspend(self, ctrl_id: str, timeout_ms: int = 0) -> Any:
        self.controllers[ctrl_id]["suspended"] = True
        return True

    def rpc_nvme_controller_hotplug(self, ctrl_id: str, wait_for_done: bool) -> Any:
        if self.controllers[ctrl_id]["suspended"]:
            raise Refusal("Controller is suspended")
        self.controllers[ctrl_id]["plugged"] = True
        return True

    def rpc_nvme_controller_hotunplug(self, ctrl_id: str, wait_for_done: bool) -> Any:
        self.controllers[ctrl_id]["plugged"] = False
        return True

    def rpc_nvme_controller_destroy(self, ctrl_id: str) -> Any:
        if self.controllers[ctrl_id]["plugged"]:
            raise Refusal("Function is plugged")
        del self.controllers[ctrl_id]
        return True


class Snap3(FakeCard):
    def __init__(self) -> None:
        super().__init__()
        self.subsystems: dict[str, dict[str, Any]] = {}
        self.controllers: dict[str, dict[str, Any]] = {}

    def rpc_emulation_functions_list(self) -> Any:
        physical = {"emulation_type": "nvme", "pf_index": 0, "pci_bdf": "05:00.2"}
        return [physical, {"emulation_type": "nvme", "pf_index": 0, "vf_index": 0, "pci_bdf": "05:00.3"}]

    def rpc_subsystem_nvme_list(self) -> Any:
        return list(self.subsystems.values())

    def rpc_controller_list(self) -> Any:
        return list(self.controllers.values())

    def rpc_subsystem_nvme_create(
        self, nqn: str, serial_number: str, model_number: str, maximum_namespaces: int = 0
    ) -> Any:
        known = {"nqn": nqn, "serial_number": serial_number, "model_number": model_number}
        self.subsystems[nqn] = {**known, "maximum_namespaces": maximum_namespaces}
        return True

    def rpc_subsystem_nvme_delete(self, nqn: str) -> Any:
        del self.subsystems[nqn]
        return True

    def rpc_controller_nvme_create(
        self, emulation_manager: str, nqn: str, pf_id: int, vf_id: int | None = None, nr_io_queues: int = 0
    ) -> Any:
        name = f"NvmeEmu0pf{pf_id}" + ("" if vf_id is None else f"vf{vf_id}")
        place = {"pf_id": pf_id} | ({} if vf_id is None else {"vf_id": vf_id})
        self.controllers[name] = {"name": name, "type": "nvme", "subnqn": nqn, "cntlid": 1, **place, "ns": []}
        return {"name": name, "cntlid": 1}

    def rpc_controller_nvme_namespace_attach(
        self, ctrl: str, bdev_type: str, bdev: str, nsid: int, uuid: str = "", nguid: str = "", eui64: str = ""
    ) -> Any:
        self.controllers[ctrl]["ns"].append(nsid)
        return True

    def rpc_controller_nvme_namespace_detach(self, ctrl: str, nsid: int) -> Any:
        self.controllers[ctrl]["ns"].remove(nsid)
        return True

    def rpc_controller_nvme_delete(self, name: str) -> Any:
        del self.controllers[name]
        return True


class Marvell(FakeCard):
    """Every answer carries `status`; an error is a success of JSON-RPC with another one."""

    def __init__(self) -> None:
        super().__init__()
        self.subsystems: dict[str, dict[str, Any]] = {}

    def rpc_mrvl_nvm_get_subsys_list(self) -> Any:
        return {"status": 0, "subsys_list": [{"subnqn": nqn} for nqn in self.subsystems]}

    def rpc_mrvl_nvm_subsys_get_info(self, subnqn: str) -> Any:
        return {"status": 0, "subsys_list": [self.subsystems[subnqn]["info"]]}

    def rpc_mrvl_nvm_subsys_get_ns_list(self, subnqn: str) -> Any:
        return {"status": 0, "ns_list": [{"ns_instance_id": n} for n in self.subsystems[subnqn]["ns"]]}

    def rpc_mrvl_nvm_ns_get_info(self, subnqn: str, ns_instance_id: int) -> Any:
        return {"status": 0, **self.subsystems[subnqn]["ns"][ns_instance_id]}

    def rpc_mrvl_nvm_subsys_get_ctrlr_list(self, subnqn: str) -> Any:
        return {"status": 0, "ctrlr_id_list": [{"ctrlr_id": n} for n in self.subsystems[subnqn]["ctrlr"]]}

    def rpc_mrvl_nvm_ctrlr_get_info(self, subnqn: str, ctrlr_id: int) -> Any:
        return {"status": 0, **self.subsystems[subnqn]["ctrlr"][ctrlr_id]["place"]}

    def rpc_mrvl_nvm_create_subsystem(self, subnqn: str, mn: str, sn: str, max_namespaces: int = 0) -> Any:
        info = {"subnqn": subnqn, "mn": mn, "sn": sn, "max_namespaces": max_namespaces}
        self.subsystems[subnqn] = {"info": info, "ns": {}, "ctrlr": {}}
        return {"status": 0}

    def rpc_mrvl_nvm_delete_subsystem(self, subnqn: str) -> Any:
        del self.subsystems[subnqn]
        return {"status": 0}

    def rpc_mrvl_nvm_subsys_alloc_ns(
        self, subnqn: str, bdev: str, share_enable: int, uuid: str = "", nguid: str = "", eui64: str = ""
    ) -> Any:
        if bdev == "refused":
            return {"status": 7}
        spaces = self.subsystems[subnqn]["ns"]
        number = max([0, *spaces]) + 1
        spaces[number] = {"bdev": bdev, "uuid": uuid, "nguid": nguid, "eui64": eui64}
        return {"status": 0, "ns_instance_id": number}

    def rpc_mrvl_nvm_subsys_unalloc_ns(self, subnqn: str, ns_instance_id: int) -> Any:
        del self.subsystems[subnqn]["ns"][ns_instance_id]
        return {"status": 0}

    def rpc_mrvl_nvm_subsys_create_ctrlr(
        self,
        subnqn: str,
        pcie_domain_id: int,
        pf_id: int,
        vf_id: int,
        ctrlr_id: int = 0,
        max_nsq: int = 0,
        max_ncq: int = 0,
    ) -> Any:
        number = ctrlr_id or 1
        place = {"pcie_domain_id": pcie_domain_id, "pf_id": pf_id, "vf_id": vf_id}
        self.subsystems[subnqn]["ctrlr"][number] = {"place": place, "ns": []}
        return {"status": 0, "ctrlr_id": number}

    def rpc_mrvl_nvm_subsys_remove_ctrlr(self, subnqn: str, ctrlr_id: int, force: int) -> Any:
        del self.subsystems[subnqn]["ctrlr"][ctrlr_id]
        return {"status": 0}

    def rpc_mrvl_nvm_ctrlr_attach_ns(self, subnqn: str, ctrlr_id: int, ns_instance_id: int) -> Any:
        self.subsystems[subnqn]["ctrlr"][ctrlr_id]["ns"].append(ns_instance_id)
        return {"status": 0}

    def rpc_mrvl_nvm_ctrlr_detach_ns(self, subnqn: str, ctrlr_id: int, ns_instance_id: int) -> Any:
        self.subsystems[subnqn]["ctrlr"][ctrlr_id]["ns"].remove(ns_instance_id)
        return {"status": 0}


class IntelNpi(FakeCard):
    """SPDK's target with one more transport; npi listeners are all it is asked for here."""

    def __init__(self) -> None:
        super().__init__()
        self.subsystems: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, tuple[str, str]] = {}

    def rpc_nvmf_get_subsystems(self, nqn: str = "") -> Any:
        if nqn and nqn not in self.subsystems:
            raise Refusal("No such device")
        return [self.subsystems[nqn]] if nqn else list(self.subsystems.values())

    def rpc_nvmf_create_subsystem(
        self, nqn: str, allow_any_host: bool, serial_number: str = "", model_number: str = "", max_namespaces: int = 32
    ) -> Any:
        known = {"nqn": nqn, "subtype": "NVMe", "listen_addresses": [], "hosts": [], "namespaces": []}
        names = {"serial_number": serial_number, "model_number": model_number, "max_namespaces": max_namespaces}
        self.subsystems[nqn] = {**known, **names}
        return True

    def rpc_nvmf_delete_subsystem(self, nqn: str) -> Any:
        del self.subsystems[nqn]
        return True

    def rpc_nvmf_subsystem_allow_any_host(self, nqn: str, allow_any_host: bool) -> Any:
        return True

    def rpc_nvmf_subsystem_add_ns(self, nqn: str, namespace: dict[str, Any]) -> Any:
        self.subsystems[nqn]["namespaces"].append(namespace)
        return namespace["nsid"]

    def rpc_nvmf_subsystem_remove_ns(self, nqn: str, nsid: int) -> Any:
        spaces = self.subsystems[nqn]["namespaces"]
        self.subsystems[nqn]["namespaces"] = [one for one in spaces if one["nsid"] != nsid]
        return True

    def rpc_nvmf_subsystem_add_listener(self, nqn: str, listen_address: dict[str, str], max_qpairs: int = 0) -> Any:
        self.subsystems[nqn]["listen_addresses"].append(listen_address)
        return True

    def rpc_nvmf_subsystem_remove_listener(self, nqn: str, listen_address: dict[str, str]) -> Any:
        self.subsystems[nqn]["listen_addresses"].remove(listen_address)
        return True

    def rpc_npi_bdev_set_keys(self, uuid: str, key: str, key2: str, cipher: str, tweak: str) -> Any:
        if key == "00" * 16:
            raise Refusal("Invalid key")
        self.keys[uuid] = (key, key2)
        return True

    def rpc_npi_bdev_clear_keys(self, uuid: str) -> Any:
        del self.keys[uuid]
        return True

    def rpc_npi_qos_bw_iops_limit(
        self,
        nqn: str,
        max_read_iops: int,
        max_write_iops: int,
        max_read_bw: int,
        max_write_bw: int,
        min_read_bw: int,
        min_write_bw: int,
    ) -> Any:
        return True
