"""A real browser for tests: headless Chromium, spoken to by its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

ROOT = Path(__file__).parents[1]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)


@dataclass(frozen=True)
class Visit:
    """What a browser saw of a page.

    Attributes:
        requests: every URL asked for, `data:` ones left out.
        errors: what the page's console complained of.
        answer: of the script that was evaluated.
        screenshot: a PNG of the whole page.
    """

    answer: Any
    screenshot: bytes
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def chromium() -> tuple[str, dict[str, str]]:
    """A Chromium and its environment: the machine's own, or Debian's in the cache; skips where there is neither."""
    for name in ("chromium", "chromium-headless-shell", "google-chrome"):
        if found := shutil.which(name):
            return found, dict(os.environ)
    done = subprocess.run(
        [ROOT / "scripts" / "debian", "chromium-headless-shell"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no Chromium: {done.stderr.strip()[-300:]}")
    root = Path(done.stdout.strip())
    folders = sorted({str(library.parent) for library in root.rglob("*.so*")})
    binary = root / "usr/lib/chromium/chromium-headless-shell"
    return str(binary), {**os.environ, "LD_LIBRARY_PATH": ":".join(folders)}


def visit(url: str, script: str) -> Visit:
    """Open a page, wait until it has loaded, evaluate a script (an expression, or a promise) and take a picture."""
    binary, environment = chromium()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:  # its processes may still write
        process = subprocess.Popen(
            [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "DevTools listening on" in line:
                    break
            else:
                raise AssertionError("".join(lines))
            port = line.split("ws://127.0.0.1:")[1].split("/")[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=30) as answer:
                [page] = [target for target in json.load(answer) if target["type"] == "page"]
            return asyncio.run(asyncio.wait_for(_visit(page["webSocketDebuggerUrl"], url, script), 60))
        finally:
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()


async def _visit(socket: str, url: str, script: str) -> Visit:
    requests, errors = [], []
    async with aiohttp.ClientSession() as session, session.ws_connect(socket, max_msg_size=0) as page:
        number = 0

        async def until(wanted: int | str) -> Any:
            """Take in events until the answer of that number, or the event of that name."""
            async for message in page:
                event = json.loads(message.data)
                match event.get("method"):
                    case "Network.requestWillBeSent":
                        requests.append(event["params"]["request"]["url"])
                    case "Log.entryAdded":
                        errors.append(event["params"]["entry"]["text"])
                    case "Runtime.exceptionThrown":
                        errors.append(str(event["params"]["exceptionDetails"]))
                if event.get("id") == wanted:
                    assert "error" not in event, event
                    return event["result"]
                if event.get("method") == wanted:
                    return event["params"]
            raise AssertionError("the browser has gone")

        async def call(method: str, **parameters: Any) -> Any:
            nonlocal number
            number += 1
            await page.send_json({"id": number, "method": method, "params": parameters})
            return await until(number)

        for domain in ("Network", "Log", "Runtime", "Page"):
            await call(f"{domain}.enable")
        await call("Page.navigate", url=url)
        await until("Page.loadEventFired")
        result = await call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        picture = await call("Page.captureScreenshot", captureBeyondViewport=True)
    return Visit(
        answer=result["result"].get("value"),
        screenshot=base64.b64decode(picture["data"]),
        requests=[asked for asked in requests if not asked.startswith("data:")],
        errors=errors,
    )
