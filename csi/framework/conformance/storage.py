"""What the suite is told about the backend under test."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from csi import identity
from csi.framework.backend import NO_LIMITS, Backend, Qos, SizeRange, Source, VolumeSpec

MIB = 1 << 20


@dataclass
class Storage:
    """`volume_bytes` is a small size that the backend gives exactly; `restart` stops and starts the storage itself,
    data kept and everything else lost (None: the suite leaves that out); `limits` a Qos that the backend takes."""

    backend: Backend[Any]
    parameters: Any
    volume_bytes: int = 16 * MIB
    restart: Callable[[], Awaitable[None]] | None = None
    limits: Qos = NO_LIMITS
    hosts: tuple[str, str, str] = field(
        default_factory=lambda: (identity.host_nqn("one"), identity.host_nqn("two"), identity.host_nqn("three"))
    )

    def spec(
        self, name: str, *, size: int = 0, limit: int = 0, source: Source | None = None, **more: Any
    ) -> VolumeSpec[Any]:
        return VolumeSpec(
            token=identity.hashed(name),
            size=SizeRange(size or self.volume_bytes, limit),
            parameters=self.parameters,
            source=source,
            **more,
        )
