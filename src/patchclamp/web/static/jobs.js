// Following a job: its state as it changes, with progress, time left and a way to end it.
import { announce, complain, duration, el, fetched, Lost, shown, t, table } from "./base.js";

/** What is told of a step of a training. */
const LOGGED = ["name", "step", "fvu", "l0", "dead"];

/**
 * What a job is doing, in words.
 * @param {any} job
 */
export function stateOf(job) {
  if (job.cancelling) return t("cancelling");
  if (job.state === "running" && job.advance) {
    const { description, done, total, left } = job.advance;
    const counted = total ? ` ${done}/${total}` : done ? ` ${done}` : "";
    return `${description}${counted}${left ? ` · ${t("left", { time: duration(left) })}` : ""}`;
  }
  return t(job.state);
}

/**
 * Draw what a training has logged, and its last step as a table, again and again while they are shown.
 * @param {HTMLElement} place
 * @param {string} id
 */
async function watchTraining(place, id) {
  const { draw } = await import("./chart.js");
  const [curves, last] = [el("div", { class: "chart" }), el("div", {})];
  place.replaceChildren(curves, last);
  const measure = (/** @type {string} */ field, /** @type {string} */ title) => ({ mark: "line", width: 320, height: 140, encoding: {
    x: { field: "step", type: "quantitative" }, y: { field, type: "quantitative", title, scale: { zero: false } },
    color: { field: "name", type: "nominal", title: null } } });
  while (place.isConnected) {
    const values = await fetched(`/api/jobs/${id}/log`).catch(() => []);
    if (values.length > 1) await draw(curves, { data: { values }, hconcat: [measure("fvu", "FVU"), measure("l0", "L0"), measure("dead", "dead")] }, { label: t("curve") });
    const latest = [...new Map(values.map((/** @type {any} */ one) => [one.name, one])).values()];
    if (latest.length) last.replaceChildren(table(LOGGED, latest.map((one) => LOGGED.map((field) => shown(one[field]))), t("curve")));
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

/**
 * Show a job until it is over; resolves with its last state. Throws where the server no longer knows it.
 * @param {HTMLElement} place
 * @param {any} job
 * @param {HTMLElement} [curves]
 * @returns {Promise<any>}
 */
export async function follow(place, job, curves) {
  const bar = el("progress", { "aria-label": t("running") });
  const text = el("span", {});
  const problem = el("span", { class: "problem", hidden: true });
  const cancel = el("button", { type: "button", onclick: () => fetched(`/api/jobs/${job.id}/cancel`, { method: "POST" }).catch((error) => complain(place, error)) }, job.resumable ? t("pause") : t("cancel"));
  const logged = el("div", {});
  place.replaceChildren(bar, " ", text, " ", cancel, " ", problem);
  curves?.replaceChildren(logged);
  if (curves && job.payload.method === "sae.train") watchTraining(logged, job.id);
  let now = job;
  for (let wait = 150; ["waiting", "running"].includes(now.state); wait = Math.min(wait * 1.3, 1500)) {
    text.textContent = stateOf(now);
    const { done, total } = now.advance ?? {};
    if (total) {
      bar.max = total;
      bar.value = done;
    } else bar.removeAttribute("value");
    await new Promise((resolve) => setTimeout(resolve, wait));
    try {
      now = await fetched(`/api/jobs/${job.id}`);
      complain(place, null);
    } catch (error) {
      if (!(error instanceof Lost)) throw error;
      complain(place, error);
    }
  }
  logged.remove();
  announce(`${now.title}: ${t(now.state)}`);
  place.replaceChildren(now.state === "done" ? "" : t(now.state), now.state === "cancelled" && now.resumable ? ` · ${t("goes on")}` : "");
  return now;
}
