# ruff: noqa: E501, flags and scripts for the browser are longer than a line
"""A headless Chromium, driven over the Chrome DevTools Protocol with nothing but the websockets package."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from websockets.sync.client import connect

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

# The last three lines keep it from calling home, which a closed network answers with errors.
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--mute-audio",
    "--force-color-profile=srgb",
    "--enable-unsafe-swiftshader",  # WebGL without a graphics card; all else is as Chromium chooses without one
    "--window-size=1280,800",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--no-proxy-server",
    "--disable-client-side-phishing-detection",
    "--disable-features=Translate,OptimizationHints,MediaRouter",
]


def camera_pictures(picture: Path, shifts: Iterable[int]) -> Iterator[np.ndarray]:
    """(480, 640, 3) BGR: the square picture on grey, `shifts` px from the left."""
    hand = cv2.resize(cv2.imread(str(picture)), (480, 480))
    for shift in shifts:
        frame = np.full((480, 640, 3), 90, np.uint8)
        frame[:, shift : shift + 480] = hand
        yield frame


def write_camera(path: Path, picture: Path, fps: int, shifts: Iterable[int]) -> None:
    """A clip for Chromium's fake camera, as YUV4MPEG2."""
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W640 H480 F{fps}:1 Ip A1:1 C420jpeg\n".encode())
        for frame in camera_pictures(picture, shifts):
            file.write(b"FRAME\n" + cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420).tobytes())


class Page:
    """One tab. `errors` are what its console and its exceptions said."""

    def __init__(self, websocket: Any) -> None:
        self._websocket = websocket
        self._ids = itertools.count(1)
        self.errors: list[str] = []
        self.requested: list[str] = []  # addresses
        for domain in ("Page", "Runtime", "DOM", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, timeout: float = 90, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._websocket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        until = time.monotonic() + timeout
        while True:
            message = json.loads(self._websocket.recv(timeout=max(0.01, until - time.monotonic())))
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._notice(message)

    def _notice(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"])[:800])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.errors.append(json.dumps(parameters["args"])[:800])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requested.append(parameters["request"]["url"])

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        done = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 90) -> Any:
        """Until it is true; its value."""
        until = time.monotonic() + seconds
        while not (value := self.run(expression)):
            assert time.monotonic() < until, (
                f"waited {seconds} s for {expression}; page says {self.text()!r}; {self.errors}"
            )
            time.sleep(0.05)
        return value

    def open(self, url: str, ready: str = "document.getElementById('app')?.dataset.ready === 'true'") -> None:
        self.call("Page.navigate", url=url)
        self.wait_for(ready)

    def text(self) -> str:
        return self.run(
            "document.getElementById('status')?.textContent + ' | ' + document.getElementById('notice-title')?.textContent"
        )

    def click(self, selector: str) -> None:
        """As a finger would: where it is on the screen, so that what lies over it would get it instead."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'nearest'}})")
        x, y = self.run(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        self.drag((x, y), (x, y))

    def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 4) -> None:
        def mouse(kind: str, x: float, y: float, **more: Any) -> None:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

        mouse("mouseMoved", *start)
        mouse("mousePressed", *start, button="left", clickCount=1)
        for step in range(1, steps + 1) if start != end else ():
            share = step / steps
            mouse(
                "mouseMoved", *(a + (b - a) * share for a, b in zip(start, end, strict=True)), button="left", buttons=1
            )
        mouse("mouseReleased", *end, button="left", clickCount=1)

    def press(self, key: str, code: int = 0, **more: Any) -> None:
        text = {"text": key} if len(key) == 1 and not more.get("modifiers") else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code, **more)

    def choose(self, path: Path, selector: str = "#file") -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def drop(self, path: Path, at: tuple[float, float]) -> None:
        """A file, dragged here from a folder."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=at[0], y=at[1], data=data)

    def paste(self, path: Path) -> None:
        """A picture from the clipboard; browsers keep PNG there."""
        origin = self.run("location.origin")
        self.call(
            "Browser.grantPermissions", origin=origin, permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
        )
        png = base64.b64encode(path.read_bytes()).decode()
        self.run(
            "navigator.clipboard.write([new ClipboardItem({'image/png': new Blob([Uint8Array.from(atob("
            f"{png!r}), (c) => c.charCodeAt(0))], {{type: 'image/png'}})}})])"
        )
        self.press("v", 86, modifiers=2, commands=["paste"])

    def resize(self, width: int, height: int, *, mobile: bool = False, ratio: float = 1) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=ratio, mobile=mobile
        )

    def prefer(self, **features: str) -> None:
        """prefer(color_scheme="dark")"""
        named = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=named)

    def screenshot(self, path: Path | None = None) -> bytes:
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            path.write_bytes(png)
        return png


@contextmanager
def chromium(profile: Path, *flags: str) -> Iterator[Page]:
    """A browser with a new profile in the folder `profile`, and its one tab. Downloads land in `profile / "downloads"`."""
    assert CHROMIUM
    log = profile / "chromium.log"
    profile.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"],
            stdout=output,
            stderr=output,
        )
        try:
            port_file = profile / "DevToolsActivePort"
            until = time.monotonic() + 60
            while not (port_file.exists() and port_file.read_text().count("\n") >= 1):
                assert process.poll() is None, log.read_text(errors="replace")[-2000:]
                assert time.monotonic() < until, "Chromium did not start"
                time.sleep(0.05)
            port, path = port_file.read_text().split("\n")[:2]
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, compression=None) as browser:
                browser.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
                answer: dict[str, Any] = {}
                while answer.get("id") != 1:
                    answer = json.loads(browser.recv(timeout=30))
                (target,) = [one for one in answer["result"]["targetInfos"] if one["type"] == "page"][:1]
            address = f"ws://127.0.0.1:{port}/devtools/page/{target['targetId']}"
            with connect(address, max_size=None, compression=None) as tab:
                page = Page(tab)
                downloads = profile / "downloads"
                downloads.mkdir(exist_ok=True)
                page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
                yield page
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
