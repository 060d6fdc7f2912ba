"""A headless Chromium, driven by the DevTools protocol over its own websocket."""

from __future__ import annotations

import asyncio
import base64
import itertools
import shutil
from pathlib import Path
from typing import Any

import aiohttp

START_SECONDS = 40.0
ANSWER_SECONDS = 40.0


def chromium() -> str:
    """Path of the browser; "" where none is installed (Debian: package chromium)."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or ""


class Browser:
    """One page. As an async context manager it starts the browser and ends it."""

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._numbers = itertools.count(1)
        self._session = ""

    async def __aenter__(self) -> Browser:
        self._process = await asyncio.create_subprocess_exec(
            *(chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--remote-debugging-port=0", f"--user-data-dir={self._profile}", "about:blank"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(START_SECONDS):
            address = await self._address()
        self._reading = asyncio.create_task(self._drain())
        self._http = aiohttp.ClientSession()
        self._socket = await self._http.ws_connect(address, max_msg_size=64 << 20)
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._socket.close()
        await self._http.close()
        self._process.terminate()
        await self._process.wait()
        await self._reading

    async def _address(self) -> str:
        assert self._process.stderr is not None
        while line := (await self._process.stderr.readline()).decode():
            if line.startswith("DevTools listening on "):
                return line.removeprefix("DevTools listening on ").strip()
        raise AssertionError("chromium ended before it listened")

    async def _drain(self) -> None:
        assert self._process.stderr is not None
        while await self._process.stderr.read(1 << 16):
            pass

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        await self._socket.send_json(message)
        async with asyncio.timeout(ANSWER_SECONDS):
            while True:
                answer = await self._socket.receive_json()
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    return dict(answer["result"])

    async def open(self, url: str, *, width: int, height: int, mobile: bool) -> None:
        await self.resize(width=width, height=height, mobile=mobile)
        await self.call("Page.navigate", url=url)

    async def resize(self, *, width: int, height: int, mobile: bool) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )

    async def value(self, expression: str) -> Any:
        """What a JavaScript expression is in the page; a promise is awaited."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        """Returns once the expression is true, by the page's own observer of changes."""
        await self.value(
            "new Promise((done) => { const look = () => { if (document.body && (" + expression + ")) done(true); "
            "else setTimeout(look, 50); }; look(); })"
        )

    async def screenshot(self, file: Path) -> None:
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(shot["data"]))
