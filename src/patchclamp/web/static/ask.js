// Pages that ask methods: one form at a time, the question in the address, the answer below.
import { complain, el, fetched, t } from "./base.js";
import { asQuery, fill, offerFiles, offerModels, read, uploads } from "./form.js";
import { follow } from "./jobs.js";
import { code, show } from "./result.js";

/** Get the page's forms going. */
export async function askPage() {
  const sections = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("section.method")]);
  for (const section of sections) prepare(section);
  for (const link of document.querySelectorAll("nav.methods a")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      choose(/** @type {HTMLElement} */ (link).dataset.method ?? "", new URLSearchParams());
      history.pushState(null, "", link.getAttribute("href"));
    });
  }
  addEventListener("popstate", () => fromAddress(sections));
  offerFiles().catch(() => undefined);
  offerModels().catch(() => undefined);
  await fromAddress(sections);
}

/** @param {HTMLElement[]} sections */
async function fromAddress(sections) {
  const query = new URLSearchParams(location.search);
  const method = query.get("method") ?? sections[0]?.dataset.method ?? "";
  const section = choose(method, query);
  if (!section || ![...query.keys()].some((key) => !["method", "model", "dtype"].includes(key))) return;
  try {
    const { record } = await fetched(`/api/answer?${query}`);
    if (record) await shownIn(section, record);
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

/** @param {HTMLElement} section */
function prepare(section) {
  const form = /** @type {HTMLFormElement} */ (section.querySelector("form"));
  const method = section.dataset.method ?? "";
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask(section, form, method);
  });
  uploads(form, (error) => complain(section, error));
  const example = section.querySelector("button.example");
  example?.addEventListener("click", () => fill(form, new URLSearchParams(example.getAttribute("data-query") ?? "")));
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
  const status = /** @type {HTMLElement} */ (section.querySelector(".job"));
  button.disabled = true;
  complain(section, null);
  try {
    const values = read(form, method);
    const { record, job, query } = await fetched("/api/ask", { body: { values } });
    history.replaceState(null, "", `${location.pathname}?${new URLSearchParams(query)}`);
    let id = record;
    if (job) {
      const ended = await follow(status, job);
      if (ended.state === "failed") throw new Error(ended.error);
      id = ended.record;
    }
    if (id) {
      await shownIn(section, id);
      const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      section.querySelector(".result")?.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
    }
    offerFiles().catch(() => undefined);
  } catch (error) {
    complain(section, error);
  } finally {
    button.disabled = false;
  }
}

/**
 * @param {HTMLElement} section
 * @param {string} id
 */
async function shownIn(section, id) {
  const place = /** @type {HTMLElement} */ (section.querySelector(".result"));
  await show(place, id, { onclick: section.dataset.method === "lens.logit" ? cellMenu : undefined });
}

/**
 * What can be done with a cell of the lens: ask about its block and token elsewhere.
 * @param {Record<string, any>} datum
 * @param {MouseEvent} event
 * @param {any} view
 */
function cellMenu(datum, event, view) {
  document.getElementById("cell-menu")?.remove();
  if (typeof datum.layer !== "number" || typeof view.spec.prompt !== "string") return;
  const at = typeof datum.token === "string" ? Number.parseInt(datum.token, 10) : Number.NaN;
  const position = Number.isNaN(at) ? "last" : String(at);
  const model = view.provenance.model;
  const link = (/** @type {string} */ path, /** @type {Record<string, string>} */ values) => `${path}?${new URLSearchParams({ model, ...values })}`;
  const menu = el("div", { id: "cell-menu", role: "menu", "aria-label": t("cell", { layer: datum.layer, token: position }) },
    el("strong", {}, t("cell", { layer: datum.layer, token: datum.token ?? position })),
    el("a", { role: "menuitem", href: link("/lens", { method: "lens.patchscope", text: view.spec.prompt, position }) }, t("send patchscope")),
    el("a", { role: "menuitem", href: link("/lens", { method: "lens.attribute", prompt: view.spec.prompt, answer: view.spec.watch[0] ?? "", position, "top-neurons": "10" }) }, t("send neurons")),
    datum.layer >= 0 ? el("a", { role: "menuitem", href: link("/patch", { method: "lens.attention", prompt: view.spec.prompt, layers: String(datum.layer) }) }, t("send attention")) : null,
    el("button", { type: "button", onclick: () => menu.remove() }, t("close")));
  document.body.append(menu);
  menu.style.left = `${Math.min(event.clientX, innerWidth - menu.offsetWidth - 8)}px`;
  menu.style.top = `${Math.min(event.clientY, innerHeight - menu.offsetHeight - 8)}px`;
  /** @type {HTMLElement} */ (menu.querySelector("a")).focus();
}

