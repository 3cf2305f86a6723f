// A record as the server shows it: verdict, chart and its table twin, coloured texts, code, export.
import { announce, duration, el, fetched, requested, runNext, shown, t, table } from "./base.js";
import { draw } from "./chart.js";
import { pinButton } from "./pins.js";

const UNIT = /^(neuron|feature(:[^.@\s]+)?)\.\d+\.\d+(@.*)?$/;
/** Rows of a table that is shown at once, where nothing is claimed that would come first. */
const MOST_OPEN = 100;
const KINDS = ["html", "json", "ipynb", "csv", "png", "svg", "zip"];

/**
 * Show a stored record in a place.
 * @param {HTMLElement} place
 * @param {string} id
 * @param {{onclick?: (datum: Record<string, any>, event: MouseEvent, view: any) => void, heading?: boolean}} [options]
 */
export async function show(place, id, { onclick, heading } = {}) {
  const view = await fetched(`/api/runs/${encodeURIComponent(id)}`);
  place.replaceChildren();
  place.classList.remove("stale");
  if (heading) place.append(el("h2", {}, `${view.method} · ${view.provenance.name}`));
  place.append(verdict(view.verdict), meaning(view.verdict));
  if (view.chart) await chart(place, view, onclick);
  for (const part of passages(view.passages)) place.append(part);
  if (view.table) place.append(numbers(view.table, view));
  place.append(code(view.code), asked(view), tools(view));
  announce(view.verdict ? `${t(view.verdict.outcome)}. ${view.verdict.reason}` : t("no claim"));
  return view;
}

/** @param {any} one */
function verdict(one) {
  if (!one) return el("p", { class: "verdict none" }, t("no claim"));
  const name = one.outcome.replace(" ", "-");
  return el("p", { class: `verdict ${name}` }, el("strong", {}, `${t(one.outcome)}.`), " ", one.reason);
}

/**
 * What a verdict's words and brackets say, for those who have not met them.
 * @param {any} one
 */
function meaning(one) {
  return one ? el("details", { class: "help" }, el("summary", {}, t("how to read")), el("p", {}, t(`${one.outcome} means`), " ", t("brackets mean"))) : "";
}

/**
 * @param {HTMLElement} place
 * @param {any} view
 * @param {((datum: Record<string, any>, event: MouseEvent, view: any) => void) | undefined} onclick
 */
async function chart(place, view, onclick) {
  const holder = el("div", { class: "chart", tabindex: "0", role: "region", "aria-label": t("chart") });
  const larger = el("button", { type: "button", class: "maximise", onclick: () => enlarge(view) }, t("maximise"));
  place.append(el("div", { class: "chart-panel" }, larger, holder));
  const lead = (/** @type {Record<string, any>} */ datum) => {
    const unit = Object.values(datum).find((value) => typeof value === "string" && UNIT.test(value));
    if (!unit) return;
    runNext();
    location.href = unitAddress(unit, view);
  };
  await draw(holder, view.chart, {
    label: `${t("chart")}: ${view.method}`,
    onclick: onclick ? (datum, event) => onclick(datum, event, view) : lead,
  });
}

/** @param {any} view */
async function enlarge(view) {
  const dialog = /** @type {HTMLDialogElement} */ (document.getElementById("enlarged"));
  const holder = el("div", { class: "chart", tabindex: "0", role: "region", "aria-label": t("chart") });
  dialog.replaceChildren(el("button", { type: "button", onclick: () => dialog.close() }, t("close")), holder);
  dialog.showModal();
  await draw(holder, view.chart, { label: `${t("chart")}: ${view.method}`, large: true });
}

/**
 * Texts whose tokens are coloured by a number.
 * @param {any[]} all
 */
export function* passages(all) {
  /** @type {Map<string, any[]>} */
  const groups = new Map();
  for (const one of all) groups.set(one.group, [...(groups.get(one.group) ?? []), one]);
  for (const [group, some] of groups) {
    const rows = some.map((one) => el("div", { class: "passage" }, el("span", { class: "label" }, one.label), tokens(one)));
    yield el("section", { class: "passages" }, el("h3", {}, group), ...rows);
  }
}

