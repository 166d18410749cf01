"""Chromium, driven over its DevTools protocol: what a person does, by keys, and what he then sees."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

try:
    from websocket import create_connection
except ImportError:
    create_connection = None

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
LACKING = "there is no Chromium here" if CHROMIUM is None else "websocket-client is not installed" if create_connection is None else None

KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "Space": 32, "ArrowDown": 40, "ArrowUp": 38}


class Page:
    """One tab."""

    def __init__(self, address):
        self.socket, self.number, self.events = create_connection(address, timeout=20, suppress_origin=True), 0, []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """The result of a command; what happens meanwhile is kept in `events`."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self.socket.recv())
            if told.get("id") == self.number:
                assert "error" not in told, told
                return told["result"]
            self.events.append(told)

    def js(self, expression):
        """The value of an expression in the page."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, expression, seconds=20):
        """The value as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"never true: {expression}; the page says {self.js('document.body.innerText')[:2000]}"
            time.sleep(0.05)
        return value

    def go(self, address):
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def key(self, name, modifiers=0):
        """Press and release a key; modifiers: 2 control, 8 shift."""
        text = {"Enter": "\r", "Space": " "}.get(name, "") if not modifiers & 2 else ""
        code = {"key": " " if name == "Space" else name, "code": name, "windowsVirtualKeyCode": KEYS[name], "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **code)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def write(self, text):
        self.call("Input.insertText", text=text)

    def size(self, width, height, dark=False, scale=1):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def picture(self, path, whole=True):
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))

    def complaints(self):
        """Errors that the console, the policy or a script told, and addresses that were asked for outside the server."""
        self.js("1")
        found = [event["params"]["exceptionDetails"] for event in self.events if event["method"] == "Runtime.exceptionThrown"]
        found += [event["params"]["entry"] for event in self.events if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error" and event["params"]["entry"]["source"] != "network"]
        return found

    def asked(self):
        return [event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"]


@contextmanager
def chromium():
    """A tab of a browser of its own, without a window."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        process = subprocess.Popen(
            [CHROMIUM, "--headless=new", *root, "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        try:
            yield Page(_tab(process, Path(profile, "DevToolsActivePort")))
        finally:
            process.terminate()
            process.wait()


def _tab(process, told):
    from urllib.request import urlopen

    end = time.monotonic() + 60
    while not (told.exists() and len(told.read_text().split()) == 2):
        assert process.poll() is None and time.monotonic() < end, "Chromium did not start"
        time.sleep(0.05)
    port = told.read_text().split()[0]
    while True:
        tabs = [one for one in json.load(urlopen(f"http://127.0.0.1:{port}/json")) if one["type"] == "page"]
        if tabs:
            return tabs[0]["webSocketDebuggerUrl"]
        assert time.monotonic() < end
        time.sleep(0.05)
