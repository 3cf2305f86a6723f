// The tour, stop by stop: the question, its run, and what came out.
import { complain, duration, el, fetched, t } from "./base.js";
import { follow } from "./jobs.js";
import { show } from "./result.js";

/** @typedef {{item: HTMLElement, take: () => Promise<void>, isDone: () => boolean}} Shown */

/** Get the tour going. */
export async function tourPage() {
  const { stops, report } = await fetched("/tour.json");
  const place = /** @type {HTMLElement} */ (document.getElementById("stops"));
  const link = /** @type {HTMLElement} */ (document.getElementById("whole-report"));
  /** @type {Shown[]} */
  const all = [];
  const count = () => {
    const done = all.filter((one) => one.isDone()).length;
    link.hidden = !report && done === 0;
    /** @type {HTMLElement} */ (document.getElementById("stops-done")).textContent = t("stops done", { done, all: all.length });
  };
  let group = el("ol", {});
  let page = "";
  for (const stop of stops) {
    if (stop.page !== page) {
      page = stop.page;
      group = el("ol", { class: "stops" });
      place.append(el("section", { class: "panel", "aria-label": t(page) }, el("h2", {}, t(page)), group));
    }
    const one = shownStop(stop, count);
    all.push(one);
    group.append(one.item);
  }
  count();
  runAll(all);
  const asked = document.getElementById(location.hash.slice(1));
  asked?.querySelector("details")?.setAttribute("open", "");
  asked?.scrollIntoView({ block: "start" });
}

/**
 * The button that takes what is left, one after another, until it is pressed again.
 * @param {Shown[]} all
 */
function runAll(all) {
  const button = /** @type {HTMLButtonElement} */ (document.getElementById("run-all"));
  let going = false;
  button.addEventListener("click", async () => {
    going = !going;
    button.textContent = t(going ? "stop all" : "run all");
    if (!going) return;
    for (const one of all) if (going && !one.isDone()) await one.take();
    going = false;
    button.textContent = t("run all");
  });
}

/**
 * @param {any} stop
 * @param {() => void} changed
 * @returns {Shown}
 */
function shownStop(stop, changed) {
  const status = el("span", { class: "job", role: "status" });
  const result = el("div", { class: "result" });
  const outcome = el("span", { class: "outcome" });
  const said = (/** @type {any} */ verdict, /** @type {number | null} */ seconds) => {
    outcome.className = `outcome ${(verdict?.outcome ?? "").replace(" ", "-")}`;
    outcome.textContent = (verdict ? t(verdict.outcome) : stop.record ? t("done") : "") + (seconds ? ` · ${duration(seconds)}` : "");
  };
  said(stop.verdict, stop.seconds);
  let shownId = "";
  const open = async () => {
    if (!details.open || !stop.record || shownId === stop.record) return;
    shownId = stop.record;
    await show(result, stop.record).catch((error) => complain(item, error));
  };
  const take = async () => {
    complain(item, null);
    button.disabled = true;
    try {
      const ended = await follow(status, await fetched(`/api/tour/${stop.number}`, { method: "POST" }));
      if (ended.state !== "done") throw new Error(ended.error ?? t(ended.state));
      const { verdict, provenance } = await fetched(`/api/runs/${ended.record}`);
      stop.record = ended.record;
      said(verdict, provenance.duration);
      changed();
      await open();
    } catch (error) {
      complain(item, error);
    } finally {
      button.disabled = false;
    }
  };
  const button = el("button", { type: "button", "aria-label": `${t("run stop")}: ${stop.heading}`, onclick: async () => {
    details.open = true;
    await take();
  } }, t("run stop"));
  const details = el("details", { ontoggle: open }, el("summary", {}, `${stop.number}. ${stop.heading} `, outcome,
    el("span", { class: "question" }, stop.question)), result);
  const item = el("li", { id: `stop-${stop.number}` }, el("div", { class: "stop" }, details, el("p", { class: "buttons" }, button)),
    el("p", { class: "help" }, el("code", {}, stop.method), ` · ${stop.model} `, status), el("p", { class: "problem", role: "alert", hidden: true }));
  return { item, take, isDone: () => Boolean(stop.record) };
}
