"""A headless Chromium that tests drive by its DevTools protocol, over pipes: no driver, no port, no package."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time

import cv2
import numpy as np
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 120


class Browser:
    """One Chromium; `open` gives a page."""

    def __init__(self, program: str, folder):
        # Chromium reads commands from file 3 and writes answers to file 4, each ended by a zero byte.
        read_end, self._to = os.pipe()
        self._from, write_end = os.pipe()
        # Away from 3 and 4, or the first redirection could close what the second one needs.
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read_end, write_end)]
        options = [
            "--headless",
            "--no-sandbox",
            "--remote-debugging-pipe",
            "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader",
            "--disable-dev-shm-usage",
            "--no-first-run",
            f"--user-data-dir={folder}",
        ]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{theirs[0]} 4>&{theirs[1]}', program, *options],
            pass_fds=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (read_end, write_end, *theirs):
            os.close(end)
        self._rest, self._count, self.events = b"", 0, []

    def call(self, method: str, session: str | None = None, **parameters) -> dict:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        data = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict:
        while b"\0" not in self._rest:
            assert select.select([self._from], [], [], PATIENCE_S)[0], "Chromium does not answer"
            data = os.read(self._from, 1 << 20)
            assert data, "Chromium has ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, path, before: str = "") -> "Page":
        """The page in `path`; the JavaScript `before` runs ahead of its own."""
        return Page(self, path, before)

    def close(self):
        try:
            self.call("Browser.close")
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._to)
            os.close(self._from)


class Page:
    """A report in the browser, after its charts are drawn."""

    def __init__(self, browser: Browser, path, before: str):
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._target = target
        for domain in ("Runtime", "Page", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=1400, height=2600, deviceScaleFactor=1, mobile=False
        )
        self.call("Page.addScriptToEvaluateOnNewDocument", source=before)
        self.call("Page.navigate", url=path.as_uri())
        self.wait("window.report && window.report.ready")

    def call(self, method: str, **parameters) -> dict:
        return self._browser.call(method, self._session, **parameters)

    def run(self, expression: str):
        """Value of JavaScript."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str):
        end = time.monotonic() + PATIENCE_S
        while not self.run(expression):
            assert time.monotonic() < end, f"{expression} did not come true; {self.complaints()}"
            time.sleep(0.05)

    def complaints(self) -> list:
        """Errors, warnings and refused loads so far."""
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [event["params"] for event in self._events() if event["method"] in kinds]

    def requests(self) -> list[str]:
        """Addresses that the page asked for, but for what it holds itself."""
        sent = [e["params"] for e in self._events() if e["method"] == "Network.requestWillBeSent"]
        urls = [s["request"]["url"] for s in sent]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def _events(self):
        self.run("1")  # takes in what has been said meanwhile
        return [event for event in self._browser.events if event.get("sessionId") == self._session]

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width, height of an element, CSS pixels from the upper left corner of the page."""
        return tuple(
            self.run(
                f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
                "return [b.left, b.top, b.width, b.height]; })()"
            )
        )

    def picture(self, selector: str) -> np.ndarray:
        """(H, W, 3) uint8 RGB of an element as a reader sees it."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        x, y, width, height = self.box(selector)
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        data = base64.b64decode(self.call("Page.captureScreenshot", clip=clip)["data"])
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]

    def mouse(self, kind: str, x: float, y: float, **more):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, selector: str, x: float, y: float):
        """Click at shares (x, y) in [0, 1] of an element's width and height."""
        left, top, width, height = self.box(selector)
        at = left + x * width, top + y * height
        self.mouse("mouseMoved", *at)
        self.mouse("mousePressed", *at, button="left", buttons=1, clickCount=1)
        self.mouse("mouseReleased", *at, button="left", clickCount=1)

    def card(self) -> str:
        """What the page tells of the chosen building."""
        return self.run("document.getElementById('card').innerText")

    def close(self):
        self._browser.call("Target.closeTarget", targetId=self._target)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no Chromium ({', '.join(NAMES)}): install Debian's package chromium to look at pages")
    browser = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()
