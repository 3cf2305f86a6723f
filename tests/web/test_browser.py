"""Each page does its main job in a real browser: a server of its own, Chromium, a tiny local model."""

import json
import re
from pathlib import Path

import pytest
from axe_core_python.sync_playwright import Axe
from playwright.sync_api import expect
from tiny import tiny_model
from web_browser import CHROMIUM, Server, ask, numbers, open_page
from web_requests import PATIENCE

import patchclamp as pc

PAGES = ("models", "lens", "neurons", "vectors", "dictionary", "relations", "circuits", "patch", "runs", "tour")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium: apt install chromium")]


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_folder):
    made = Server(tmp_path_factory.mktemp("runs"), "--model", tiny_folder)
    yield made
    made.end()


def test_the_first_page_is_there_within_three_seconds(tmp_path, tiny_folder):
    import time
    import urllib.request

    began = time.monotonic()
    server = Server(tmp_path, "--model", tiny_folder)
    try:
        with urllib.request.urlopen(server.address, timeout=10) as answer:
            assert answer.status == 200 and b"<h1>Models</h1>" in answer.read()
        assert time.monotonic() - began < 3 * PATIENCE
    finally:
        server.end()


def test_models_are_loaded_and_let_go(page, tiny_folder):
    open_page(page, "/")
    loaded = page.get_by_role("region", name="Anatomy")
    expect(loaded).to_contain_text(str(tiny_model("llama").d_model))
    page.get_by_role("button", name=re.compile("^Unload")).click()
    expect(page.get_by_text("No model is in memory yet.")).to_be_visible()
    page.get_by_label(re.compile("Another")).fill(str(tiny_folder))
    page.get_by_role("button", name="Load", exact=True).last.click()
    expect(page.get_by_role("region", name="Anatomy")).to_be_visible()


def test_the_lens_shows_the_librarys_numbers_and_leads_on(page, tiny_folder):
    section = ask(page, "/lens", prompt="w1 w2 w3", watch="w5", position="all")
    own = pc.run("lens.logit", pc.load(str(tiny_folder)), prompt="w1 w2 w3", watch=["w5"], position="all")
    shown = [float(row[3]) for row in numbers(section)]
    assert shown == pytest.approx(own.table()["entropy"].tolist(), rel=1e-3)
    assert "watch=w5" in page.url and "position=all" in page.url
    canvas = section.locator("canvas")
    box = canvas.bounding_box()
    for x in (0.1, 0.2, 0.3):
        canvas.click(position={"x": box["width"] * x, "y": box["height"] * 0.8})
        if page.locator("#cell-menu").is_visible():
            break
    assert page.locator("#cell-menu").is_visible()
    page.keyboard.press("Escape")
    section.get_by_label("block", exact=True).select_option("0")
    section.get_by_label("token", exact=True).select_option(index=1)
    section.get_by_role("button", name="Look closer").press("Enter")
    expect(page.get_by_role("menu", name=re.compile("^Block 0, token 1"))).to_be_visible()
    page.get_by_role("menuitem", name=re.compile("Patchscope")).click()
    page.wait_for_selector("body[data-ready=true]")
    assert "method=lens.patchscope" in page.url
    assert page.locator("section.method:visible").get_by_label("text", exact=True).input_value() == "w1 w2 w3"


def test_the_next_question_of_a_page_is_asked_of_the_same_files(page):
    open_page(page, "/dictionary?method=sae.browse&index=mine/index&sae=mine/dictionary")
    page.get_by_role("link", name="Search features").click()
    section = page.locator("section.method:visible")
    for field, text in (("index required", "mine/index"), ("sae", "mine/dictionary")):
        assert section.get_by_label(field, exact=True).input_value() == text


def test_a_model_is_asked_the_next_question_too_if_it_is_of_that_kind(page):
    open_page(page, "/neurons?method=neurons.find&model=mine")
    model = page.locator("section.method:visible").get_by_label("Model", exact=True)
    for question, is_carried in (("Pictures and text", False), ("Dose a neuron", True)):
        page.get_by_role("link", name="Find neurons").click()
        model.fill("mine")
        page.get_by_role("link", name=question).click()
        assert (model.input_value() == "mine") == is_carried


def test_a_verdict_is_explained_and_pins_are_taken_off_together(page):
    section = ask(page, "/lens", prompt="w1 w4", watch="w5")
    section.get_by_text("How to read this").click()
    outcome = section.locator(".verdict strong").inner_text().rstrip(".")
    expect(section.locator("details.help p")).to_contain_text(f"{outcome}: ")
    section.get_by_role("button", name="Pin", exact=True).click()
    page.get_by_role("complementary", name="Pinned").get_by_role("button", name="Unpin all").click()
    expect(page.locator("#pins")).to_be_hidden()


