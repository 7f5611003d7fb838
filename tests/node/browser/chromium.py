"""A headless Chromium, driven over a pipe by its own protocol: no driver, no port, nothing to install besides."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

_END_S = 10.0  # for it to end by itself, with all its processes
FOUND = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Page:
    """One tab. What its page logs as an error, and what it breaks of its policy, is kept in ``troubles``."""

    to: BinaryIO
    come: BinaryIO
    session: str = ""
    troubles: list[str] = field(default_factory=list)
    sent: int = 0

    def ask(self, method: str, **params: Any) -> Any:
        self.sent += 1
        asked = {"id": self.sent, "method": method, "params": params}
        self.to.write(json.dumps(asked | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        self.to.flush()
        while True:
            said = self._next()
            if said.get("id") == self.sent:
                assert "error" not in said, said
                return said["result"]

    def _next(self) -> Any:
        data = bytearray()
        while (byte := self.come.read(1)) != b"\0":
            assert byte, "the browser is gone"
            data += byte
        said = json.loads(data)
        match said.get("method"):
            case "Runtime.exceptionThrown":
                self.troubles.append(json.dumps(said["params"]["exceptionDetails"])[:600])
            case "Log.entryAdded" if said["params"]["entry"]["level"] == "error":
                self.troubles.append(json.dumps(said["params"]["entry"])[:600])
            case "Page.javascriptDialogOpening":
                self.troubles.append(f"a dialog: {said['params']['message']}")
        return said

    def go(self, url: str) -> None:
        self.ask("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """Return what a script gives; a promise is waited for."""
        said = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def until(self, condition: str, patience_s: float = 60.0) -> Any:
        """Wait, on the page, until a condition holds; it looks whenever the page changes, and four times a second."""
        look = f"""new Promise((resolve, reject) => {{
          const look = () => {{
            let found = false;
            try {{ found = ({condition}); }} catch {{ return; }}
            if (found) {{ done(); resolve(found); }}
          }};
          const watch = new MutationObserver(look);
          watch.observe(document, {{ subtree: true, childList: true, attributes: true }});
          const again = setInterval(look, 250);
          const never = () => {{
            done();
            reject(new Error("never: " + {json.dumps(condition)} + document.body.innerText.slice(0, 800)));
          }};
          const end = setTimeout(never, {patience_s * 1000});
          const done = () => {{ watch.disconnect(); clearInterval(again); clearTimeout(end); }};
          look();
        }})"""
        return self.run(look)

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        wanted = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=wanted)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        said = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(said["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Open one page until the block ends."""
    assert FOUND is not None
    to_read, to_write = os.pipe()
    come_read, come_write = os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"]

    def join() -> None:
        for fd, at in ((os.dup(to_read), 3), (os.dup(come_write), 4)):
            os.dup2(fd, at)

    process = subprocess.Popen(
        [FOUND, *flags, *quiet, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=join,  # noqa: PLW1509 - the browser reads its pipe at 3 and 4; no thread of ours holds a lock then
        close_fds=False,
    )
    os.close(to_read)
    os.close(come_write)
    with os.fdopen(to_write, "wb") as to, os.fdopen(come_read, "rb", buffering=1 << 16) as come:
        page = Page(to, come)
        try:
            target = page.ask("Target.createTarget", url="about:blank")["targetId"]
            page.session = page.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                page.ask(f"{domain}.enable")
            yield page
        finally:
            page.session = ""
            with suppress(AssertionError, BrokenPipeError):
                page.ask("Browser.close")
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            process.kill()
            process.wait()
