"""Pictures of the workbench's pages, light and dark, for docs/workbench.md: asks a question on each page of a server of
its own, on the embedded models, and takes what a person would see.

    python docs/screenshots.py        # needs Chromium (apt install chromium); about six minutes
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Browser, Page, sync_playwright

from patchclamp.web.pages import STARTS, page_of

OUT = Path(__file__).parent / "workbench"
SMOLLM2, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"


def address(method: str, model: str, **fields: object) -> str:
    """The address of a question, on the page that asks it."""
    return f"/{page_of(method)}?{urlencode({'method': method, 'model': model, **fields})}"


ASKED: dict[str, tuple[str, ...]] = {
    "lens": (STARTS["warsaw"],),
    "neurons": (address("neurons.attribute", SMOLLM2, prompts="example:agreement", where="number=plural", limit=16),),
    "vectors": (STARTS["refusal"],),
    "dictionary": (
        address("sae.harvest", SMOLLM2, corpus="corpus.txt", store="store", site="resid.15", tokens=60000, shard=16),
        address("sae.train", SMOLLM2, store="store", out="dictionary", latents=1024, k=16, steps=300, batch=512),
        address("sae.index", SMOLLM2, corpus="corpus.txt", save="index", sae="dictionary", tokens=20000, shard=16),
        address("sae.browse", SMOLLM2, index="index", sae="dictionary"),
    ),
    "relations": (address("relations.fit", GEMMA, relation="example:relations/country-capital"),),
    "circuits": (STARTS["circuit"], address("circuits.show", GEMMA, certificate="ioi")),
    "patch": (STARTS["patch"],),
}
"""By page, the questions that are asked on it, of which the last one is taken."""


def ask(page: Page, question: str) -> None:
    """Open a question's address, ask it, and wait for what comes out."""
    page.goto(question)
    page.wait_for_selector("body[data-ready=true]:not([data-view=starting])", timeout=120_000)
    section = page.locator("section.method:visible")
    section.get_by_role("button", name="Run", exact=True).click()
    section.locator(".result .verdict").wait_for(timeout=900_000)


def steer(page: Page) -> None:
    """Have the slider's answers written."""
    live = page.locator("#live")
    live.get_by_label("Strength").fill("6")
    live.locator("[data-condition=random]").filter(has_text=re.compile(r"\w{3}")).wait_for(timeout=120_000)
    page.wait_for_timeout(8000)


def shots(browser: Browser, address: str, theme: str) -> None:
    """All pages in one theme; questions that were asked already are not asked again."""
    context = browser.new_context(base_url=address, viewport={"width": 1440, "height": 1000}, reduced_motion="reduce")
    context.add_init_script(f"localStorage.setItem('theme', '{theme}')")
    page = context.new_page()
    for name in ("models", *ASKED, "tour", "runs"):
        if name in ASKED:
            for question in ASKED[name]:
                ask(page, question)
            page.evaluate("document.querySelector('section.method:not([hidden]) .result').scrollIntoView()")
            if name == "vectors":
                steer(page)
                page.evaluate("scrollTo(0, 0)")
        else:
            page.goto(f"/{name}")
            page.wait_for_selector("body[data-ready=true]:not([data-view=starting])", timeout=120_000)
        page.wait_for_timeout(1200)
        page.screenshot(path=OUT / f"{name}-{theme}.png")
    context.close()


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = subprocess.Popen([sys.executable, "-m", "patchclamp", "serve", "--no-browser", "--port", "0"],
                                  stderr=subprocess.PIPE, text=True, env={**os.environ, "PATCHCLAMP_RUNS": folder})
        try:
            assert server.stderr is not None
            found = re.search(r"http://[\d.]+:\d+", server.stderr.readline())
            assert found is not None
            from patchclamp.tour.documentation import write_documentation

            write_documentation(Path(folder) / ".files").rename(Path(folder) / ".files" / "corpus.txt")
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for theme in ("light", "dark"):
                shots(browser, found[0], theme)
            browser.close()
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


if __name__ == "__main__":
    main()
