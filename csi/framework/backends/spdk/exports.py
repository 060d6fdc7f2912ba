"""NVMe-oF subsystems of volumes: one a volume, NSID 1, no host but those let in by name.

nvmf calls refuse with texts that say nothing, so each step looks first and then does only what is missing.
"""

import msgspec

from csi import identity
from csi.errors import FailedPrecondition, Internal
from csi.framework.backend import HostKeys, Portal, Qos
from csi.framework.backends.spdk.calls import Target, translate, translated
from csi.framework.backends.spdk.config import Listening
from csi.framework.backends.spdk.keyring import Keyring
from csi.framework.backends.spdk.records import Subsystem
from foundation.spdk.errors import SpdkClientError, SpdkError


class Exports:
    """The subsystems of one target."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._transports: set[str] = set()
        # A restarted target has lost them.
        target.client.on_connect(self._transports.clear)

    async def find(self, nqn: str) -> Subsystem | None:
        try:
            found = await self._target.ask(list[Subsystem], "nvmf_get_subsystems", {"nqn": nqn})
        except SpdkError as error:
            if error.missing:
                return None
            raise translate(error, f"look up subsystem {nqn}") from error
        return found[0] if found else None

    async def all(self) -> dict[str, Subsystem]:
        """Subsystems with a volume NQN of ours, by NQN."""
        with translated("list subsystems"):
            found = await self._target.ask(list[Subsystem], "nvmf_get_subsystems")
        return {each.nqn: each for each in found if identity.volume_of_nqn(each.nqn) is not None}

    async def ensure(
        self, volume: identity.VolumeId, bdev: str, listening: Listening, *, known: Subsystem | None, secure: bool
    ) -> None:
        """Makes what is missing of subsystem, namespace and listeners. `known`: what a look has just shown.

        `secure`: with TLS and not without. Listeners of the other sort go first.
        """
        portals = listening.at(secure=secure)
        await self._ensure_transports(portals)
        nqn = identity.subsystem_nqn(volume)
        calls: list[tuple[str, dict[str, object]]] = []
        if known is None:
            calls.append(
                (
                    "nvmf_create_subsystem",
                    {
                        "nqn": nqn,
                        "serial_number": identity.serial_number(volume),
                        "model_number": identity.MODEL_NUMBER,
                        "allow_any_host": False,
                        "max_namespaces": 1,
                    },
                )
            )
        elif known.allow_any_host:
            calls.append(("nvmf_subsystem_allow_any_host", {"nqn": nqn, "allow_any_host": False}))
        if known is None or not any(space.nsid == identity.REMOTE_NSID for space in known.namespaces):
            space = {
                "bdev_name": bdev,
                "nsid": identity.REMOTE_NSID,
                "uuid": identity.namespace_uuid(volume),
                "nguid": identity.nguid(volume),
            }
            calls.append(("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": space}))
        calls.extend(
            ("nvmf_subsystem_remove_listener", {"nqn": nqn, "listen_address": _address(portal)})
            for portal in listening.at(secure=not secure)
            if known is not None and known.listens_at(portal)
        )
        calls.extend(
            ("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": _address(portal), "secure_channel": secure})
            for portal in portals
            if known is None or not known.listens_at(portal)
        )
        if not calls:
            return
        failed = [result for result in await self._target.together(calls) if isinstance(result, SpdkClientError)]
        if failed:
            raise translate(failed[0], f"export volume {volume} as {nqn}") from failed[0]

    async def silence(self, subsystem: Subsystem) -> None:
        """Cuts every host's connections, until `ensure` brings the listeners back; who is let in stays so."""
        for address in subsystem.listen_addresses:
            listener = {
                "trtype": address.trtype,
                "adrfam": address.adrfam,
                "traddr": address.traddr,
                "trsvcid": address.trsvcid,
            }
            await self._target.do(
                f"interrupt {subsystem.nqn}",
                "nvmf_subsystem_remove_listener",
                {"nqn": subsystem.nqn, "listen_address": listener},
            )

    async def remove(self, nqn: str) -> None:
        try:
            await self._target.ask(bool, "nvmf_delete_subsystem", {"nqn": nqn})
        except SpdkError as error:
            if await self.find(nqn) is not None:
                raise translate(error, f"delete subsystem {nqn}") from error

    async def admit(self, subsystem: Subsystem, host: str, *, keys: HostKeys, keyring: Keyring | None) -> None:
        """Lets `host` in, with `keys` if any; new keys for authentication replace those it had, without a break."""
        named: dict[str, str] = {}
        if keys:
            if keyring is None:
                raise FailedPrecondition(
                    f"{subsystem.nqn}: the volume's pool has no key_directory, so no secrets can be given to its target"
                )
            named = await keyring.put(subsystem.nqn, host, keys)
        params: dict[str, object] = {"nqn": subsystem.nqn, "host": host, **named}
        present = next((other for other in subsystem.hosts if other.nqn == host), None)
        try:
            if present is None:
                await self._target.ask(bool, "nvmf_subsystem_add_host", params)
            elif named.get("dhchap_key"):
                rotation = {key: value for key, value in params.items() if key != "psk"}
                await self._target.ask(bool, "nvmf_subsystem_set_keys", rotation)
        except SpdkError as error:
            raise translate(error, f"let host {host} into {subsystem.nqn}") from error
        if present is not None and keyring is not None:
            await keyring.drop_stale(subsystem.nqn, host, keep=named.values())

    async def expel(self, nqn: str, host: str, *, keyring: Keyring | None) -> None:
        """Cuts the host off. Succeeds when subsystem or host are gone; raises when it cannot be known."""
        try:
            await self._target.ask(bool, "nvmf_subsystem_remove_host", {"nqn": nqn, "host": host})
        except SpdkError as error:
            subsystem = await self.find(nqn)
            if subsystem is not None and any(other.nqn == host for other in subsystem.hosts):
                raise translate(error, f"cut host {host} off {nqn}") from error
        if keyring is not None:
            await keyring.drop_stale(nqn, host, keep=())

    async def limit(self, bdev: str, qos: Qos) -> None:
        """SPDK takes limits at any time only for an exported bdev, which every volume of ours is."""
        params = {
            "name": bdev,
            "rw_ios_per_sec": qos.read_write_iops,
            "rw_mbytes_per_sec": qos.read_write_mb_per_second,
            "r_mbytes_per_sec": qos.read_mb_per_second,
            "w_mbytes_per_sec": qos.write_mb_per_second,
        }
        await self._target.do(f"set limits of {bdev}", "bdev_set_qos_limit", params)

    async def _ensure_transports(self, portals: tuple[Portal, ...]) -> None:
        for name in sorted({portal.transport for portal in portals} - self._transports):
            trtype = name.upper()
            with translated(f"look for transport {trtype}"):
                present = await self._target.ask(list[_Transport], "nvmf_get_transports")
            if not any(transport.trtype.lower() == name for transport in present):
                try:
                    await self._target.ask(bool, "nvmf_create_transport", {"trtype": trtype})
                except SpdkError as error:
                    if not error.exists:
                        raise Internal(f"create transport {trtype} at {self._target.address}: {error}") from error
            self._transports.add(name)


class _Transport(msgspec.Struct, frozen=True):
    trtype: str


def _address(portal: Portal) -> dict[str, str]:
    return {
        "trtype": portal.transport.upper(),
        "adrfam": "IPv6" if ":" in portal.address else "IPv4",
        "traddr": portal.address,
        "trsvcid": str(portal.port),
    }
