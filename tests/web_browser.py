"""A server of its own and what a person does in its pages, for tests in a browser."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import expect

CHROMIUM = os.environ.get("PATCHCLAMP_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
SHOTS = os.environ.get("PATCHCLAMP_SCREENSHOTS")
"""A folder for pictures of what the tests saw."""


class Server:
    """`patchclamp serve` as a process of its own."""

    def __init__(self, folder, *options):
        command = [sys.executable, "-m", "patchclamp", "serve", "--no-browser", "--port", "0", *map(str, options)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, "PATCHCLAMP_RUNS": str(folder), "OMP_NUM_THREADS": "1"})
        line = self.process.stderr.readline()
        self.address = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
        self.files = Path(folder) / ".files"

    def end(self):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


@contextmanager
def tab_of(browser, server, name):
    """A tab that notes what must not happen: errors in the console, requests that leave this machine."""
    context = browser.new_context(base_url=server.address, viewport={"width": 1280, "height": 900})
    tab, wrong = context.new_page(), []
    tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda asked: None if is_local(asked.url) else wrong.append(asked.url))
    tab.set_default_timeout(30_000)
    yield tab
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=Path(SHOTS) / f"{re.sub('[^a-z0-9-]+', '-', name.lower())}.png", full_page=True)
    context.close()
    assert wrong == []


def is_local(url):
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob") or parts.hostname == "127.0.0.1"


def open_page(page, path):
    page.goto(path)
    page.wait_for_selector("body[data-ready=true]:not([data-view=starting])", timeout=120_000)


def ask(page, path, seconds=60, **fields):
    """Fill a method's form by its labels, run it, and give back the form's section once the verdict is there."""
    open_page(page, path)
    section = page.locator("section.method:visible")
    for label, text in fields.items():
        field = section.get_by_label(re.compile(f"^{label.replace('_', ' ')}( required)?$"))
        if not field.is_visible():
            section.get_by_text("More settings").click()
        field.fill(text)
    section.get_by_role("button", name="Run", exact=True).click()
    expect(section.locator(".verdict")).to_be_visible(timeout=seconds * 1000)
    return section


def numbers(section):
    """The table beside the chart, as rows of cells."""
    details = section.locator(".result details", has=section.page.locator("summary", has_text="Table"))
    if details.get_attribute("open") is None:
        details.locator("summary").click()
    return [row.locator("td").all_inner_texts() for row in section.locator(".result tbody tr").all()]
