"""Telling watchers what changed, each volume's latest word only."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Final

from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb

# Seconds for which changes are gathered: a volume that is attached or detached has several within a moment.
_MOMENT: Final = 0.1


class Board:
    """The attachments as last published, and who wants to hear of changes."""

    def __init__(self) -> None:
        self._shown: dict[str, pb.Attachment] = {}
        self._watchers: set[_Watcher] = set()

    @property
    def shown(self) -> Mapping[str, pb.Attachment]:
        return self._shown

    def publish(self, attachment: pb.Attachment) -> None:
        if self._shown.get(attachment.volume_id) == attachment:
            return
        self._shown[attachment.volume_id] = attachment
        self._tell(attachment.volume_id, pb.WatchEvent(attachment=attachment))

    def remove(self, volume_id: str) -> None:
        if self._shown.pop(volume_id, None) is not None:
            gone = pb.WatchEvent(attachment=pb.Attachment(volume_id=volume_id), deleted=True)
            self._tell(volume_id, gone)

    def _tell(self, volume_id: str, event: pb.WatchEvent) -> None:
        for watcher in self._watchers:
            watcher.pending[volume_id] = event
            watcher.wake.set()

    async def watch(self) -> AsyncIterator[pb.WatchEvent]:
        """Everything as it stands, a marker, then changes; a slow reader misses intermediate states only."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            for attachment in list(self._shown.values()):
                yield pb.WatchEvent(attachment=attachment)
            yield pb.WatchEvent(synced=True)
            while True:
                await watcher.wake.wait()
                await asyncio.sleep(_MOMENT)
                watcher.wake.clear()
                events, watcher.pending = watcher.pending, {}
                for event in events.values():
                    yield event
        finally:
            self._watchers.discard(watcher)


class _Watcher:
    def __init__(self) -> None:
        self.pending: dict[str, pb.WatchEvent] = {}
        self.wake = asyncio.Event()
