// From a text to a list of features: the panel that leads through the steps, open until it is closed, with one corpus.
import { fetched } from "./base.js";

const OPEN = "steps open", CORPUS = "steps corpus";

/** Get the panel going, if the page has one. */
export function dictionarySteps() {
  const panel = document.getElementById("no-dictionary");
  if (!(panel instanceof HTMLDetailsElement)) return;
  panel.open = sessionStorage.getItem(OPEN) === "true";
  panel.addEventListener("toggle", () => sessionStorage.setItem(OPEN, String(panel.open)));
  for (const input of document.querySelectorAll("[data-method='sae.harvest'] [data-field='corpus'] input")) {
    const keep = () => sessionStorage.setItem(CORPUS, /** @type {HTMLInputElement} */ (input).value);
    input.closest("form")?.addEventListener("submit", keep, { capture: true });
  }
  for (const link of panel.querySelectorAll("a")) link.addEventListener("click", () => {
    const corpus = sessionStorage.getItem(CORPUS);
    const to = new URL(link.href);
    if (corpus && to.searchParams.has("corpus")) {
      to.searchParams.set("corpus", corpus);
      link.href = to.href;
    }
  });
  fetched("/api/files").then(({ files }) => {
    for (const part of panel.querySelectorAll("[data-needs]")) {
      /** @type {HTMLElement} */ (part).hidden = !files.includes(/** @type {HTMLElement} */ (part).dataset.needs);
    }
  }).catch(() => undefined);
}
