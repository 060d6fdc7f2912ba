"""cni-node with one point that fails or kills the process when a test asks for it.

The file that `CNI_NODE_FAULT` names holds `<kill|fail> <point> <before|after> <n>`: at the n-th passing of the point
since the file was written the process gets SIGKILL, or the point raises what it raises in real life. An empty file, or
none, changes nothing. Points are the functions below by their names; the product has no such hooks.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cni.link.client import LinkClient
from cni.link.errors import PeerAway
from cni.node import app, links
from cni.node.attachments import AttachmentStore
from cni.node.errors import InputFailed, LinkFailed, SwitchFailed, TryLater
from cni.node.host_pods import HostPods
from cni.node.switch import Switch

_FILE = Path(os.environ["CNI_NODE_FAULT"])

POINTS: dict[str, tuple[Any, str, Callable[[], Exception]]] = {
    "write": (AttachmentStore, "_write", lambda: OSError(28, "No space left on device")),
    "create_veth": (links, "create_veth", lambda: LinkFailed("injected")),
    "configure": (links, "configure", lambda: LinkFailed("injected")),
    "move": (links, "move", lambda: LinkFailed("injected")),
    "remove_altnames": (links, "remove_altnames", lambda: LinkFailed("injected")),
    "plug": (Switch, "plug", lambda: SwitchFailed("injected")),
    "installed": (Switch, "installed", lambda: SwitchFailed("injected")),
    "delete": (links, "delete", lambda: LinkFailed("injected")),
    "restore": (links, "restore_altnames", lambda: LinkFailed("injected")),
    "unplug": (Switch, "unplug", lambda: TryLater("injected")),
    "forget": (AttachmentStore, "remove", lambda: InputFailed("injected")),
    "link_unplug": (LinkClient, "unplug", lambda: PeerAway("injected")),
    "link_plug": (LinkClient, "plug", lambda: PeerAway("injected")),
    "permitted": (HostPods, "_permitted", lambda: SwitchFailed("injected")),
}


class _Fault:
    def __init__(self) -> None:
        self._text = ""
        self._left = 0

    def reached(self, point: str, when: str, error: Callable[[], Exception]) -> None:
        try:
            text = _FILE.read_text()
        except FileNotFoundError:
            return
        if not text.strip():
            return
        kind, wanted, moment, number = text.split()
        if text != self._text:
            self._text, self._left = text, int(number)
        if (wanted, moment) != (point, when) or self._left == 0:
            return
        self._left -= 1
        if self._left:
            return
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise error()


def _install(fault: _Fault) -> None:
    for point, (owner, name, error) in POINTS.items():
        original = getattr(owner, name)

        def around(original: Any = original, point: str = point, error: Callable[[], Exception] = error) -> Any:
            if inspect.iscoroutinefunction(original):

                @functools.wraps(original)
                async def later(*arguments: Any, **options: Any) -> Any:
                    fault.reached(point, "before", error)
                    found = await original(*arguments, **options)
                    fault.reached(point, "after", error)
                    return found

                return later

            @functools.wraps(original)
            def at_once(*arguments: Any, **options: Any) -> Any:
                fault.reached(point, "before", error)
                found = original(*arguments, **options)
                fault.reached(point, "after", error)
                return found

            return at_once

        setattr(owner, name, around())


if __name__ == "__main__":
    _install(_Fault())
    app.main()
