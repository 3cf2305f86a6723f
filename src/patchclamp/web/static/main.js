// What every page does, and which page this is.
import { complain, el, fetched, runNext, t } from "./base.js";
import { showPins } from "./pins.js";

const POLL = 3000;
/** @type {Record<string, () => Promise<void>>} */
const VIEWS = {
  page: async () => {
    const { livePanel, twoLists } = await import("./live.js");
    livePanel();
    twoLists();
    (await import("./steps.js")).dictionarySteps();
    await (await import("./ask.js")).askPage();
  },
  models: async () => (await import("./models.js")).modelsPage(),
  runs: async () => (await import("./runs.js")).runsPage(),
  run: async () => (await import("./runs.js")).runPage(),
  compare: async () => (await import("./runs.js")).comparePage(),
  tour: async () => (await import("./tour.js")).tourPage(),
  starting: async () => undefined,
};

async function status() {
  const place = /** @type {HTMLElement} */ (document.getElementById("status"));
  try {
    const now = await fetched("/api/status");
    const [job] = now.jobs.running;
    place.textContent = now.stage !== "ready" ? `${now.stage} …` : job ? `${t("busy")}: ${job.title}` : t("ready");
    if (now.problem) place.title = now.problem;
    const starting = document.getElementById("starting");
    if (starting) {
      starting.textContent = (starting.dataset.text ?? "").replace("{stage}", now.stage);
      if (now.ready) location.reload();
    }
    setTimeout(status, starting || now.stage !== "ready" ? 500 : POLL);
  } catch {
    place.textContent = "…";
    setTimeout(status, POLL);
  }
}

function theme() {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem("theme", next);
  location.reload(); // charts are drawn in the page's colours
}

function language() {
  const other = document.documentElement.lang === "zh" ? "en" : "zh";
  document.cookie = `patchclamp-language=${other}; path=/; max-age=31536000; samesite=strict`;
  location.reload();
}

let awaiting = false;
document.addEventListener("keydown", (event) => {
  const target = /** @type {HTMLElement} */ (event.target);
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    /** @type {HTMLFormElement | null} */ (target.closest("form"))?.requestSubmit();
    return;
  }
  if (event.key === "Escape") {
    document.getElementById("cell-menu")?.remove();
    /** @type {HTMLElement | null} */ (document.querySelector(".maximised > .enlarge"))?.click();
  }
  if (target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    event.preventDefault();
    /** @type {HTMLElement | null} */ (document.querySelector("main :is(section:not([hidden])) :is(input, textarea):not([type=checkbox])"))?.focus();
  } else if (awaiting) {
    awaiting = false;
    const links = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("header nav a")]);
    links.find((link) => link.dataset.key === event.key)?.click();
  } else if (event.key === "g") {
    awaiting = true;
    setTimeout(() => (awaiting = false), 1500);
  }
});

for (const panel of document.querySelectorAll("section.panel")) {
  const button = el("button", { type: "button", class: "enlarge", "aria-pressed": "false", "aria-label": t("maximise panel"), title: t("maximise panel"), onclick: () => {
    const large = panel.classList.toggle("maximised");
    button.setAttribute("aria-pressed", String(large));
  } }, "⤢");
  panel.prepend(button);
}

// A click on one of these asks the question it leads to; an address from elsewhere only fills in the form.
document.addEventListener("click", (event) => {
  const link = /** @type {HTMLElement} */ (event.target).closest?.("a[data-run]");
  if (link && !event.ctrlKey && !event.metaKey) runNext();
});

document.getElementById("theme")?.addEventListener("click", theme);
document.getElementById("language")?.addEventListener("click", language);
showPins();
status();
const view = document.body.dataset.view ?? "";
VIEWS[view]?.().then(() => (document.body.dataset.ready = "true")).catch((error) => {
  complain(/** @type {HTMLElement} */ (document.getElementById("content")), error);
});
