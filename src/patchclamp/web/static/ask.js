// Pages that ask methods: one form at a time, the question in the address, the answer below.
import { complain, el, fetched, t, toBeRun } from "./base.js";
import { asQuery, fill, offerFiles, offerModels, read, uploads } from "./form.js";
import { follow } from "./jobs.js";
import { code, show } from "./result.js";

/** Under what the page's last question is remembered while this tab is open: the menu leads back to it. */
const LAST = `last ${location.pathname}`;

/** Get the page's forms going. */
export async function askPage() {
  const sections = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("section.method")]);
  for (const section of sections) prepare(section);
  for (const link of document.querySelectorAll("nav.methods a")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const before = /** @type {HTMLElement | null} */ (document.querySelector("section.method:not([hidden])"));
      const section = choose(/** @type {HTMLElement} */ (link).dataset.method ?? "", new URLSearchParams());
      if (before && section) carryOver(before, section);
      history.pushState(null, "", link.getAttribute("href"));
    });
  }
  addEventListener("popstate", () => fromAddress(sections));
  offerFiles().catch(() => undefined);
  offerModels().catch(() => undefined);
  const last = sessionStorage.getItem(LAST);
  if (!location.search && last) history.replaceState(null, "", `${location.pathname}?${last}`);
  await fromAddress(sections);
}

/** @param {HTMLElement[]} sections */
async function fromAddress(sections) {
  const query = new URLSearchParams(location.search);
  const method = query.get("method") ?? sections[0]?.dataset.method ?? "";
  const section = choose(method, query);
  const page = /** @type {HTMLElement} */ (document.getElementById("content"));
  complain(page, section ? null : new Error(t("no method", { method })));
  if (!section || ![...query.keys()].some((key) => !["method", "model", "dtype"].includes(key))) return;
  const atOnce = toBeRun();
  if (document.getElementById("live")) section.scrollIntoView({ block: "start" });
  try {
    const { record, job } = await fetched(`/api/answer?${query}`);
    if (record) await shownIn(section, record);
    else if (job) await awaitJob(section, job);
    else if (atOnce) /** @type {HTMLFormElement} */ (section.querySelector("form")).requestSubmit();
  } catch (error) {
    complain(section, error);
  }
}

/**
 * Bring a method's form to the front, filled from an address.
 * @param {string} method
 * @param {URLSearchParams} query
 */
export function choose(method, query) {
  let chosen = null;
  for (const section of document.querySelectorAll("section.method")) {
    const mine = /** @type {HTMLElement} */ (section).dataset.method === method;
    /** @type {HTMLElement} */ (section).hidden = !mine;
    if (mine) chosen = /** @type {HTMLElement} */ (section);
  }
  for (const link of document.querySelectorAll("nav.methods a")) {
    if (/** @type {HTMLElement} */ (link).dataset.method === method) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  if (chosen && [...query.keys()].length) fill(/** @type {HTMLElement} */ (chosen.querySelector("form")), query);
  return chosen;
}

/** What the questions of a page are asked of, one after another: nothing that excludes another field. */
const CARRIED = ["model", "index", "sae", "vector"];

/**
 * What one form was told of model and files, in another that was told nothing yet.
 * @param {HTMLElement} from
 * @param {HTMLElement} to
 */
function carryOver(from, to) {
  for (const name of CARRIED) {
    const [held, empty] = [from, to].map((form) => /** @type {HTMLInputElement | null} */ (form.querySelector(`[data-field=${name}] input`)));
    if (!held?.value || !empty || held.value === held.dataset.default) continue;
    if (name === "model" ? from.dataset.loads !== to.dataset.loads : empty.value) continue; // another kind of model, or told already
    empty.value = held.value;
    const beyond = empty.closest("details");
    if (beyond && name !== "model") beyond.open = true;
  }
}

/** @param {HTMLElement} section */
function prepare(section) {
  const form = /** @type {HTMLFormElement} */ (section.querySelector("form"));
  const method = section.dataset.method ?? "";
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask(section, form, method);
  });
  form.addEventListener("input", () => section.querySelector(".result")?.classList.add("stale"));
  uploads(form, (error) => complain(section, error));
  const example = section.querySelector("button.example");
  example?.addEventListener("click", () => {
    fill(form, new URLSearchParams(example.getAttribute("data-query") ?? ""));
    section.querySelector(".result")?.classList.add("stale");
  });
  section.querySelector("button.code")?.addEventListener("click", async () => {
    const place = /** @type {HTMLElement} */ (section.querySelector(".shown-code"));
    place.hidden = !place.hidden;
    if (place.hidden) return;
    try {
      complain(section, null);
      const answer = await fetched(`/api/answer?${asQuery(read(form, method))}`);
      const details = code(answer.code);
      details.open = true;
      place.replaceChildren(details);
    } catch (error) {
      place.hidden = true;
      complain(section, error);
    }
  });
}

/**
 * @param {HTMLElement} section
 * @param {HTMLFormElement} form
 * @param {string} method
 */
