// Vega-Lite charts without evaluated code: expressions are walked by Vega's interpreter, so that the page's policy can
// forbid the rest.
import { el } from "./base.js";
import { expressionInterpreter } from "./vendor/vega-interpreter.js";

/** @type {any} */
const { vega, vegaLite } = /** @type {any} */ (globalThis);

/** What is drawn where. @type {WeakMap<HTMLElement, any>} */
const DRAWN = new WeakMap();

/** What the charts' colours, chosen for white paper, are on dark ground. */
const ON_DARK = new Map([
  ["#1b6ca8", "#5aa9e6"], ["#d1495b", "#f07c8b"], ["#66a182", "#7cc79d"], ["#8d5fd3", "#b794f0"], ["#4b4b4b", "#c3cad2"],
  ["#000000", "#ffcf40"], ["#303030", "#d5dbe1"], ["#333333", "#d5dbe1"], ["#606060", "#aab3bd"], ["#777777", "#98a2ad"], ["#b0b0b0", "#8b95a0"],
]);

/**
 * A specification in the colours of this page; its data stay as they are.
 * @param {any} part
 * @returns {any}
 */
function coloured(part) {
  if (typeof part === "string") return ON_DARK.get(part.toLowerCase()) ?? part;
  if (Array.isArray(part)) return part.map(coloured);
  if (!part || typeof part !== "object") return part;
  return Object.fromEntries(Object.entries(part).map(([name, value]) => [name, ["data", "datasets"].includes(name) ? value : coloured(value)]));
}

/**
 * A specification whose panels stand side by side one fewer in a row; the same one if none do.
 * @param {any} part
 * @returns {any}
 */
function narrower(part) {
  if (Array.isArray(part.vconcat)) {
    const inner = part.vconcat.map(narrower);
    return inner.every((/** @type {any} */ one, /** @type {number} */ i) => one === part.vconcat[i]) ? part : { ...part, vconcat: inner };
  }
  const { hconcat, ...rest } = part;
  if (hconcat?.length > 1) return { ...rest, concat: hconcat, columns: hconcat.length - 1 };
  return part.concat && part.columns > 1 ? { ...part, columns: part.columns - 1 } : part;
}

/** Colours of axes and titles on this page's ground. */
function config() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const line = style.getPropertyValue("--line").trim();
  return {
    background: "transparent",
    axis: { labelColor: ink, titleColor: ink, tickColor: line, domainColor: line, gridColor: line },
    legend: { labelColor: ink, titleColor: ink },
    title: { color: ink, subtitleColor: ink },
    header: { labelColor: ink, titleColor: ink },
    style: { "guide-label": { fill: ink }, "guide-title": { fill: ink } },
    text: { color: ink }, rule: { color: ink },
  };
}

/**
 * The text behind the pointer.
 * @param {any} _
 * @param {MouseEvent} event
 * @param {any} item
 * @param {any} value
 */
function tooltip(_, event, item, value) {
  const box = document.getElementById("tooltip") ?? document.body.appendChild(el("div", { id: "tooltip", role: "tooltip" }));
  box.hidden = value === null || value === undefined || value === "";
  if (box.hidden) return;
  const lines = typeof value === "object" ? Object.entries(value).map(([name, one]) => `${name}: ${one}`) : [String(value)];
  box.replaceChildren(...lines.map((line) => el("div", {}, line)));
  box.style.left = `${Math.min(event.clientX + 12, innerWidth - box.offsetWidth - 8)}px`;
  box.style.top = `${Math.min(event.clientY + 12, innerHeight - box.offsetHeight - 8)}px`;
}

/**
 * Draw a Vega-Lite specification in an element. Panels for which there is no room go below the others, if that helps.
 * @param {HTMLElement} place
 * @param {object} specification
 * @param {{label?: string, onclick?: (datum: Record<string, any>, event: MouseEvent) => void, large?: boolean}} [options]
 */
export async function draw(place, specification, options = {}) {
  let view = await drawn(place, specification, options);
  let best = specification;
  while (!options.large && place.scrollWidth > place.clientWidth) {
    const [fewer, before] = [narrower(best), place.scrollWidth];
    if (fewer === best) break;
    view = await drawn(place, fewer, options);
    if (place.scrollWidth >= before) return drawn(place, best, options);
    best = fewer;
  }
  return view;
}

/**
 * Draw a Vega-Lite specification as it is.
 * @param {HTMLElement} place
 * @param {object} specification
 * @param {{label?: string, onclick?: (datum: Record<string, any>, event: MouseEvent) => void, large?: boolean}} options
 */
async function drawn(place, specification, { label, onclick, large }) {
  const isDark = document.documentElement.dataset.theme === "dark";
  const compiled = vegaLite.compile(isDark ? coloured(specification) : structuredClone(specification), { config: config(), logger: vega.logger(vega.Error) }).spec;
  compiled.description = label ?? "";
  const view = new vega.View(vega.parse(compiled, null, { ast: true }), {
    expr: expressionInterpreter, renderer: large ? "svg" : "canvas", hover: true, logLevel: vega.Error,
  });
  DRAWN.get(place)?.finalize();
  DRAWN.set(place, view);
  place.replaceChildren();
  const inputs = el("div", { class: "inputs" });
  view.tooltip(tooltip).initialize(place, inputs);
  await view.runAsync();
  place.append(inputs);
  const canvas = place.querySelector("canvas, svg");
  canvas?.setAttribute("role", "img");
  canvas?.setAttribute("aria-label", label ?? "");
  if (large && canvas instanceof SVGElement) {
    const [width, height] = ["width", "height"].map((name) => Number(canvas.getAttribute(name)));
    const times = Math.max(1, Math.min((place.clientWidth - 24) / width, (innerHeight * 0.94 - 140) / height));
    canvas.setAttribute("width", String(width * times));
    canvas.setAttribute("height", String(height * times));
  }
  for (const input of inputs.querySelectorAll("input, select")) {
    if (!input.getAttribute("aria-label")) input.setAttribute("aria-label", input.getAttribute("name") ?? label ?? "");
  }
  if (onclick) view.addEventListener("click", (/** @type {MouseEvent} */ event, /** @type {any} */ item) => {
    if (item?.datum) onclick(item.datum, event);
  });
  return view;
}
