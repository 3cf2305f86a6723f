// The tour, stop by stop: the question, its run, and what came out.
import { complain, el, fetched, t } from "./base.js";
import { follow } from "./jobs.js";
import { show } from "./result.js";

/** Get the tour going. */
export async function tourPage() {
  const { stops } = await fetched("/tour.json");
  document.getElementById("stops")?.replaceChildren(...stops.map(item));
}

/** @param {any} stop */
function item(stop) {
  const status = el("span", { role: "status" });
  const result = el("div", { class: "result" });
  const outcome = el("span", { class: "outcome" });
  const said = (/** @type {any} */ verdict) => {
    outcome.className = `outcome ${(verdict?.outcome ?? "").replace(" ", "-")}`;
    outcome.textContent = verdict ? t(verdict.outcome) : "";
  };
  said(stop.verdict);
  let shownId = "";
  const details = el("details", { ontoggle: async () => {
    if (details.open && stop.record && shownId !== stop.record) {
      shownId = stop.record;
      await show(result, stop.record).catch((error) => complain(part, error));
    }
  } }, el("summary", {}, `${stop.number}. ${stop.heading} `, outcome),
    el("p", { class: "question" }, stop.question), el("p", {}, el("code", {}, stop.method), ` · ${stop.model} `,
      el("button", { type: "button", "aria-label": `${t("run stop")}: ${stop.heading}`, onclick: run }, t("run stop")), " ", status), result);
  const part = el("li", {}, details, el("p", { class: "problem", role: "alert", hidden: true }));
  async function run() {
    complain(part, null);
    try {
      const ended = await follow(status, await fetched(`/api/tour/${stop.number}`, { method: "POST" }));
      if (ended.state !== "done") throw new Error(ended.error ?? t(ended.state));
      stop.record = shownId = ended.record;
      said((await show(result, ended.record)).verdict);
    } catch (error) {
      complain(part, error);
    }
  }
  return part;
}
