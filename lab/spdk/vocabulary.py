"""Random conversations with SPDK: requests over few names, right and wrong, so that they meet.

Left out is what hangs or crashes SPDK 26.05: deleting the base of an external snapshot, destroying a key in use.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

_MIB = 1024 * 1024
_SUBSYSTEMS = ("nqn.2026-05.io.test:s1", "nqn.2026-05.io.test:s2", "nqn.2026-05.io.test:s3", "bogus")
_HOSTS = ("nqn.2026-05.io.test:h1", "nqn.2026-05.io.test:h2", "nqn.2014-08.org.nvmexpress:uuid:" + "a" * 8, "h")
_UUIDS = ("44444444-4444-4444-8444-444444444444", "55555555-5555-4555-8555-555555555555", "zz")
_LISTENERS = (
    {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": "4420"},
    {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": "4421"},
    {"trtype": "tcp", "traddr": "127.0.0.1", "trsvcid": "4420"},
    {"trtype": "TCP", "adrfam": "IPv4", "traddr": "10.99.99.99", "trsvcid": "4420"},
    {"trtype": "RDMA", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": "4420"},
)

READS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("bdev_get_bdevs", {}),
    ("bdev_lvol_get_lvstores", {}),
    ("bdev_lvol_get_lvols", {}),
    ("nvmf_get_subsystems", {}),
    ("keyring_get_keys", {}),
    ("accel_crypto_keys_get", {}),
    ("vhost_get_controllers", {}),
    ("bdev_nvme_get_controllers", {}),
    ("nvmf_get_transports", {}),
)


class Vocabulary:
    """``files``: names of sparse files of 64 MiB that exist on either side, as ``/run/spdk/<name>``."""

    def __init__(self, chance: random.Random, files: tuple[str, ...]) -> None:
        self._chance = chance
        self._files = files
        self._makers: list[Callable[[], tuple[str, dict[str, Any]]]] = [
            getattr(self, name) for name in dir(self) if name.startswith("_say_")
        ]

    def request(self) -> tuple[str, dict[str, Any]]:
        method, params = self._chance.choice(self._makers)()
        if self._chance.random() < 0.03 and params:
            # One parameter left out, or one of another type.
            name = self._chance.choice(sorted(params))
            if self._chance.random() < 0.5:
                params = {key: value for key, value in params.items() if key != name}
            else:
                params = {**params, name: self._chance.choice(([], {}, -1, 1.5, True, "", None))}
        return method, params

    def _pick(self, *options: Any) -> Any:
        return self._chance.choice(options)

    def _maybe(self, **options: Any) -> dict[str, Any]:
        return {name: value for name, value in options.items() if self._chance.random() < 0.4}

    def _lvol(self) -> str:
        return f"{self._pick('l1', 'l1', 'l2')}/{self._pick('a', 'b', 'c', 's', 'k')}"

    def _bdev(self) -> str:
        return str(self._pick("m1", "m2", "n1", "f1", "f2", "c1", "none", self._lvol(), self._lvol(), self._lvol()))

    def _say_malloc_create(self) -> tuple[str, dict[str, Any]]:
        return "bdev_malloc_create", {
            "name": self._pick("m1", "m2"),
            "num_blocks": self._pick(8192, 8192, 0),
            "block_size": self._pick(512, 4096, 4096, 1000),
            **self._maybe(uuid=self._pick(*_UUIDS)),
        }

    def _say_malloc_delete(self) -> tuple[str, dict[str, Any]]:
        return "bdev_malloc_delete", {"name": self._pick("m1", "m2", "n1", "none")}

    def _say_null_create(self) -> tuple[str, dict[str, Any]]:
        return "bdev_null_create", {"name": "n1", "num_blocks": 8192, "block_size": self._pick(512, 4096, 513)}

    def _say_null_resize(self) -> tuple[str, dict[str, Any]]:
        return "bdev_null_resize", {"name": self._pick("n1", "m1", "none"), "new_size": self._pick(1, 32, 64, 100)}

    def _say_null_delete(self) -> tuple[str, dict[str, Any]]:
        return "bdev_null_delete", {"name": self._pick("n1", "m1")}

    def _say_aio_create(self) -> tuple[str, dict[str, Any]]:
        name = self._pick(*self._files, "missing")
        return "bdev_aio_create", {
            "name": self._pick("f1", "f2"),
            "filename": f"/run/spdk/{name}",
            "block_size": self._pick(512, 4096, 4096, 4096, 100),
        }

    def _say_aio_delete(self) -> tuple[str, dict[str, Any]]:
        return "bdev_aio_delete", {"name": self._pick("f1", "f2", "m1")}

    def _say_lvstore_create(self) -> tuple[str, dict[str, Any]]:
        return "bdev_lvol_create_lvstore", {
            "bdev_name": self._pick("f1", "f1", "f2", "none"),
            "lvs_name": self._pick("l1", "l1", "l2", "", "x" * 64),
            "clear_method": "none",
            **self._maybe(cluster_sz=self._pick(_MIB, _MIB, 4 * _MIB, 1000)),
        }

    def _say_lvstore_delete(self) -> tuple[str, dict[str, Any]]:
        return "bdev_lvol_delete_lvstore", {"lvs_name": self._pick("l1", "l2", "l2", "none")}

    def _say_lvstore_rename(self) -> tuple[str, dict[str, Any]]:
        return "bdev_lvol_rename_lvstore", {"old_name": self._pick("l1", "l2"), "new_name": self._pick("l1", "l2", "")}

    def _say_lvol_create(self) -> tuple[str, dict[str, Any]]:
        return "bdev_lvol_create", {
            "lvs_name": self._pick("l1", "l1", "l2"),
            "lvol_name": self._pick("a", "b", "c"),
            "size_in_mib": self._pick(0, 1, 4, 5, 8, 1000),
            **self._maybe(thin_provision=True),
        }

    _say_lvol_create_often = _say_lvol_create

    def _say_lvol_delete(self) -> tuple[str, dict[str, Any]]:
        return "bdev_lvol_delete", {"name": self._lvol()}

    def _say_lvol_resize(self) -> tuple[str, dict[str, Any]]:
        return "bdev_lvol_resize", {"name": self._lvol(), "size_in_mib": self._pick(0, 1, 4, 6, 12, 1000)}

    def _say_lvol_snapshot(self) -> tuple[str, dict[str, Any]]:
        return "bdev_lvol_snapshot", {"lvol_name": self._lvol(), "snapshot_name": self._pick("s", "k", "")}

    _say_lvol_snapshot_often = _say_lvol_snapshot

    def _say_lvol_clone(self) -> tuple[str, dict[str, Any]]:
        return "bdev_lvol_clone", {"snapshot_name": self._lvol(), "clone_name": self._pick("a", "b", "c")}

    _say_lvol_clone_often = _say_lvol_clone

    def _say_lvol_inflate(self) -> tuple[str, dict[str, Any]]:
        return "bdev_lvol_inflate", {"name": self._lvol()}

    def _say_lvol_decouple(self) -> tuple[str, dict[str, Any]]:
        return "bdev_lvol_decouple_parent", {"name": self._lvol()}

    def _say_lvol_read_only(self) -> tuple[str, dict[str, Any]]:
        return "bdev_lvol_set_read_only", {"name": self._lvol()}

    def _say_lvol_rename(self) -> tuple[str, dict[str, Any]]:
        return "bdev_lvol_rename", {"old_name": self._lvol(), "new_name": self._pick("a", "b", "k", "")}

    def _say_lvol_set_parent(self) -> tuple[str, dict[str, Any]]:
        return "bdev_lvol_set_parent", {"lvol_name": self._lvol(), "parent_name": self._lvol()}

    def _say_qos(self) -> tuple[str, dict[str, Any]]:
        limits = self._maybe(
            rw_ios_per_sec=self._pick(0, 1, 1500, 20000), rw_mbytes_per_sec=self._pick(0, 7), r_mbytes_per_sec=3
        )
        return "bdev_set_qos_limit", {"name": self._bdev(), **limits}

    def _say_transport(self) -> tuple[str, dict[str, Any]]:
        return "nvmf_create_transport", {"trtype": self._pick("TCP", "tcp", "BOGUS")}

    def _say_subsystem(self) -> tuple[str, dict[str, Any]]:
        return "nvmf_create_subsystem", {
            "nqn": self._pick(*_SUBSYSTEMS),
            **self._maybe(
                allow_any_host=self._pick(True, False),
                serial_number=self._pick("S1", "x" * 21, ""),
                model_number=self._pick("M", "x" * 41, ""),
                max_namespaces=self._pick(0, 2, 8),
                ana_reporting=True,
                min_cntlid=self._pick(0, 5),
                max_cntlid=self._pick(4, 60),
            ),
        }

    _say_subsystem_often = _say_subsystem

    def _say_subsystem_delete(self) -> tuple[str, dict[str, Any]]:
        return "nvmf_delete_subsystem", {"nqn": self._pick(*_SUBSYSTEMS)}

    def _say_add_ns(self) -> tuple[str, dict[str, Any]]:
        namespace = {
            "bdev_name": self._bdev(),
            **self._maybe(
                nsid=self._pick(0, 1, 2, 3, 40),
                uuid=self._pick(*_UUIDS),
                nguid=self._pick("AB" * 16, "ab" * 16, "ABC", ""),
                eui64=self._pick("CD" * 8, "CD", ""),
                anagrpid=self._pick(0, 1, 2, 50),
            ),
        }
        return "nvmf_subsystem_add_ns", {"nqn": self._pick(*_SUBSYSTEMS), "namespace": namespace}

    _say_add_ns_often = _say_add_ns

    def _say_remove_ns(self) -> tuple[str, dict[str, Any]]:
        return "nvmf_subsystem_remove_ns", {"nqn": self._pick(*_SUBSYSTEMS), "nsid": self._pick(0, 1, 2, 3)}

    def _say_add_listener(self) -> tuple[str, dict[str, Any]]:
        return "nvmf_subsystem_add_listener", {
            "nqn": self._pick(*_SUBSYSTEMS),
            "listen_address": self._pick(*_LISTENERS),
            **self._maybe(ana_state=self._pick("optimized", "inaccessible", "bogus")),
        }

    def _say_remove_listener(self) -> tuple[str, dict[str, Any]]:
        return "nvmf_subsystem_remove_listener", {
            "nqn": self._pick(*_SUBSYSTEMS),
            "listen_address": self._pick(*_LISTENERS),
        }

    def _say_get_listeners(self) -> tuple[str, dict[str, Any]]:
        return "nvmf_subsystem_get_listeners", {"nqn": self._pick(*_SUBSYSTEMS)}

    def _say_ana(self) -> tuple[str, dict[str, Any]]:
        return "nvmf_subsystem_listener_set_ana_state", {
            "nqn": self._pick(*_SUBSYSTEMS),
            "listen_address": self._pick(*_LISTENERS),
            "ana_state": self._pick("optimized", "non_optimized", "inaccessible"),
            **self._maybe(anagrpid=self._pick(0, 1, 2, 50)),
        }

    def _say_add_host(self) -> tuple[str, dict[str, Any]]:
        return "nvmf_subsystem_add_host", {
            "nqn": self._pick(*_SUBSYSTEMS),
            "host": self._pick(*_HOSTS),
            **self._maybe(
                dhchap_key=self._pick("k1", "none"),
                dhchap_ctrlr_key=self._pick("k2", "none"),
                psk=self._pick("p1", "none"),
            ),
        }

    def _say_remove_host(self) -> tuple[str, dict[str, Any]]:
        return "nvmf_subsystem_remove_host", {"nqn": self._pick(*_SUBSYSTEMS), "host": self._pick(*_HOSTS)}

    def _say_any_host(self) -> tuple[str, dict[str, Any]]:
        return "nvmf_subsystem_allow_any_host", {
            "nqn": self._pick(*_SUBSYSTEMS),
            "allow_any_host": self._pick(True, False),
        }

    def _say_set_keys(self) -> tuple[str, dict[str, Any]]:
        return "nvmf_subsystem_set_keys", {
            "nqn": self._pick(*_SUBSYSTEMS),
            "host": self._pick(*_HOSTS),
            **self._maybe(dhchap_key=self._pick("k1", "k2", "none"), dhchap_ctrlr_key=self._pick("k1", "k2")),
        }

    def _say_add_key(self) -> tuple[str, dict[str, Any]]:
        name = self._pick("k1", "k2", "p1")
        return "keyring_file_add_key", {"name": name, "path": self._pick(f"/run/spdk/{name}", "/run/spdk/open", "rel")}

    def _say_remove_key(self) -> tuple[str, dict[str, Any]]:
        return "keyring_file_remove_key", {"name": self._pick("k1", "k2", "p1", "none")}

    def _say_crypto_key(self) -> tuple[str, dict[str, Any]]:
        return "accel_crypto_key_create", {
            "name": self._pick("ck", "ck2"),
            "cipher": self._pick("AES_XTS", "AES_XTS", "AES_XTS", "AES_CBC", "BOGUS"),
            "key": self._pick("00" * 16, "00" * 16, "00" * 32, "0", "zz" * 16),
            **self._maybe(tweak_mode="SIMPLE_LBA"),
            "key2": self._pick("11" * 16, "11" * 16, "11" * 32, "00" * 16),
        }

    def _say_crypto_create(self) -> tuple[str, dict[str, Any]]:
        return "bdev_crypto_create", {
            "base_bdev_name": self._bdev(),
            "name": self._pick("c1", "c2", "m1"),
            "key_name": self._pick("ck", "ck2", "none"),
        }

    def _say_crypto_delete(self) -> tuple[str, dict[str, Any]]:
        return "bdev_crypto_delete", {"name": self._pick("c1", "c2", "m1")}

    def _say_vhost_create(self) -> tuple[str, dict[str, Any]]:
        return "vhost_create_blk_controller", {
            "ctrlr": self._pick("v1", "v2"),
            "dev_name": self._bdev(),
            **self._maybe(readonly=True),
        }

    def _say_vhost_delete(self) -> tuple[str, dict[str, Any]]:
        return "vhost_delete_controller", {"ctrlr": self._pick("v1", "v2", "none")}
