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
 * Show a job until it is over; resolves with its last state.
 * @param {HTMLElement} place
 * @param {any} job
 * @returns {Promise<any>}
 */
export function follow(place, job) {
  const bar = el("progress", { "aria-label": t("running") });
  const text = el("span", {});
  const cancel = el("button", { type: "button", onclick: () => fetched(`/api/jobs/${job.id}/cancel`, { method: "POST" }).catch((error) => complain(place, error)) }, t("cancel"));
  place.replaceChildren(bar, " ", text, " ", cancel);
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
        place.replaceChildren(now.state === "done" ? "" : t(now.state));
        resolve(now);
      }
    };
    events.onmessage = (event) => update(JSON.parse(event.data));
    events.onerror = () => fetched(`/api/jobs/${job.id}`).then(update).catch(() => undefined);
    update(job);
  });
}
