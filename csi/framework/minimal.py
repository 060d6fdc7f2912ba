"""What a backend answers that can do no more than create, delete, list, grant and revoke: the others refuse."""

import abc
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from csi.errors import InvalidArgument, Unsupported
from csi.framework.backend import Capabilities, Capacity, Condition, Finding, Qos, Segments, SizeRange, Snapshot, Volume

P = TypeVar("P", bound=msgspec.Struct)


class MinimalBackend(abc.ABC, Generic[P]):
    """To be derived from. Each capability that a backend declares brings the verbs that belong to it; `garbage` needs
    none, but without it what broken-off work leaves stays."""

    name: str

    @abc.abstractmethod
    async def get(self, key: str) -> Volume:
        """As `csi.framework.backend` says; `health` asks it."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities()

    async def start(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to let go."""

    def on_return(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Who does not notice that the storage was away is compared with Kubernetes on the slow beat."""

    async def expand(self, key: str, size: SizeRange) -> Volume:
        raise InvalidArgument(f"backend {self.name} cannot make volumes larger")

    async def set_qos(self, key: str, qos: Qos) -> None:
        raise InvalidArgument(f"backend {self.name} has no quality of service")

    async def snapshot(self, token: str, source_key: str) -> Snapshot:
        raise InvalidArgument(f"backend {self.name} takes no snapshots")

    async def delete_snapshot(self, key: str) -> None:
        """There are none."""

    async def snapshot_group(self, token: str, source_keys: Sequence[str]) -> Sequence[Snapshot]:
        raise InvalidArgument(f"backend {self.name} cannot snapshot several volumes at one instant")

    async def delete_group(self, key: str) -> None:
        """There are none."""

    async def snapshots(self) -> Sequence[Snapshot]:
        return []

    async def capacity(self, parameters: P | None, topology: Segments | None) -> Capacity:
        raise Unsupported(f"backend {self.name} does not tell how much space it has")

    async def health(self, key: str) -> Condition:
        volume = await self.get(key)
        if not volume.exported:
            return Condition(abnormal=True, message=f"the storage does not offer volume {self.name}:{key}")
        return Condition(abnormal=False, message=f"{volume.size} bytes, {len(volume.hosts)} host(s) let in")

    async def garbage(self) -> Sequence[Finding]:
        return []

    async def remove(self, finding: Finding) -> None:
        """Nothing was found."""
