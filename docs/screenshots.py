"""Pictures of the workbench's pages, light and dark, for docs/workbench.md: asks a question on each page of a server of
its own, on the embedded models, and takes what a person would see.

    python docs/screenshots.py        # needs Chromium (apt install chromium); about fifteen minutes
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

OUT = Path(__file__).parent / "workbench"
IOI = "John and Mary went to the park, John gave a drink to"
ASKED: dict[str, dict[str, object]] = {
    "lens": {"method": "lens.logit", "model": "gemma-3-270m", "prompt": "The capital of Poland is the city of",
             "watch": [" Warsaw", " Poland"], "position": "all"},
    "neurons": {"method": "neurons.attribute", "model": "smollm2-135m-instruct", "prompts": "example:agreement",
                "where": "number=plural", "limit": 16},
    "vectors": {"method": "vectors.find", "model": "smollm2-135m-instruct", "source": "refusal",
                "save": "refusal.safetensors"},
    "dictionary": {"method": "sae.browse", "model": "smollm2-135m-instruct", "index": "index", "sae": "dictionary"},
    "relations": {"method": "relations.fit", "model": "gemma-3-270m", "relation": "example:relations/country-capital"},
    "circuits": {"method": "circuits.show", "model": "gemma-3-270m", "certificate": "ioi"},
    "patch": {"method": "circuits.patch", "model": "smollm2-135m-instruct", "clean": IOI,
              "corrupted": IOI.replace("John gave", "Mary gave"), "answer": " Mary", "distractor": " John"},
}
BEFORE: dict[str, list[dict[str, object]]] = {
    "dictionary": [{"method": "sae.harvest", "model": "smollm2-135m-instruct", "corpus": "corpus.txt", "store": "store",
                    "site": "resid.15", "tokens": 60000, "shard": 16},
                   {"method": "sae.train", "model": "smollm2-135m-instruct", "store": "store", "out": "dictionary",
                    "latents": 1024, "k": 16, "steps": 300, "batch": 512},
                   {"method": "sae.index", "model": "smollm2-135m-instruct", "corpus": "corpus.txt", "save": "index",
                    "sae": "dictionary", "tokens": 20000, "shard": 16}],
    "circuits": [{"method": "circuits.find", "model": "gemma-3-270m", "task": "ioi", "out": "ioi"}],
}


def ask(page: Page, name: str, values: dict[str, object]) -> None:
    """Open a question's address, ask it, and wait for what comes out."""
    page.goto(f"/{name}?{urlencode(values, doseq=True)}")
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
            for values in (*BEFORE.get(name, ()), ASKED[name]):
                ask(page, name, values)
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
