"""What framework_get_config tells: the calls that would bring the state back, without volumes, which live on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lab.spdk.controllers import DEFAULT_OPTIONS, Path
from lab.spdk.crypto import CryptoBdev
from lab.spdk.disks import AioBdev, MallocBdev, NullBdev
from lab.spdk.subsystems import Subsystem

if TYPE_CHECKING:
    from lab.spdk.bdevs import Bdev
    from lab.spdk.instance import Instance


def _call(method: str, **params: Any) -> dict[str, Any]:
    return {"method": method, "params": params}


def subsystem_config(instance: Instance, name: str) -> list[dict[str, Any]] | None:
    """In the order in which the calls have to be made; None for a subsystem that has nothing to tell."""
    if name == "bdev":
        return _bdev(instance)
    if name == "nvmf":
        return _nvmf(instance)
    if name == "keyring":
        return [
            _call("keyring_file_add_key", name=key["name"], path=key["path"])
            for key in instance.keyring.list()
            if not key["removed"]
        ]
    if name == "vhost_blk":
        return [
            _call("vhost_create_blk_controller", ctrlr=it.name, dev_name=it.bdev.name, cpumask=f"{it.cpumask:#x}")
            for it in instance.vhost.controllers.values()
            if it.bdev is not None
        ]
    return None if name in ("scsi", "vfio_user_target") else []


def _bdev(instance: Instance) -> list[dict[str, Any]]:
    calls = [
        _call(
            "bdev_set_options",
            bdev_io_pool_size=65535,
            bdev_io_cache_size=256,
            bdev_auto_examine=True,
            iobuf_small_cache_size=128,
            iobuf_large_cache_size=16,
        ),
        _call("bdev_raid_set_options", process_window_size_kb=1024, process_max_bandwidth_mb_sec=0),
        _call("bdev_nvme_set_options", **instance.controllers.options),
        _call("bdev_nvme_set_hotplug", period_us=100000, enable=False),
    ]
    for controller in instance.controllers.all.values():
        calls += [_path(controller.name, path) for path in controller.paths]
    for bdev in instance.bdevs:
        made = _disk(bdev)
        if made is not None:
            calls.append(made)
    for bdev in instance.bdevs:
        if any(bdev.limits.values()):
            calls.append(_call("bdev_set_qos_limit", name=bdev.name, **bdev.limits))
    return [*calls, {"method": "bdev_wait_for_examine"}]


def _path(name: str, path: Path) -> dict[str, Any]:
    return _call(
        "bdev_nvme_attach_controller",
        name=name,
        **path.trid.describe(),
        hostnqn=path.credentials.hostnqn,
        ctrlr_loss_timeout_sec=path.times.loss,
        reconnect_delay_sec=path.times.delay,
        fast_io_fail_timeout_sec=path.times.fast_fail,
    )


def _disk(bdev: Bdev) -> dict[str, Any] | None:
    if isinstance(bdev, AioBdev):
        return _call(
            "bdev_aio_create",
            name=bdev.name,
            block_size=bdev.block_size,
            filename=bdev.filename,
            readonly=bdev.readonly,
            fallocate=False,
            uuid=bdev.uuid,
            nowait=False,
        )
    if isinstance(bdev, MallocBdev | NullBdev):
        return _call(
            "bdev_malloc_create" if isinstance(bdev, MallocBdev) else "bdev_null_create",
            name=bdev.name,
            num_blocks=bdev.num_blocks,
            block_size=bdev.block_size,
            uuid=bdev.uuid,
        )
    if isinstance(bdev, CryptoBdev):
        return _call("bdev_crypto_create", base_bdev_name=bdev.base.name, name=bdev.name, key_name=bdev.key.name)
    return None


def _nvmf(instance: Instance) -> list[dict[str, Any]]:
    passthrough = (
        "identify_ctrlr identify_uuid_list get_log_page get_set_features sanitize security_send_recv fw_update "
        "nvme_mi vendor_specific"
    )
    calls = [
        _call(
            "nvmf_set_config",
            discovery_filter="match_any",
            admin_cmd_passthru=dict.fromkeys(passthrough.split(), False),
            dhchap_digests=DEFAULT_OPTIONS["dhchap_digests"],
            dhchap_dhgroups=DEFAULT_OPTIONS["dhchap_dhgroups"],
            dup_host_policy="allow",
        ),
        _call("nvmf_set_max_subsystems", max_subsystems=1024),
        _call("nvmf_set_crdt", crdt1=0, crdt2=0, crdt3=0),
        *(_call("nvmf_create_transport", **options) for options in instance.subsystems.transports.values()),
    ]
    for subsystem in instance.subsystems.sorted():
        if subsystem.subtype == "NVMe":
            calls += _subsystem(subsystem)
    return calls


def _subsystem(subsystem: Subsystem) -> list[dict[str, Any]]:
    nqn = subsystem.nqn
    calls = [
        _call(
            "nvmf_create_subsystem",
            nqn=nqn,
            allow_any_host=subsystem.allow_any_host,
            serial_number=subsystem.serial,
            model_number=subsystem.model,
            max_namespaces=subsystem.max_namespaces,
            min_cntlid=subsystem.min_cntlid,
            max_cntlid=subsystem.max_cntlid,
            ana_reporting=subsystem.ana_reporting,
            dmrsl=subsystem.dmrsl,
            wzsl=subsystem.wzsl,
            passthrough=subsystem.passthrough,
            enable_nssr=False,
        )
    ]
    calls += [_call("nvmf_subsystem_add_host", nqn=nqn, host=host.nqn) for host in subsystem.hosts]
    for nsid in sorted(subsystem.namespaces):
        it = subsystem.namespaces[nsid]
        namespace = {"nsid": nsid, "bdev_name": it.bdev.name, "nguid": it.nguid, "uuid": it.uuid}
        if it.eui64:
            namespace["eui64"] = it.eui64
        if subsystem.ana_reporting:
            namespace["anagrpid"] = it.anagrpid
        calls.append(_call("nvmf_subsystem_add_ns", nqn=nqn, namespace={**namespace, "no_auto_visible": False}))
    calls += [
        _call("nvmf_subsystem_add_listener", nqn=nqn, listen_address=it.address, secure_channel=it.secure)
        for it in subsystem.listeners
    ]
    return calls
