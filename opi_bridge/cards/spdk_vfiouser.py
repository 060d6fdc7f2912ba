"""SPDK which emulates NVMe controllers on vfio-user sockets, one directory a function.

A function's socket is ``<directory>/pf<P>vf<V>/cntrl``; its directory is there as long as the function is plugged in,
also over a restart of SPDK. Facts this rests on (SPDK 26.05): the directory must exist; a
socket left by a killed process makes add_listener fail; a second subsystem may listen in a used directory, which breaks
both; the host's NQN on such a socket is empty, so only allow_any_host lets it in. The socket's directory is the guard.
Sockets lie on a tmpfs, so that making and removing their directories waits for no disk: a thread would only cost more.
"""

import asyncio
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from foundation.daemon.sharing import SharedRead
from foundation.spdk.errors import SpdkError
from opi_bridge.cards.model import VFIOUSER, Capabilities, Controller, Function, Namespace, Slot
from opi_bridge.cards.qmp import Plug
from opi_bridge.cards.spdk_nvmf import SpdkNvmfCard
from opi_bridge.errors import AlreadyExists, FailedPrecondition
from opi_bridge.session import Session

log: Final = logging.getLogger(__name__)


class SpdkVfioUserCard(SpdkNvmfCard):
    """With `plug`, a controller is hot-plugged into a running guest, and out of it before its socket goes.

    Without, a host that holds the controller gets `settle` seconds to drop its disks before that is taken away.
    """

    def __init__(
        self,
        session: Session,
        functions: Sequence[Function],
        *,
        directory: Path,
        settle: float = 0.0,
        plug: Plug | None = None,
    ) -> None:
        super().__init__(session, functions)
        self._directory = directory
        self._pattern = re.compile(re.escape(f"{directory}/pf") + r"(\d+)vf(\d+)")
        self._fresh_look = SharedRead(self._read)
        self._settle = settle
        # When the last namespace of a subsystem was taken from its host; -inf: it had none.
        self._removed: dict[str, float] = {}
        self._plug = plug
        self._capabilities = Capabilities(
            card="spdk_vfiouser",
            hotplug=plug is not None,
            vuid=any(function.vuid for function in functions),
            fabrics=True,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def listen_address(self, slot: Slot) -> dict[str, str]:
        return {"trtype": VFIOUSER, "traddr": str(self._place(slot)), "trsvcid": "0"}

    def _place(self, slot: Slot) -> Path:
        return self._directory / f"pf{slot.pf}vf{slot.vf}"

    def slot_of(self, address: Mapping[str, str]) -> Slot | None:
        if address["trtype"].upper() != VFIOUSER:
            return None
        match = self._pattern.fullmatch(address["traddr"])
        return Slot(0, int(match[1]), int(match[2])) if match else None

    async def before_listening(self, slot: Slot) -> None:
        socket = self._place(slot) / "cntrl"
        try:
            taken = _make_place(socket)
        except FileExistsError as error:
            raise AlreadyExists(
                f"no directory, but something else is in the place of function {slot}: {error}"
            ) from error
        except OSError as error:
            raise FailedPrecondition(f"function {slot} has no place for its socket: {error}") from error
        if taken:
            # Somebody's socket is in the way. It is stale only if a fresh look finds nobody listening.
            for subsystem in await self._fresh_look():
                if subsystem.controller(slot) is not None:
                    raise AlreadyExists(f"function {slot} carries a controller of subsystem {subsystem.nqn} already")
            socket.unlink(missing_ok=True)

    async def after_listening(self, slot: Slot) -> None:
        if self._plug is not None:
            await self._plug.remove(slot)
        _clear_place(self._place(slot) / "cntrl")

    async def expose(self, controller: Controller) -> None:
        if self._plug is not None and isinstance(controller.endpoint, Slot):
            await self._plug.add(controller.endpoint, self._place(controller.endpoint) / "cntrl")

    async def hide(self, controller: Controller) -> None:
        if not isinstance(controller.endpoint, Slot):
            return
        if self._plug is not None:
            await self._plug.remove(controller.endpoint)
            return
        # Nothing tells when the host has dropped the namespaces that were removed just before; a controller that goes
        # earlier leaves it with commands that nobody answers.
        removed = self._removed.pop(controller.nqn, None)
        if removed is None:
            removed = _now() if await self._has_host(controller.nqn) else -math.inf
        if (rest := removed + self._settle - _now()) > 0:
            await asyncio.sleep(rest)

    async def delete_namespace(self, nqn: str, namespace: Namespace) -> bool:
        if self._plug is not None:
            return await super().delete_namespace(nqn, namespace)
        has_host, removed = await asyncio.gather(self._has_host(nqn), super().delete_namespace(nqn, namespace))
        self._removed[nqn] = _now() if has_host else -math.inf
        return removed

    async def _has_host(self, nqn: str) -> bool:
        try:
            return bool(await self._session.call("nvmf_subsystem_get_controllers", {"nqn": nqn}))
        except SpdkError:
            return False


def _now() -> float:
    return asyncio.get_running_loop().time()


def _clear_place(socket: Path) -> None:
    """Remove the socket's directory: whoever connects guests sees by that that the function is unplugged.

    What others put there stays, and is no reason to keep a controller.
    """
    try:
        socket.unlink(missing_ok=True)
        socket.parent.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("the directory of a function's socket could not be removed: %s", error)


def _make_place(socket: Path) -> bool:
    """Make the socket's directory; True if a socket lies there."""
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return socket.exists()
