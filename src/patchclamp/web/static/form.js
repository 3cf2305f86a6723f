// A method's form and the parameters of an address: the same texts by the same names.
import { el, fetched, t } from "./base.js";

/** @typedef {Record<string, string[]>} Values */

/** The workbench's folder, in which a name needs no path. */
const FOLDER = `${document.body.dataset.files}/`;
/** Stands for a line break within one of several texts, of which each has a line. */
const BREAK = "⏎";
const SEVERAL = new Set(["lines", "files"]);

/**
 * What a form says, as an address would: only what differs from the defaults.
 * @param {HTMLElement} form
 * @param {string} method
 * @returns {Values}
 */
export function read(form, method) {
  /** @type {Values} */
  const values = { method: [method] };
  for (const field of form.querySelectorAll("[data-field]")) {
    const name = /** @type {HTMLElement} */ (field).dataset.field ?? "";
    const widget = /** @type {HTMLElement} */ (field).dataset.widget ?? "";
    const none = field.querySelector("[data-none]");
    if (none instanceof HTMLInputElement && none.checked) {
      values[none.dataset.none ?? ""] = [""];
      continue;
    }
    const held = textOf(field, widget);
    const standard = /** @type {HTMLElement} */ (field.querySelector("[data-default]"))?.dataset.default ?? "";
    if (widget === "choices" && held === "" && standard !== "") {
      values[name] = [""];
    } else if (widget === "check") {
      if ((held === "true") !== (standard === "true")) values[name] = [held];
    } else if (held !== standard && held !== "" && name) {
      values[name] = SEVERAL.has(widget) ? held.split("\n").filter((line) => line !== "").map((line) => line.replaceAll(BREAK, "\n")) : [held];
    }
  }
  return values;
}

/**
 * @param {Element} field
 * @param {string} widget
 */
function textOf(field, widget) {
  if (widget === "choices") return [...field.querySelectorAll(".choices input:checked")].map((box) => /** @type {HTMLInputElement} */ (box).value).join(",");
  const input = /** @type {HTMLInputElement} */ (field.querySelector("input, select, textarea"));
  if (widget === "check") return String(input.checked);
  return input.value;
}

/**
 * Fill a form from parameters; what they do not say goes back to its default.
 * @param {HTMLElement} form
 * @param {URLSearchParams} query
 */
export function fill(form, query) {
  let beyond = false;
  for (const field of form.querySelectorAll("[data-field]")) {
    const name = /** @type {HTMLElement} */ (field).dataset.field ?? "";
    const widget = /** @type {HTMLElement} */ (field).dataset.widget ?? "";
    const none = field.querySelector("[data-none]");
    if (none instanceof HTMLInputElement) none.checked = query.has(none.dataset.none ?? "");
    const given = query.getAll(name).map((text) => text.startsWith(FOLDER) ? text.slice(FOLDER.length) : text);
    const holder = /** @type {HTMLElement} */ (field.querySelector("[data-default]"));
    const standard = holder?.dataset.default ?? "";
    if (name === "model" && !given.length) continue;
    if (widget === "check") {
      const box = /** @type {HTMLInputElement} */ (field.querySelector("input"));
      box.checked = query.has(`no-${name}`) ? false : given.length ? given.at(-1) !== "false" : standard === "true";
    } else if (widget === "choices") {
      const chosen = new Set((given.length ? given.join(",") : standard.replaceAll("\n", ",")).split(","));
      for (const box of field.querySelectorAll(".choices input")) /** @type {HTMLInputElement} */ (box).checked = chosen.has(/** @type {HTMLInputElement} */ (box).value);
    } else {
      const input = /** @type {HTMLInputElement} */ (field.querySelector("input, select, textarea"));
      input.value = given.length ? (SEVERAL.has(widget) ? given.map((text) => text.replaceAll("\n", BREAK)).join("\n") : given[given.length - 1]) : standard;
    }
    if (given.length && field.closest("details")) beyond = true;
  }
  const details = form.querySelector("details.more");
  if (beyond && details instanceof HTMLDetailsElement) details.open = true;
}

/**
 * Values as the parameters of an address.
 * @param {Values} values
 */
export function asQuery(values) {
  const query = new URLSearchParams();
  for (const [name, texts] of Object.entries(values)) for (const text of texts) query.append(name, text);
  return query;
}

/** What the inputs for files offer. */
export async function offerFiles() {
  const { files, examples } = await fetched("/api/files");
  offer("files", [...files, ...examples]);
}

/** What the inputs for models offer. */
export async function offerModels() {
  offer("offered", (await fetched("/api/models")).offered);
}

/**
 * @param {string} id
 * @param {string[]} names
 */
function offer(id, names) {
  document.getElementById(id)?.replaceChildren(...names.map((name) => el("option", { value: name })));
}

/**
 * Let a form's upload buttons put a file into the workbench's folder and its name into the field.
 * @param {HTMLElement} form
 * @param {(error: unknown) => void} complain
 */
export function uploads(form, complain) {
  for (const button of form.querySelectorAll("button.upload")) {
    button.addEventListener("click", () => {
      const picker = Object.assign(document.createElement("input"), { type: "file" });
      picker.addEventListener("change", async () => {
        const chosen = picker.files?.[0];
        if (!chosen) return;
        const sent = new FormData();
        sent.append("file", chosen);
        try {
          const { name } = await fetched("/api/files", { form: sent });
          const input = /** @type {HTMLInputElement} */ (button.closest("[data-field]")?.querySelector("input, textarea"));
          input.value = input.tagName === "TEXTAREA" && input.value ? `${input.value}\n${name}` : name;
          await offerFiles();
        } catch (error) {
          complain(error);
        }
      });
      picker.click();
    });
    button.setAttribute("title", t("upload"));
  }
}