def test_panels_without_room_go_below_the_others(page):
    heights = []
    for width in (1900, 700):
        page.set_viewport_size({"width": width, "height": 900})
        section = ask(page, "/lens", prompt="w1 w4 w2", watch="w5")
        heights.append(section.locator("canvas").bounding_box()["height"])
    assert heights[1] > 1.8 * heights[0]


def test_a_permalink_shows_what_was_found(page):
    section = ask(page, "/lens", prompt="w7 w8", watch="w9")
    reason = section.locator(".verdict").inner_text()
    address = page.url
    open_page(page, "/models")
    open_page(page, address)
    expect(page.locator("section.method:visible .verdict")).to_have_text(reason)


def test_the_menu_leads_back_to_the_last_question(page):
    section = ask(page, "/lens", prompt="w7 w8 w2", watch="w9")
    reason = section.locator(".verdict").inner_text()
    page.get_by_role("link", name="Runs").click()
    page.wait_for_url("**/runs")
    page.get_by_role("link", name="Lens", exact=True).click()
    expect(page.locator("section.method:visible .verdict")).to_have_text(reason)
    assert page.locator("section.method:visible").get_by_label("prompt required").input_value() == "w7 w8 w2"


def test_neurons_are_found_and_turned_up(page, server, tmp_path):
    rows = [{"prompt": f"w{i} w{i + 1}", "answer": " w5", "distractor": " w6"} for i in range(8)]
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    open_page(page, "/neurons?method=neurons.attribute")
    section = page.locator("section.method:visible")
    with page.expect_file_chooser() as chooser:
        section.get_by_role("button", name="Upload: prompts").click()
    chooser.value.set_files(path)
    expect(section.get_by_label(re.compile("^prompts"))).to_have_value("choices.jsonl")
    section.get_by_role("button", name="Run", exact=True).click()
    expect(section.locator(".verdict")).to_be_visible()
    live = page.locator("#live")
    live.get_by_label("Neuron").fill("neuron.1.3")
    live.get_by_label("Prompt").fill("w1 w2")
    live.get_by_role("button", name="Write").click()
    expect(live.locator("[data-condition=base]")).to_contain_text("w")
    expect(live.locator("[data-condition=edited]")).to_contain_text("w")


def test_two_lists_make_a_vector_and_a_slider_steers_with_it(page, server):
    open_page(page, "/vectors")
    page.locator("summary", has_text="Two lists of prompts").click()
    for label, start in (("Prompts that show it", 0), ("Prompts that do not", 40)):
        page.get_by_label(label).fill("\n".join(f"w{start + i} w{start + i + 3} w{i}" for i in range(16)))
    page.get_by_role("button", name="Keep as files").click()
    page.wait_for_url(re.compile("vectors.find"))
    page.wait_for_selector("body[data-ready=true]")
    section = page.locator("section.method:visible")
    section.get_by_role("button", name="Run", exact=True).click()
    expect(section.locator(".verdict")).to_be_visible(timeout=60_000)
    assert (server.files / "mine.safetensors").is_file()
    live = page.locator("#live")
    live.get_by_label("Vectors").fill("mine.safetensors")
    live.get_by_label("Prompt").fill("w1 w2")
    live.get_by_label("Strength").fill("3")
    for condition in ("steered", "base", "random"):
        expect(live.locator(f"[data-condition={condition}]")).to_contain_text("w", timeout=60_000)


def test_a_dictionary_is_trained_with_what_was_harvested(page, server):
    (server.files / "corpus.txt").write_text(" ".join(f"w{i * i % 90}" for i in range(4000)))
    ask(page, "/dictionary?method=sae.harvest", corpus="corpus.txt", store="store", site="resid.1",
        length="32", shard="4")
    section = ask(page, "/dictionary?method=sae.train", store="store", out="dictionary", latents="64", k="4",
                  steps="30", batch="64")
    assert (server.files / "dictionary" / "autoencoder.safetensors").is_file()
    assert section.locator("canvas").is_visible()
    ask(page, "/dictionary?method=sae.index", corpus="corpus.txt", save="index", sae="dictionary", length="16",
        shard="40")
    section = ask(page, "/dictionary?method=sae.browse", index="index", sae="dictionary", contains="w4")
    rows = numbers(section)
    assert rows and all("w4" in f"{row[3]} {row[4]}" for row in rows)
    section.get_by_role("link", name=rows[0][0]).click()
    page.wait_for_selector("body[data-ready=true]")
    section = page.locator("section.method:visible")
    expect(section.get_by_label("features required")).to_have_value(rows[0][0])
    expect(section.locator(".passage").first).to_be_visible()


