"""The text that autoencoders are compared on: WikiText-2's two files and the English prose of seven Debian packages.

    python -m benchmarks.sae_corpus WIKITEXT-FOLDER OUT.txt     # fetches the packages with apt-get download

Paragraphs of the packages' HTML pages, one a line; tags, code blocks and paragraphs of fewer than 80 characters are
left out. Debian 12: debian-handbook 11.20220922, debian-reference-en 2.100, debian-policy 4.6.2.0,
developers-reference 12.18, debian-faq 11.1, harden-doc 3.19+nmu1, installation-guide-amd64 20230508+deb12u1.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

PAGES = {
    "debian-handbook": "usr/share/doc/debian-handbook/html/en-US/*.html",
    "debian-reference-en": "usr/share/debian-reference/*.en.html",
    "debian-policy": "usr/share/doc/debian-policy/policy.html/*.html",
    "developers-reference": "usr/share/developers-reference/*.html",
    "debian-faq": "usr/share/doc/debian/FAQ/*.en.html",
    "harden-doc": "usr/share/doc/harden-doc/html/en-US/*.html",
    "installation-guide-amd64": "usr/share/doc/installation-guide-amd64/en/*.html",
}
SHORTEST = 80


class Paragraphs(HTMLParser):
    """The text of p, dd and div class="para" elements, without pre elements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.held: list[str] | None = None
        self.kind, self.depth, self.code = "", 0, 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("pre", "script", "style"):
            self.code += 1
        elif self.held is not None:
            self.depth += tag == self.kind
        elif tag in ("p", "dd") or (tag == "div" and ("class", "para") in attrs):
            self.held, self.kind, self.depth = [], tag, 1

    def handle_endtag(self, tag: str) -> None:
        if tag in ("pre", "script", "style"):
            self.code -= 1
        elif self.held is not None and tag == self.kind:
            self.depth -= 1
            if not self.depth:
                text = " ".join("".join(self.held).split())
                if len(text) >= SHORTEST:
                    self.found.append(text)
                self.held = None

    def handle_data(self, data: str) -> None:
        if self.held is not None and not self.code:
            self.held.append(data)


def prose(package: str, folder: Path) -> Iterator[str]:
    """A package's paragraphs, each once."""
    subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
    (archive,) = folder.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", archive.name, package], cwd=folder, check=True)
    seen = set()
    for page in sorted((folder / package).glob(PAGES[package])):
        parser = Paragraphs()
        parser.feed(page.read_text(errors="replace"))
        for text in parser.found:
            if text not in seen:
                seen.add(text)
                yield text


def main(arguments: list[str]) -> None:
    wikitext, out = map(Path, arguments)
    with tempfile.TemporaryDirectory() as folder, out.open("w") as file:
        for name in ("valid.txt", "test.txt"):
            file.write((wikitext / name).read_text() + "\n\n")
        for package in PAGES:
            texts = list(prose(package, Path(folder)))
            print(f"{package}: {len(texts)} paragraphs, {sum(map(len, texts)):,} characters")
            file.writelines(f"{text}\n\n" for text in texts)


if __name__ == "__main__":
    main(sys.argv[1:])
