// Following a job: its state as it changes, with progress, time left and a way to end it.
import { complain, duration, el, fetched, t } from "./base.js";

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
 * Draw what a training has logged, again and again while it is shown.
 * @param {HTMLElement} place
 * @param {string} id
 */
async function watchTraining(place, id) {
  const { draw } = await import("./chart.js");
  const measure = (/** @type {string} */ field, /** @type {string} */ title) => ({ mark: "line", width: 320, height: 140, encoding: {
    x: { field: "step", type: "quantitative" }, y: { field, type: "quantitative", title, scale: { zero: false } },
    color: { field: "name", type: "nominal", title: null } } });
  while (place.isConnected) {
    const values = await fetched(`/api/jobs/${id}/log`).catch(() => []);
    if (values.length > 1) await draw(place, { data: { values }, hconcat: [measure("fvu", "FVU"), measure("l0", "L0"), measure("dead", "dead")] }, { label: t("curve") });
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

/**
 * Show a job until it is over; resolves with its last state.
 * @param {HTMLElement} place
 * @param {any} job
 * @returns {Promise<any>}
 */
export function follow(place, job) {
  const bar = el("progress", { "aria-label": t("running") });
  const text = el("span", {});
  const cancel = el("button", { type: "button", onclick: () => fetched(`/api/jobs/${job.id}/cancel`, { method: "POST" }).catch((error) => complain(place, error)) }, job.resumable ? t("pause") : t("cancel"));
  const curve = el("div", { class: "chart curve" });
  place.replaceChildren(bar, " ", text, " ", cancel, curve);
  if (job.payload.method === "sae.train") watchTraining(curve, job.id);
  return new Promise((resolve) => {
    const events = new EventSource(`/api/jobs/${job.id}/events`);
    const update = (/** @type {any} */ now) => {
      text.textContent = stateOf(now);
      const { done, total } = now.advance ?? {};
      if (total) {
        bar.max = total;
        bar.value = done;
      } else bar.removeAttribute("value");
      if (!["waiting", "running"].includes(now.state)) {
        events.close();
        place.replaceChildren(now.state === "done" ? "" : t(now.state), now.state === "cancelled" && now.resumable ? ` · ${t("goes on")}` : "");
        resolve(now);
      }
    };
    events.onmessage = (event) => update(JSON.parse(event.data));
    events.onerror = () => fetched(`/api/jobs/${job.id}`).then(update).catch(() => undefined);
    update(job);
  });
}
