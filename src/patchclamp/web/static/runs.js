// Stored records and jobs: lists, one record, two records side by side.
import { complain, el, fetched, shown, t, table } from "./base.js";
import { follow, stateOf } from "./jobs.js";
import { replayed, show } from "./result.js";

/** Get the list of records going. */
export async function runsPage() {
  const filter = /** @type {HTMLInputElement} */ (document.getElementById("filter"));
  const panel = /** @type {HTMLElement} */ (document.querySelectorAll("main section")[1]);
  const list = async () => {
    const { runs } = await fetched("/api/runs");
    const wanted = filter.value.toLowerCase();
    const rows = runs.filter((/** @type {any} */ run) => JSON.stringify(run).toLowerCase().includes(wanted));
    document.getElementById("runs")?.replaceChildren(rows.length ? table(
      [t("open"), t("method"), t("question asked"), t("model"), t("when"), t("outcome"), ""],
      rows.map((/** @type {any} */ run) => [el("a", { href: `/runs/${run.id}` }, run.id), run.method ?? "", run.asked ?? "", run.model ?? "",
        run.started ? new Date(run.started).toLocaleString() : "",
        el("span", { class: (run.outcome ?? "").replace(" ", "-"), title: run.reason ?? "" }, run.problem ?? (run.outcome ? t(run.outcome) : "")),
        el("button", { type: "button", "aria-label": `${t("delete")} ${run.id}`, onclick: () => remove(run.id) }, t("delete"))]), t("runs"))
      : el("p", { class: "empty" }, t("no runs")));
  };
  const remove = async (/** @type {string} */ id) => {
    if (!confirm(t("delete sure", { id }))) return;
    await fetched(`/api/runs/${id}`, { method: "DELETE" }).then(list).catch((error) => complain(panel, error));
  };
  filter.addEventListener("input", () => list().catch((error) => complain(panel, error)));
  await Promise.all([list(), jobsTable()]);
  setInterval(() => document.hidden || jobsTable().catch(() => undefined), 2000);
}

async function jobsTable() {
  const jobs = await fetched("/api/jobs");
  const place = document.getElementById("jobs");
  if (!place || place.contains(document.activeElement)) return;
  const action = (/** @type {any} */ job) => {
    const to = ["waiting", "running"].includes(job.state) ? "cancel" : job.state === "interrupted" || (job.state === "cancelled" && job.resumable) ? "resume" : "";
    return to ? el("button", { type: "button", "aria-label": `${t(to)} ${job.title}`, onclick: (/** @type {Event} */ event) => {
      /** @type {HTMLElement} */ (event.target).blur();
      const panel = /** @type {HTMLElement} */ (place.closest("section"));
      fetched(`/api/jobs/${job.id}/${to}`, { method: "POST" }).then(jobsTable).then(() => complain(panel, null)).catch((error) => complain(panel, error));
    } }, t(to)) : "";
  };
  place.replaceChildren(jobs.length ? table([t("method"), t("model"), t("state"), t("result"), ""], jobs.slice(0, 40).map((/** @type {any} */ job) => [
    job.query ? el("a", { href: `/ask?${new URLSearchParams(job.query)}` }, job.title) : job.title, job.payload.model ?? job.payload.ref ?? "", job.error ?? stateOf(job),
    job.record ? el("a", { href: `/runs/${job.record}` }, job.record) : "", action(job)]), t("jobs"))
    : el("p", { class: "empty" }, t("no jobs")));
}

/** One record, on a page of its own. */
export async function runPage() {
  const id = location.pathname.split("/").pop() ?? "";
  const place = /** @type {HTMLElement} */ (document.querySelector(".result"));
  const status = /** @type {HTMLElement} */ (document.getElementById("replayed"));
  const view = await show(place, id, { heading: true });
  const panel = /** @type {HTMLElement} */ (place.closest("section"));
  const again = el("button", { type: "button", onclick: async () => {
    try {
      complain(panel, null);
      const ended = await follow(status, await fetched(`/api/runs/${id}/replay`, { method: "POST" }));
      if (ended.error) throw new Error(ended.error);
      await replayed(status, id);
    } catch (error) {
      complain(panel, error);
    }
  } }, t("replay"));
  document.getElementById("run-tools")?.append(el("a", { href: `/ask?${new URLSearchParams(view.query)}` }, t("ask again")), again);
  await replayed(status, id);
}

/** Two records side by side, and where they differ. */
export async function comparePage() {
  const query = new URLSearchParams(location.search);
  const [first, second] = [query.get("a") ?? "", query.get("b") ?? ""];
  const told = await fetched(`/compare.json?${query}`);
  const rows = ["spec", "verdict", "provenance"].flatMap((part) => told[part].map((/** @type {any[]} */ [path, a, b]) =>
    [`${part}.${path}`, shown(text(a)), shown(text(b))]));
  document.getElementById("differences")?.replaceChildren(
    rows.length ? table([t("what"), t("first"), t("second")], rows, t("differences")) : el("p", {}, t("nothing differs")),
    el("p", {}, told.method[0] === told.method[1] ? t("values differ", { n: told.values }) : t("methods differ")));
  const places = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("section.result")]);
  await show(places[0], first, { heading: true });
  await show(places[1], second, { heading: true });
}

/** @param {unknown} value */
function text(value) {
  return value !== null && typeof value === "object" ? JSON.stringify(value) : value;
}