async function ask(section, form, method) {
  const button = /** @type {HTMLButtonElement} */ (section.querySelector("button[type=submit]"));
  const result = /** @type {HTMLElement} */ (section.querySelector(".result"));
  button.disabled = true;
  complain(section, null);
  result.replaceChildren();
  try {
    const values = read(form, method);
    const { record, job, query } = await fetched("/api/ask", { body: { values } });
    const asked = new URLSearchParams(query).toString();
    sessionStorage.setItem(LAST, asked);
    history.replaceState(null, "", `${location.pathname}?${asked}`);
    fill(form, new URLSearchParams(query)); // what was left empty has its default again
    if (record) await shownIn(section, record);
    else await awaitJob(section, job);
    if (result.childElementCount) {
      const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      result.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
    }
    offerFiles().catch(() => undefined);
    document.dispatchEvent(new Event("answered"));
  } catch (error) {
    complain(section, error);
  } finally {
    button.disabled = false;
  }
}

/**
 * Follow a job, and show what came out.
 * @param {HTMLElement} section
 * @param {any} job
 */
async function awaitJob(section, job) {
  const [status, curves] = /** @type {HTMLElement[]} */ ([section.querySelector(".job"), section.querySelector(".curve")]);
  const ended = await follow(status, job, curves);
  if (ended.state === "failed") throw new Error(ended.error);
  if (ended.record) await shownIn(section, ended.record);
}

/**
 * @param {HTMLElement} section
 * @param {string} id
 */
async function shownIn(section, id) {
  const place = /** @type {HTMLElement} */ (section.querySelector(".result"));
  const isLens = section.dataset.method === "lens.logit";
  const view = await show(place, id, { onclick: isLens ? cellMenu : undefined });
  if (isLens && view.chart && typeof view.spec.prompt === "string" && !view.spec.beside) place.querySelector(".chart-panel")?.after(cellPicker(view));
}

/**
 * The way to a cell of the lens without a pointer: layer and token chosen from lists.
 * @param {any} view
 */
function cellPicker(view) {
  const all = /** @type {Record<string, any>[][]} */ (Object.values(view.chart.datasets ?? {}));
  const cells = (all.find((rows) => "first choice" in (rows[0] ?? {})) ?? all.find((rows) => "choice" in (rows[0] ?? {})) ?? [])
    .filter((row) => (row.choice ?? 1) === 1);
  const choice = (/** @type {string} */ label, /** @type {any[]} */ values) => el("label", {}, `${label} `, el("select", { "aria-label": label },
    ...values.map((value, i) => el("option", { value, selected: i === values.length - 1 }, value))));
  const layer = choice(t("layer"), [...new Set(cells.map((row) => row.layer))].sort((a, b) => a - b));
  const token = "first choice" in (cells[0] ?? {}) ? choice(t("token"), [...new Set(cells.map((row) => row.token))]) : null;
  const held = (/** @type {any} */ one) => one.querySelector("select").value;
  return el("p", { class: "buttons cell" }, t("one cell"), layer, token, el("button", { type: "button", onclick: (/** @type {MouseEvent} */ event) => {
    const chosen = cells.find((row) => String(row.layer) === held(layer) && (!token || row.token === held(token)));
    const box = /** @type {HTMLElement} */ (event.target).getBoundingClientRect();
    if (chosen) cellMenu(chosen, { clientX: box.right + 8, clientY: box.top }, view);
  } }, t("ask of it")));
}

/**
 * What can be done with a cell of the lens: ask about its block and token elsewhere.
 * @param {Record<string, any>} datum
 * @param {{clientX: number, clientY: number}} event
 * @param {any} view
 */
function cellMenu(datum, event, view) {
  document.getElementById("cell-menu")?.remove();
  const inGrid = typeof datum["first choice"] === "string"; // every token's, else the panel of one token's choices
  if (typeof datum.layer !== "number" || typeof view.spec.prompt !== "string" || !(inGrid || "choice" in datum)) return;
  const position = inGrid ? String(Number.parseInt(datum.token, 10)) : view.spec.position === "all" ? "last" : view.spec.position;
  const says = plain(inGrid ? datum["first choice"] : datum.token);
  const model = view.provenance.model;
  const link = (/** @type {string} */ path, /** @type {Record<string, string>} */ values) => `${path}?${new URLSearchParams({ model, ...values })}`;
  const menu = el("div", { id: "cell-menu", role: "menu", "aria-label": t("cell", { layer: datum.layer, token: position }) },
    el("strong", {}, t("cell", { layer: datum.layer, token: inGrid ? datum.token : position })),
    el("a", { role: "menuitem", href: link("/lens", { method: "lens.patchscope", text: view.spec.prompt, position }) }, t("send patchscope")),
    el("a", { role: "menuitem", href: link("/lens", { method: "lens.attribute", prompt: view.spec.prompt, answer: says, position, "top-neurons": "10" }) }, t("send neurons", { token: JSON.stringify(says) })),
    datum.layer >= 0 ? el("a", { role: "menuitem", href: link("/patch", { method: "lens.attention", prompt: view.spec.prompt, layers: String(datum.layer) }) }, t("send attention")) : null,
    el("button", { type: "button", onclick: () => menu.remove() }, t("close")));
  document.body.append(menu);
  menu.style.left = `${Math.min(event.clientX, innerWidth - menu.offsetWidth - 8)}px`;
  menu.style.top = `${Math.min(event.clientY, innerHeight - menu.offsetHeight - 8)}px`;
  /** @type {HTMLElement} */ (menu.querySelector("a")).focus();
}

/**
 * A token as the model has it, from its label in a chart.
 * @param {string} label
 */
function plain(label) {
  return label.replaceAll("␣", " ").replaceAll("⏎", "\n").replaceAll("⇥", "\t");
}