/** @param {any} one */
function tokens(one) {
  return el("span", { class: "text" }, ...one.words.map((/** @type {string} */ word, /** @type {number} */ i) => {
    const span = el("span", { title: shown(one.values[i]), class: i === one.at ? "at" : undefined }, word);
    if (Math.min(...(one.colours[i].match(/\d+/g) ?? ["0"]).map(Number)) < 236) {
      span.style.background = one.colours[i];
      span.style.color = "#111";
    }
    return span;
  }));
}

/**
 * The table; a neuron or feature in it leads to what it responds to.
 * @param {{columns: string[], rows: unknown[][], total: number}} data
 * @param {any} view
 */
function numbers(data, view) {
  const rows = data.rows.map((row) => row.map((value) => UNIT.test(String(value)) ? unitLink(String(value), view) : shown(value)));
  const cut = data.total > data.rows.length ? el("p", {}, t("rows of", { shown: data.rows.length, total: data.total })) : null;
  const listOnly = !view.verdict && rows.length <= MOST_OPEN;
  return el("details", { open: listOnly }, el("summary", {}, t("table")), cut, table(data.columns, rows, view.method), pages(view));
}

/**
 * The ways to the pages before and after in a list that is asked for in parts.
 * @param {any} view
 */
function pages(view) {
  const { skip, limit } = view.spec;
  if (view.matching === null || typeof skip !== "number") return null;
  const to = (/** @type {number} */ first, /** @type {string} */ word) => {
    const query = new URLSearchParams(view.query);
    query.set("skip", String(Math.max(0, first)));
    return el("a", { href: `/ask?${query}`, "data-run": true }, t(word));
  };
  return el("p", { class: "buttons" }, skip > 0 ? to(skip - limit, "page before") : null, skip + limit < view.matching ? to(skip + limit, "page after") : null);
}

/**
 * A link to a unit's examples.
 * @param {string} unit
 * @param {any} view
 */
function unitLink(unit, view) {
  return el("a", { href: unitAddress(unit, view), "data-run": true }, unit);
}

/**
 * The question what a neuron or feature responds to, asked of the same model and index.
 * @param {string} unit
 * @param {any} view
 */
function unitAddress(unit, view) {
  const site = unit.split("@")[0];
  const query = new URLSearchParams({ model: view.provenance.model });
  for (const name of ["index", "sae"]) if (typeof view.spec[name] === "string") query.set(name, view.spec[name]);
  if (site.startsWith("feature")) {
    query.set("method", "sae.show");
    query.set("features", site);
  } else {
    query.set("method", "neurons.examples");
    query.set("sites", site);
    query.delete("sae");
  }
  return `/ask?${query}`;
}

/** @param {{command: string, python: string}} both */
export function code(both) {
  const block = (/** @type {string} */ title, /** @type {string} */ text) => el("div", { class: "code-block" }, el("h3", {}, title),
    copyButton(text), el("pre", { tabindex: "0" }, text));
  return el("details", { class: "code-shown" }, el("summary", {}, t("code")), block(t("command"), both.command), block(t("python"), both.python));
}

/** @param {string} text */
function copyButton(text) {
  const button = el("button", { type: "button", onclick: async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = t("copied");
    setTimeout(() => (button.textContent = t("copy")), 1500);
  } }, t("copy"));
  return button;
}

/** @param {any} view */
function asked(view) {
  const text = JSON.stringify({ spec: view.spec, provenance: view.provenance }, null, 1);
  const took = duration(view.provenance.duration);
  return el("details", {}, el("summary", {}, `${t("asked")} (${view.provenance.name}, ${took}, ${view.id})`), el("pre", { tabindex: "0" }, text));
}

/** @param {any} view */
function tools(view) {
  const links = KINDS.filter((kind) => view.chart || !["png", "svg"].includes(kind)).map((kind) =>
    el("a", { href: `/api/runs/${view.id}/export?kind=${kind}`, download: `${view.id}.${kind}` }, kind));
  const query = new URLSearchParams(view.query);
  return el("p", { class: "buttons" },
    el("a", { href: `/runs/${view.id}` }, t("open")), pinButton(view),
    el("a", { href: `/ask?${query}` }, t("link")), el("span", { class: "export" }, t("export"), ": ", ...links));
}

/**
 * Whether a stored record came out the same when it was run again.
 * @param {HTMLElement} place
 * @param {string} id
 */
export async function replayed(place, id) {
  const outcome = await (await requested(`/api/runs/${id}/replay`)).json();
  place.textContent = outcome ? outcome.sentence : "";
}

