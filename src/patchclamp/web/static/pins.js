// Records kept at hand, in this browser: two of them make a comparison.
import { el, t } from "./base.js";

/** @typedef {{id: string, method: string, model: string}} Pin */

/** @returns {Pin[]} */
function pins() {
  try {
    return JSON.parse(localStorage.getItem("pins") ?? "[]");
  } catch {
    return [];
  }
}

/** @param {Pin[]} all */
function keep(all) {
  localStorage.setItem("pins", JSON.stringify(all.slice(-6)));
  showPins();
}

/** @param {any} view */
export function pinButton(view) {
  const isPinned = () => pins().some((pin) => pin.id === view.id);
  const button = el("button", { type: "button", onclick: () => {
    const others = pins().filter((pin) => pin.id !== view.id);
    keep(isPinned() ? others : [...others, { id: view.id, method: view.method, model: view.provenance.name }]);
    button.textContent = isPinned() ? t("unpin") : t("pin");
  } }, isPinned() ? t("unpin") : t("pin"));
  return button;
}

/** The strip of pinned records. */
export function showPins() {
  const strip = document.getElementById("pins");
  if (!strip) return;
  const all = pins();
  strip.hidden = all.length === 0;
  const boxes = all.map((pin, i) => el("input", { type: "checkbox", value: pin.id, checked: i >= all.length - 2, "aria-label": `${t("compare")} ${pin.id}`, onchange: () => chosen() }));
  const compare = el("a", { class: "button" }, t("compare pinned"));
  const chosen = () => {
    const [a, b, ...more] = boxes.filter((box) => box.checked).map((box) => box.value);
    compare.hidden = !b || more.length > 0;
    compare.href = `/compare?${new URLSearchParams({ a: a ?? "", b: b ?? "" })}`;
  };
  strip.replaceChildren(el("strong", {}, t("pinned")), ...all.map((pin, i) => el("span", { class: "pin" }, boxes[i], " ",
    el("a", { href: `/runs/${pin.id}` }, `${pin.method} · ${pin.model}`),
    el("button", { type: "button", "aria-label": `${t("unpin")} ${pin.id}`, onclick: () => keep(pins().filter((one) => one.id !== pin.id)) }, "×"))), compare,
    el("button", { type: "button", onclick: () => keep([]) }, t("unpin all")));
  chosen();
}
