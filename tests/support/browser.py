"""A headless Chromium for pages that people will read in a browser."""

from __future__ import annotations

import html
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

Scheme = Literal["light", "dark"]

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_INSTALL = (
    "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium"
)
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--enable-logging=stderr", "--virtual-time-budget=2000",
)  # fmt: skip
_PREFERS = {"light": "1", "dark": "0"}  # blink::mojom::PreferredColorScheme
_SECONDS = 180
_ASK = """<!DOCTYPE html><title>asked</title><iframe width="{width}" height="900" srcdoc="{page}"></iframe><script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument;
  document.body.dataset.answer = JSON.stringify({question});
}});
</script>"""


@dataclass(frozen=True)
class Browser:
    """A Chromium that forgets everything between two calls."""

    program: str

    def dom(self, page: Path) -> tuple[str, list[str]]:
        """The page as the browser understood it, and what it had to say on its console."""
        done = self._run("light", "--dump-dom", page.as_uri())
        return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]

    def ask(self, page: str, question: str, width: int, scheme: Scheme = "light") -> str:
        """The JSON answer to a question in JavaScript about a `page` shown so many pixels wide."""
        with tempfile.TemporaryDirectory(prefix="browser-") as folder:
            asking = Path(folder) / "asking.html"
            asking.write_text(_ASK.format(width=width, page=html.escape(page), question=question))
            dom = self._run(scheme, "--dump-dom", asking.as_uri()).stdout
        return html.unescape(dom.partition('data-answer="')[2].partition('"')[0])

    def screenshot(self, page: Path, target: Path, width: int, height: int, scheme: Scheme) -> None:
        """A picture of the top of a page."""
        self._run(scheme, f"--screenshot={target}", f"--window-size={width},{height}", page.as_uri())

    def _run(self, scheme: Scheme, *arguments: str) -> Any:
        with tempfile.TemporaryDirectory(prefix="browser-profile-", ignore_cleanup_errors=True) as profile:
            command = [self.program, *_OPTIONS, f"--user-data-dir={profile}"]
            command += [f"--blink-settings=preferredColorScheme={_PREFERS[scheme]}", *arguments]
            return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)


def find_browser() -> Browser:
    """The Chromium of this machine, installed if need be; the test is skipped, with the reason, where it cannot be."""
    for name in _NAMES:
        if found := shutil.which(name):
            return Browser(found)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("no Chromium here, and installing Debian's takes root and apt-get")
    done = subprocess.run(["sh", "-c", _INSTALL], capture_output=True, text=True, timeout=900, check=False)
    found = shutil.which(_NAMES[0])
    if done.returncode or found is None:
        pytest.skip(f"Chromium could not be installed: {done.stderr.strip()[-200:]}")
    return Browser(found)
