// The models: which there are, which are in memory, and what is known of them.
import { complain, el, fetched, shown, t, table } from "./base.js";
import { offerModels } from "./form.js";
import { follow } from "./jobs.js";

/** Get the models page going. */
export async function modelsPage() {
  const panel = /** @type {HTMLElement} */ (document.getElementById("other")?.closest("section"));
  const status = /** @type {HTMLElement} */ (panel.querySelector(".job"));
  const load = async (/** @type {string} */ ref, /** @type {string} */ dtype) => {
    complain(panel, null);
    try {
      const ended = await follow(status, await fetched("/api/models/load", { body: { ref, dtype } }));
      if (ended.state === "failed") throw new Error(ended.error);
      await refresh(load);
    } catch (error) {
      complain(panel, error);
    }
  };
  document.getElementById("other")?.addEventListener("submit", (event) => {
    event.preventDefault();
    load(/** @type {HTMLInputElement} */ (document.getElementById("other-ref")).value, /** @type {HTMLSelectElement} */ (document.getElementById("other-dtype")).value);
  });
  offerModels().catch(() => undefined);
  await refresh(load);
  await untilReady(panel);
  await refresh(load);
}

/**
 * Wait while the server still loads its first model, and say so.
 * @param {Element} panel
 */
async function untilReady(panel) {
  const status = /** @type {HTMLElement} */ (panel.querySelector(".job"));
  for (;;) {
    const { stage, problem } = await fetched("/api/status");
    status.textContent = stage === "ready" ? "" : `${stage} …`;
    if (stage === "ready") return complain(panel, problem);
    await new Promise((resolve) => setTimeout(resolve, 400));
  }
}

/** @param {(ref: string, dtype: string) => void} load */
async function refresh(load) {
  const { embedded, loaded, memory_mb: memory } = await fetched("/api/models");
  const inMemory = new Set(loaded.map((/** @type {any} */ one) => one.ref));
  document.getElementById("embedded")?.replaceChildren(table(
    [t("name"), t("summary"), t("where"), ""],
    embedded.map((/** @type {any} */ one) => [el("strong", {}, one.name), one.summary,
      `${one.cached ? t("on disk") : t("to download", { mb: one.download_mb })} · ${one.licence}`,
      inMemory.has(one.name) ? t("loaded") : el("button", { type: "button", "aria-label": `${t("load")} ${one.name}`, onclick: () => load(one.name, "float32") }, t("load"))]),
    t("choose model")));
  const place = document.getElementById("loaded");
  place?.replaceChildren(
    el("p", {}, memory ? t("memory", { mb: memory }) : ""),
    loaded.length ? "" : el("p", { class: "empty" }, t("nothing loaded")),
    ...loaded.map((/** @type {any} */ one) => told(one, load)));
}

/**
 * @param {any} one
 * @param {(ref: string, dtype: string) => void} load
 */
function told(one, load) {
  const unload = async () => {
    const panel = /** @type {HTMLElement} */ (document.getElementById("other")?.closest("section"));
    try {
      await fetched("/api/models/unload", { body: { ref: one.ref, dtype: one.dtype } });
      await refresh(load);
    } catch (error) {
      complain(panel, error);
    }
  };
  const facts = Object.entries(one.anatomy).map(([name, value]) => [t(name), shown(value)]);
  const proved = one.identities.map((/** @type {any} */ identity) => Object.values(identity).map((value) => shown(value)));
  const head = one.identities.length ? Object.keys(one.identities[0]) : [];
  return el("article", {}, el("h3", {}, `${one.name} · ${one.dtype} · ${one.device} · ${one.megabytes} MB`),
    el("p", {}, el("code", {}, one.weights_hash.slice(0, 12)), " ", el("button", { type: "button", "aria-label": `${t("unload")} ${one.name}`, onclick: unload }, t("unload"))),
    el("details", { open: true }, el("summary", {}, t("anatomy")), table([t("what"), t("value")], facts, `${t("anatomy")}, ${one.name} ${one.dtype}`)),
    el("details", {}, el("summary", {}, t("identities")), table(head, proved, `${t("identities")}, ${one.name} ${one.dtype}`)));
}