def test_a_circuit_is_found_and_drawn(page, server):
    model, rows = tiny_model("llama"), []
    read = pc.Readout.logit_difference("w50", "w51")
    for i in range(60):
        clean, corrupted = f"w{i} w{i + 9} w3 w4", f"w{i} w{(i * 7) % 40 + 40} w3 w4"
        a, b = (float(v) for v in model.run([clean, corrupted], read=read))
        if a > b + 0.3 and a > 0:
            rows.append({"clean": clean, "corrupted": corrupted, "answer": "w50", "distractor": "w51"})
    (server.files / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = ask(page, "/circuits", pairs="pairs.jsonl", prompts="6", heldout="4", controls="4", out="circuit")
    assert section.locator("canvas").is_visible()
    assert (server.files / "circuit" / "circuit.json").is_file()
    section = ask(page, "/circuits?method=circuits.show", certificate="circuit")
    slider = section.locator(".inputs input[type=range]")
    expect(slider).to_be_visible()
    slider.fill("1")


def test_two_prompts_are_patched(page):
    section = ask(page, "/patch", clean="w1 w2 w3", corrupted="w1 w9 w3", answer="w5", distractor="w6")
    assert section.locator("canvas").is_visible()
    section.get_by_role("button", name="Maximise", exact=True).click()
    large = page.get_by_role("dialog").locator("svg[role=img]")
    expect(large).to_be_visible()
    assert large.bounding_box()["height"] > 1.2 * section.locator("canvas").bounding_box()["height"]
    page.keyboard.press("Escape")


def test_records_are_opened_compared_run_again_and_deleted(page):
    for top in ("3", "4"):
        section = ask(page, "/lens", prompt="w4 w5", top=top)
        section.get_by_role("button", name="Pin", exact=True).click()
    page.get_by_role("link", name="Compare the pinned two").click()
    page.wait_for_selector("body[data-ready=true]")
    expect(page.get_by_role("region", name="Differences").first).to_contain_text("spec.top")
    assert page.locator("canvas").count() == 2
    open_page(page, "/runs")
    table = page.get_by_role("region", name="Runs")
    page.get_by_label("Filter").fill("lens.logit")
    expect(table.get_by_text("lens.logit").first).to_be_visible()
    page.on("dialog", lambda dialog: dialog.accept())
    table.get_by_role("link").first.click()
    page.wait_for_selector("body[data-ready=true]")
    page.get_by_role("button", name="Run again and compare").click()
    expect(page.locator("#replayed")).to_contain_text("came out the same")
    with page.expect_download() as downloaded:
        page.get_by_role("link", name="ipynb").click()
    assert json.loads(Path(downloaded.value.path()).read_text())["nbformat"] == 4
    open_page(page, "/runs")
    newest = table.get_by_role("link").first.inner_text()
    page.get_by_role("button", name=f"Delete {newest}").click()
    expect(table.get_by_role("link", name=newest)).to_have_count(0)


def test_a_wrong_question_is_answered_in_the_page(page):
    open_page(page, "/lens")
    section = page.locator("section.method:visible")
    section.get_by_label(re.compile("^prompt")).fill("w1 w2")
    section.get_by_label("watch").fill("nothing like it")
    section.get_by_role("button", name="Run", exact=True).click()
    expect(section.get_by_role("alert")).to_contain_text("token")


def test_the_code_of_a_question_is_shown_before_it_is_asked(page):
    open_page(page, "/lens")
    section = page.locator("section.method:visible")
    section.get_by_label(re.compile("^prompt")).fill("w1 w2")
    section.get_by_role("button", name="Show code").click()
    expect(section.locator(".shown-code")).to_contain_text("patchclamp lens logit 'w1 w2'")


def test_the_keyboard_opens_pages_and_runs(page):
    open_page(page, "/lens")
    page.keyboard.press("/")
    page.keyboard.press("Tab")
    page.keyboard.type("w3 w4")
    page.keyboard.press("Control+Enter")
    expect(page.locator("section.method:visible .verdict")).to_be_visible()
    page.locator("h1").click()
    page.keyboard.press("g")
    page.keyboard.press("c")
    page.wait_for_url("**/circuits")
    page.wait_for_selector("body[data-ready=true]")
    page.keyboard.press("g")
    page.keyboard.press("u")
    page.wait_for_url("**/runs")


def test_the_interface_speaks_chinese(page):
    open_page(page, "/lens")
    page.get_by_role("button", name="中文").click()
    expect(page.locator("h1")).to_have_text("透镜")
    open_page(page, "/runs")
    expect(page.locator("h1")).to_have_text("记录")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_pages_are_accessible(page, name, theme):
    page.add_init_script(f"localStorage.setItem('theme', '{theme}')")
    open_page(page, f"/{name}")
    found = Axe().run(page)["violations"]
    serious = {one["id"]: [node["html"] for node in one["nodes"]] for one in found
               if one["impact"] in ("serious", "critical")}
    assert serious == {}
