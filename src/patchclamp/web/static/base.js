// What every module uses: words, requests, elements.

/** @type {Record<string, string>} */
const WORDS = JSON.parse(document.getElementById("words")?.textContent ?? "{}");

/**
 * The interface's word, with {names} filled in.
 * @param {string} key
 * @param {Record<string, unknown>} [values]
 */
export function t(key, values = {}) {
  return (WORDS[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}

/** A request that was refused, in the server's words. */
export class Refused extends Error {}

/** The server did not answer at all. */
export class Lost extends Error {}

/**
 * Have screen readers say a sentence, without moving anything.
 * @param {string} sentence
 */
export function announce(sentence) {
  const place = document.getElementById("announced");
  if (place) place.textContent = sentence;
}

const RUN = "run", SOON = 10_000;

/** Have the question of the page that is about to open asked at once: it was a click in ours that led there. */
export function runNext() {
  sessionStorage.setItem(RUN, String(Date.now()));
}

/** Whether this page's question is to be asked at once. */
export function toBeRun() {
  const since = Date.now() - Number(sessionStorage.getItem(RUN) ?? 0);
  sessionStorage.removeItem(RUN);
  return since < SOON;
}

/**
 * A JSON answer. Throws Refused with the server's sentence.
 * @param {string} path
 * @param {{method?: string, body?: unknown, form?: FormData, signal?: AbortSignal}} [options]
 */
export async function fetched(path, options = {}) {
  const response = await requested(path, options);
  return response.json();
}

/**
 * The answer to a request, its body still to be read.
 * @param {string} path
 * @param {{method?: string, body?: unknown, form?: FormData, signal?: AbortSignal}} [options]
 */
export async function requested(path, { method, body, form, signal } = {}) {
  const headers = new Headers();
  const kind = method ?? (body === undefined && !form ? "GET" : "POST");
  if (kind !== "GET") headers.set("x-patchclamp-token", document.querySelector("meta[name=token]")?.getAttribute("content") ?? "");
  if (body !== undefined) headers.set("content-type", "application/json");
  let response;
  try {
    response = await fetch(path, { method: kind, headers, body: form ?? (body === undefined ? undefined : JSON.stringify(body)), signal });
  } catch (error) {
    throw signal?.aborted ? error : new Lost(t("lost"));
  }
  if (!response.ok) {
    const told = await response.json().catch(() => ({}));
    throw new Refused(told.error ?? told.detail ?? `${response.status} ${response.statusText}`);
  }
  return response;
}

/**
 * An element with attributes, listeners (on…) and children; texts stay texts.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any}
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/**
 * Say what went wrong in the nearest place for it, or take that back.
 * @param {Element} near
 * @param {unknown} error
 */
export function complain(near, error) {
  const place = near.querySelector(".problem");
  if (!(place instanceof HTMLElement)) return;
  place.hidden = !error;
  place.textContent = error instanceof Error ? error.message : String(error ?? "");
}

/**
 * A number as tables have it: four digits.
 * @param {unknown} value
 */
export function shown(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
  return String(value);
}

/**
 * Seconds as a person says them.
 * @param {number} seconds
 */
export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/**
 * A table of cells, the first row its head.
 * @param {string[]} head
 * @param {(Node | string)[][]} rows
 * @param {string} [label]
 */
export function table(head, rows, label) {
  return el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": label ? `${t("table")}: ${label}` : t("table") }, el("table", {},
    el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, cell)))))));
}
