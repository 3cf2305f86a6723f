"""The interface speaks both languages everywhere."""

import json
import re
from importlib.resources import files

import pytest

from patchclamp.evidence.method import BUILT_IN, get_method, methods
from patchclamp.web.forms import fields_of
from patchclamp.web.pages import NAVIGATION, PAGES, page_of
from patchclamp.web.words import LANGUAGES, help_of, label_of, language_of, title_of, words

WEB = files("patchclamp.web")


def test_every_word_is_there_in_every_language():
    english, chinese = (words(language) for language in LANGUAGES)
    assert all(english.values()) and all(chinese.values())
    names = {key: set(re.findall(r"\{(\w+)\}", text)) for key, text in english.items()}
    assert names == {key: set(re.findall(r"\{(\w+)\}", text)) for key, text in chinese.items()}


def test_every_word_that_pages_and_scripts_ask_for_is_there():
    asked = set()
    for path in (WEB / "templates").iterdir():
        asked |= set(re.findall(r'\bt\(["\']([^"\'~]+)["\']\)', path.read_text()))
    for path in (WEB / "static").iterdir():
        if path.name.endswith(".js"):
            asked |= set(re.findall(r'\bt\("([^"]+)"', path.read_text()))
    asked |= {f"about {name}" for name in NAVIGATION} | set(NAVIGATION)
    assert asked - set(words("en")) == set()


def test_every_method_of_ours_stands_on_a_page_and_has_a_title_in_both_languages():
    data = json.loads((WEB / "words.json").read_text())["methods"]
    ours = {name for name, method in methods().items() if method.function.__module__ in BUILT_IN}
    assert ours == {name for page in PAGES.values() for name in page.methods} == set(data)
    assert all(page_of(name) in PAGES for name in ours)


def test_every_field_has_a_name_in_chinese():
    named = json.loads((WEB / "words.json").read_text())["fields"]
    methods = [get_method(name) for page in PAGES.values() for name in page.methods]
    assert {field.name for method in methods for field in fields_of(method)} == set(named)
    assert label_of("max new tokens", "zh") == f"{named['max-new-tokens']} max new tokens"
    assert label_of("max new tokens", "en") == label_of("max new tokens", "xx") == "max new tokens"


def test_what_methods_and_fields_say_is_there_in_chinese_and_nothing_else():
    methods = [get_method(name) for page in PAGES.values() for name in page.methods]
    said = {one.description for one in methods} | {field.help for one in methods for field in fields_of(one)}
    translated = json.loads((WEB / "help.zh.json").read_text())
    assert {" ".join(text.split()) for text in said} == set(translated)
    for english, chinese in translated.items():
        assert sorted(re.findall("`[^`]*`", english)) == sorted(re.findall("`[^`]*`", chinese)), english
        assert re.search("[\u4e00-\u9fff]", chinese), english
    text = get_method("lens.logit").description
    assert help_of(text, "en") == text != help_of(text, "zh")
    assert help_of("of another package", "zh") == "of another package"


@pytest.mark.parametrize(("cookie", "accepted", "language"), [
    (None, None, "en"), ("zh", "en-GB,en", "zh"), (None, "zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("xx", "fr, zh;q=0.5", "zh"),
])
def test_the_language_is_the_one_chosen_or_the_browsers(cookie, accepted, language):
    assert language_of(cookie, accepted) == language


def test_a_method_of_another_package_has_its_first_line_for_a_title():
    assert title_of("other.method", "Count letters: all of them.", "zh") == "Count letters"
