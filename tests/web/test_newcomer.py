"""Someone who has read nothing, with the embedded models: sees Warsaw in the lens, makes SmolLM2 refuse a plain
question, looks at a neuron's examples, fits a relation, and takes a run along."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect
from web_browser import CHROMIUM, Server, ask, numbers, open_page

pytestmark = [pytest.mark.slow, pytest.mark.weights,
              pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium: apt install chromium")]
REFUSES = re.compile(r"sorry|cannot|can't|can not|unable|won't|not able", re.IGNORECASE)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("runs"))
    yield made
    made.end()


def test_warsaw_appears_in_the_lens(page):
    open_page(page, "/")
    page.get_by_role("link", name=re.compile("^See Warsaw appear")).click()
    section = page.locator("section.method:visible")
    expect(section.locator(".verdict")).to_contain_text("Supported", timeout=120_000)
    tops = [row[1] for row in numbers(section)]
    assert tops[-1].strip() == "Warsaw" and tops[0].strip() != "Warsaw"
    with page.expect_download() as downloaded:
        section.get_by_role("link", name="html", exact=True).click()
    assert "Warsaw" in Path(downloaded.value.path()).read_text()


def test_a_plain_question_is_refused(page):
    open_page(page, "/vectors")
    page.get_by_role("link", name=re.compile("No vector yet")).click()
    section = page.locator("section.method:visible")
    expect(section.locator(".verdict")).to_contain_text("Supported", timeout=300_000)
    live = page.locator("#live")
    live.get_by_role("button", name="Write").click()
    expect(live.locator("[data-condition=random]")).to_contain_text(re.compile(r"\w{3}"), timeout=180_000)
    steered, base = (live.locator(f"[data-condition={name}]").inner_text() for name in ("steered", "base"))
    assert REFUSES.search(steered) and not REFUSES.search(base), (steered, base)


def test_a_neurons_examples_are_looked_at(page):
    open_page(page, "/")
    page.get_by_role("link", name=re.compile("^Open a neuron")).click()
    section = page.locator("section.method:visible")
    expect(section.locator(".verdict")).to_be_visible(timeout=120_000)
    assert section.locator(".passage .text span").count() > 20


def test_a_relation_is_fitted(page):
    section = ask(page, "/relations?method=relations.fit&model=gemma-3-270m", seconds=240,
                  relation="example:relations/country-capital", samples="3", limit="12")
    assert section.locator("canvas").is_visible()


def test_a_stop_of_the_tour_is_taken(page, server):
    open_page(page, "/tour")
    expect(page.get_by_text("0 of 60 stops were taken")).to_be_visible()
    page.get_by_role("button", name="Run this stop: The logit lens").click()
    lens = page.get_by_role("region", name="Lens")
    expect(lens.locator("summary .outcome.supported")).to_be_visible(timeout=120_000)
    expect(lens.locator("canvas")).to_be_visible()
    expect(page.get_by_text("1 of 60 stops were taken")).to_be_visible()
    with page.expect_download() as downloaded:
        page.get_by_role("link", name="The whole report on one page").click()
    assert "The logit lens: first Poland, then Warsaw" in Path(downloaded.value.path()).read_text()
