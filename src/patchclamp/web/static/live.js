// A slider and the answers it makes, word by word: with the edit, without it, and beside a random direction.
import { complain, fetched, requested, t } from "./base.js";
import { asQuery } from "./form.js";

/** Get the live panel going, if the page has one. */
export function livePanel() {
  const panel = document.getElementById("live");
  if (!panel) return;
  const get = (/** @type {string} */ id) => /** @type {HTMLInputElement} */ (document.getElementById(`live-${id}`));
  const slider = get("strength");
  const output = /** @type {HTMLOutputElement} */ (panel.querySelector("output"));
  const [write, stop] = [get("write"), get("stop")];
  /** @type {AbortController | null} */
  let running = null;
  let timer = 0;

  const values = () => {
    const common = { method: [panel.dataset.method ?? ""], model: [get("model").value] };
    if (panel.dataset.method === "vectors.apply") {
      const strength = Number(slider.value);
      return { ...common, prompt: [get("prompt").value], vector: [get("vector").value], "max-new-tokens": ["40"],
        how: [strength < 0 ? "subtract" : "add"], strength: [String(Math.abs(strength))] };
    }
    const edits = JSON.stringify([{ op: "scale", site: get("site").value, value: Number(slider.value) }]);
    return { ...common, prompts: [get("prompt").value], edits: [edits], "max-new-tokens": ["24"] };
  };

  const moved = () => (output.textContent = `${Number(slider.value).toFixed(1)} (${slider.min} … ${slider.max})`);
  let known = "";
  /** The slider's range is about the vector's own strength, which is where it stands until it is moved. */
  const scale = async () => {
    const asked = `${get("model").value} ${get("vector").value}`;
    if (known === asked) return;
    const { strength } = await fetched("/api/live/strength", { body: { values: { ...values(), strength: [] } } });
    const most = Math.max(1, Math.ceil(2 * Math.abs(strength)));
    [slider.min, slider.max, slider.step] = [String(-most), String(most), String(most / 40)];
    if (!hasMoved) slider.value = String(strength);
    known = asked;
    moved();
  };
  let hasMoved = false;

  const begin = async () => {
    running?.abort();
    const mine = (running = new AbortController());
    complain(panel, null);
    stop.disabled = false;
    const places = new Map([...panel.querySelectorAll("[data-condition]")].map((place) => [/** @type {HTMLElement} */ (place).dataset.condition, /** @type {HTMLElement} */ (place)]));
    for (const place of places.values()) place.textContent = "…";
    try {
      if (panel.dataset.method === "vectors.apply" && !hasMoved) await scale();
      const response = await requested("/api/live", { body: { values: values() }, signal: mine.signal });
      const fresh = new Set(places.keys());
      for await (const piece of lines(response)) {
        if (piece.error) throw new Error(piece.error);
        if (piece.ended) throw new Error(t("stream replaced"));
        const place = places.get(piece.condition);
        if (!place || !piece.text) continue;
        if (fresh.delete(piece.condition)) place.textContent = "";
        place.append(piece.text);
      }
    } catch (error) {
      if (!mine.signal.aborted) complain(panel, error);
    } finally {
      if (running === mine) {
        stop.disabled = true;
        for (const place of places.values()) if (place.textContent === "…") place.textContent = "–";
      }
    }
  };

  slider.addEventListener("input", () => {
    hasMoved = true;
    moved();
    clearTimeout(timer);
    timer = window.setTimeout(begin, 250);
  });
  if (panel.dataset.method === "vectors.apply") {
    for (const name of ["model", "vector"]) get(name).addEventListener("change", () => {
      hasMoved = false;
      scale().then(() => complain(panel, null)).catch((error) => complain(panel, error));
    });
    const look = () => fetched("/api/files").then(({ files }) => files.includes(get("vector").value) && !hasMoved && scale()).catch(() => undefined);
    look();
    document.addEventListener("answered", look);
  }
  panel.querySelector("form")?.addEventListener("submit", (event) => {
    event.preventDefault();
    begin();
  });
  write.addEventListener("click", begin);
  stop.addEventListener("click", () => running?.abort());
  get("ask").addEventListener("click", () => (location.href = `/ask?${asQuery(values())}`));
  moved();
}

/**
 * A streamed answer's lines, each a JSON value.
 * @param {Response} response
 */
async function* lines(response) {
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const decoder = new TextDecoder();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    held += decoder.decode(value, { stream: !done });
    const whole = held.split("\n");
    held = whole.pop() ?? "";
    for (const line of whole) if (line) yield JSON.parse(line);
    if (done) return;
  }
}

/** Two lists of prompts, written in the page and kept as files. */
export function twoLists() {
  const panel = document.getElementById("two-lists");
  if (!panel) return;
  const button = /** @type {HTMLElement} */ (document.getElementById("lists-keep"));
  panel.querySelector("form")?.addEventListener("submit", (event) => {
    event.preventDefault();
    button.click();
  });
  button.addEventListener("click", async () => {
    const get = (/** @type {string} */ id) => /** @type {HTMLInputElement} */ (document.getElementById(`lists-${id}`)).value;
    const status = /** @type {HTMLElement} */ (panel.querySelector("[role=status]"));
    try {
      const names = [];
      for (const side of ["showing", "plain"]) {
        names.push((await fetched("/api/files/text", { body: { name: `${get("name")}-${side}.txt`, text: get(side) } })).name);
      }
      status.textContent = names.join(", ");
      location.href = `/vectors?${new URLSearchParams({ method: "vectors.find", source: names[0], plain: names[1], save: `${get("name")}.safetensors` })}`;
    } catch (error) {
      status.textContent = error instanceof Error ? error.message : t("failed");
    }
  });
}
