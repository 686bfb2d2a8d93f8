// The page: its address is its state. A change of the state changes the address and then what is shown.

import { Refused, address, ask, setKey } from "./api.js";
import { byId, count, element, remember, remembered } from "./dom.js";
import { firstThumbnails, moveFocus, showResults, showSkeleton } from "./results.js";
import { setUpUpload } from "./upload.js";
import { closePage, setUpViewer, showPage } from "./viewer.js";

const PAGES = 20; // results, and how many more each time
const MOST_DOCUMENTS = 60; // names in the filter
const RETRIES = 3; // of a search that a busy server refused
const FIRST_MS = 200; // that reranking waits for the first thumbnails
const TRIED_AGAIN = [429, 503];

let info = null; // what the server is and allows
let informed = null; // the promise of it
let documents = []; // of the workspace
let hits = []; // of the search that is shown
let searched = ""; // the search that is shown or runs
let running = null; // its AbortController
let listed = ""; // the workspace whose documents are listed

// The state, in the address

/** The ranking that an address names: "first", or the weight of fusion; anything else is the reranker alone. */
function ranking(value) {
  return value === "first" || (Number(value) > 0 && Number.isFinite(Number(value))) ? value : "";
}

function read() {
  const values = new URLSearchParams(location.search);
  const pages = Math.min(200, Math.max(1, Math.trunc(Number(values.get("n"))) || PAGES));
  return {
    q: values.get("q")?.trim() ?? "", workspace: values.get("workspace") ?? "", documents: values.getAll("doc"),
    page: values.get("page") ?? "", pages, rank: ranking(values.get("rank")),
  };
}

function href({ q, workspace, documents: names, page, pages, rank }) {
  const values = new URLSearchParams();
  if (q) values.set("q", q);
  if (workspace) values.set("workspace", workspace);
  for (const name of names) values.append("doc", name);
  if (rank) values.set("rank", rank);
  if (pages !== PAGES) values.set("n", pages);
  if (page) values.set("page", page);
  return values.size ? `?${values}` : "./";
}

function go(changes, { replace = false } = {}) {
  const state = { ...read(), ...changes };
  const from = { opened: Boolean(state.page && !read().page) };
  if (replace) history.replaceState(history.state, "", href(state));
  else history.pushState(from, "", href(state));
  return show(state);
}

/** Make the page what the address says. */
async function show(state) {
  const { q, workspace, documents: names, page, pages, rank } = state;
  if (q !== typed()) byId("q").value = q;
  if (info) listWorkspaces();
  document.title = q ? `${q} · mmrr` : "mmrr";
  for (const choice of document.getElementsByName("rank")) choice.checked = choice.value === rank;
  const asked = JSON.stringify([q, workspace, names, pages, rank]);
  const isNew = asked !== searched;
  if (page) openPage(state);
  else focusOn(closePage());
  if (isNew) {
    searched = asked;
    await Promise.all([search(state), listDocuments(workspace)]);
  }
}

const typed = () => byId("q").value.trim();
/** Search for what is in the search box with other choices. */
const refine = (changes) => go({ q: typed(), page: "", ...changes });
const chosenWorkspace = () => read().workspace || undefined;
/** What the server tells of the workspace. */
const row = () => info?.workspaces.find((one) => one.name === (chosenWorkspace() ?? one.name));

// Search

async function search(state) {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  byId("more").hidden = true;
  if (!state.q) {
    hits = [];
    byId("hits").replaceChildren();
    welcome();
    return;
  }
  message();
  byId("status").textContent = "Searching …";
  byId("results").setAttribute("aria-busy", "true");
  const slow = setTimeout(() => { showSkeleton(byId("hits")); }, 150);
  const slower = setTimeout(() => { byId("status").textContent = "Still searching. The models may be loading."; }, 5000);
  const started = performance.now();
  const milliseconds = () => `${Math.round(performance.now() - started)} ms`;
  const take = (found) => {
    clearTimeout(slow);
    hits = found.results;
    showResults(byId("hits"), hits, { hrefOf: (page) => href({ ...state, page }), workspace: chosenWorkspace(), failed: refused });
    listNames();
    if (read().page) openPage(read()); // its place among the results
  };
  try {
    // The first stage takes milliseconds, a reranker up to seconds: its order follows when it is there.
    const first = await askPatiently(state, { rerank: false }, signal);
    take(first);
    const n = count(hits.length, "page");
    if (!hits.length) tellNone(state);
    else if (state.rank === "first" || !(await reranks())) {
      byId("status").textContent = `${n} by the first stage, ${milliseconds()}`;
    } else {
      byId("status").textContent = `${n} by the first stage, ${milliseconds()}. Reranking …`;
      await firstThumbnails(byId("hits"), FIRST_MS); // a reranker on the same processors would delay them
      take(await askPatiently(state, state.rank ? { fuse: Number(state.rank) } : {}, signal));
      byId("status").textContent = `${n}, reranked by ${row().reranker.split("/").pop()}, ${milliseconds()}`;
    }
    byId("more").hidden = hits.length < state.pages || state.pages >= 200;
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!hits.length || error.status === 401) byId("hits").replaceChildren();
    failed(error);
  } finally {
    clearTimeout(slow);
    clearTimeout(slower);
    if (running.signal === signal) byId("results").removeAttribute("aria-busy");
  }
}

/** Whether the pages of the workspace have caches of a reranker. */
async function reranks() {
  await informed;
  return Boolean(row()?.reranker);
}

/** Search; a busy server is asked again after the time that it names. */
async function askPatiently(state, how, signal) {
  const body = {
    ...how, query: state.q, top_k: state.pages, candidates: Math.max(100, state.pages), return_snippets: true,
    workspace: chosenWorkspace(), documents: state.documents.length ? state.documents : undefined,
  };
  for (let tries = 0; ; tries++) {
    try {
      return await ask(address("v1/search"), { body, signal });
    } catch (error) {
      if (!TRIED_AGAIN.includes(error.status) || !error.retryAfter || tries >= RETRIES) throw error;
      const seconds = Math.min(30, error.retryAfter);
      byId("status").textContent = `The server is busy. Trying again in ${seconds} s …`;
      await new Promise((resolve) => { setTimeout(resolve, 1000 * seconds); });
      if (signal.aborted) throw new DOMException("", "AbortError");
    }
  }
}

function tellNone(state) {
  byId("status").textContent = "No page was found.";
  const where = state.documents.length ? "the chosen documents" : "this workspace";
  message("No page was found", `No page of ${where} has a word of “${state.q}”. Try other words.`,
    state.documents.length ? element("button", { onclick: () => refine({ documents: [] }) }, "Search in all documents") : null);
}

function message(title, text, ...more) {
  byId("message").replaceChildren(...(title ? [element("div", { class: "message" }, element("h2", {}, title), element("p", {}, text), ...more)] : []));
}

function welcome() {
  byId("status").textContent = "";
  const { pages, documents: n, reranker: looks } = row() ?? {};
  if (!row()) return;
  const adds = !info.read_only;
  if (!pages) {
    message("No documents yet", adds ? "Drop PDF files or images on this page, or choose them with “Add documents”." : "Its operator adds documents with mmrr index.");
    return;
  }
  message("Find the right page", `${count(pages, "page")} of ${count(n, "document")} can be searched` +
    `${looks ? ", and a model that looks at the pages ranks them" : ""}. Ask a question, or type some words.`);
}

function failed(error) {
  if (!(error instanceof Refused)) {
    byId("status").textContent = "";
    message("This page has a fault", String(error.message ?? error));
    throw error;
  }
  if (error.status === 401) {
    refused(error);
    return;
  }
  const title = { 0: "The server does not answer", 404: "Not found", 429: "The server is busy", 504: "It took too long" }[error.status];
  byId("status").textContent = "";
  message(title ?? "The search failed", error.message, element("button", { onclick: again }, "Try again"));
}

function again() {
  searched = "";
  listed = "";
  return info ? show(read()) : start();
}

// The API key

let asksForKey = false;

/** Ask for the key once, however many requests were refused. */
function refused(error) {
  if (error.status !== 401 || asksForKey) return;
  asksForKey = true;
  closePage();
  byId("status").textContent = "";
  const tried = byId("key").value !== "";
  byId("key-problem").hidden = !tried;
  byId("key-problem").textContent = tried ? "The server refused this key." : "";
  byId("key-dialog").showModal();
}

byId("key-dialog").addEventListener("close", () => {
  asksForKey = false;
  if (!byId("key").value) {
    message("This server asks for an API key", "Without it nothing can be shown.", element("button", { onclick: again }, "Enter the key"));
    return;
  }
  setKey(byId("key").value.trim());
  again();
});

// Documents and workspaces

async function listDocuments(workspace) {
  if (listed === `=${workspace}`) return;
  listed = `=${workspace}`;
  try {
    documents = (await ask(address("v1/documents", { workspace }))).documents;
  } catch (error) {
    listed = "";
    documents = [];
    if (error.status === 401) refused(error);
  }
  listNames();
}

/** The filter: documents with results first. */
function listNames() {
  const chosen = read().documents;
  const found = new Map();
  for (const hit of hits) found.set(hit.document, (found.get(hit.document) ?? 0) + 1);
  const narrow = byId("narrow").value.trim().toLowerCase();
  const order = (one) => [!chosen.includes(one.id), -(found.get(one.id) ?? 0)];
  const rows = documents
    .filter((one) => one.pages && (chosen.includes(one.id) || one.id.toLowerCase().includes(narrow)))
    .map((one, place) => [...order(one), place, one])
    .sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2])
    .map((row) => row[3]);
  byId("documents").replaceChildren(...rows.slice(0, MOST_DOCUMENTS).map((one) => {
    const box = element("input", { type: "checkbox", value: one.id, checked: chosen.includes(one.id) });
    box.addEventListener("change", () => refine({ documents: checked(), pages: PAGES }));
    const n = found.get(one.id);
    return element("li", {}, element("label", {}, box, element("span", { class: "document" }, one.id),
      n ? element("span", { class: "number", title: `${count(n, "page")} among the results` }, String(n)) : null));
  }));
  const left = rows.length - MOST_DOCUMENTS;
  byId("more-documents").hidden = left <= 0;
  byId("more-documents").textContent = `and ${count(left, "more document")}`;
  byId("narrow").hidden = documents.length <= 12;
  byId("filter").hidden = documents.length < 2;
  byId("clear").hidden = !chosen.length;
}

const checked = () => [...byId("documents").querySelectorAll("input:checked")].map((box) => box.value).slice(0, 100);

function listWorkspaces() {
  byId("workspace").replaceChildren(...info.workspaces.map((one, place) => element("option", { value: place ? one.name : "" }, one.name)));
  byId("workspace").value = chosenWorkspace() ?? "";
  byId("workspace-label").hidden = info.workspaces.length < 2;
  byId("add").hidden = info.read_only || !info.workspaces.length;
  byId("ranking").hidden = !row()?.reranker;
}

// One page

function openPage(state) {
  const place = hits.findIndex((hit) => hit.page_id === state.page);
  showPage(state.page, {
    hit: hits[place] ?? null, query: state.q, workspace: chosenWorkspace(), refused,
    steps: { before: place > 0, after: place >= 0 && place < hits.length - 1 },
  });
}

/** After a page is closed, its result has the focus: it may be another one than was opened. */
function focusOn(pageId) {
  [...byId("hits").querySelectorAll("a[data-page]")].find((link) => link.dataset.page === pageId)?.focus();
}

function leavePage() {
  // The list is the entry before, if the page was opened from it.
  if (history.state?.opened) history.back();
  else go({ page: "" }, { replace: true });
}

function step(by) {
  const next = hits[hits.findIndex((hit) => hit.page_id === read().page) + by];
  if (next) go({ page: next.page_id }, { replace: true });
}

// Start

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  searched = ""; // the same question again is a new search
  refine({ pages: PAGES });
});
byId("home").addEventListener("click", (event) => {
  event.preventDefault();
  byId("q").value = "";
  go({ q: "", documents: [], page: "", pages: PAGES });
});
byId("hits").addEventListener("click", (event) => {
  const link = event.target.closest("li.hit")?.querySelector("a[data-page]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  go({ page: link.dataset.page });
});
byId("more").addEventListener("click", () => go({ pages: read().pages + PAGES }, { replace: true }));
byId("clear").addEventListener("click", () => refine({ documents: [] }));
byId("ranking").addEventListener("change", (event) => refine({ rank: event.target.value }));
byId("narrow").addEventListener("input", listNames);
byId("workspace").addEventListener("change", (event) => refine({ workspace: event.target.value, documents: [], pages: PAGES }));
addEventListener("popstate", () => show(read()));

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.matches("input:not([type=checkbox]), select, textarea");
  const empty = event.target === byId("q") && !byId("q").value; // the box has the focus at the start
  if (event.key === "/" && (!typing || empty) && byId("slash").checked) {
    event.preventDefault();
    byId("q").select();
    byId("q").focus();
  } else if (["ArrowDown", "ArrowUp"].includes(event.key) && (!typing || event.target === byId("q"))) {
    const inList = event.target.matches("a[data-page]") || event.target === byId("q") || event.target === document.body || event.target === byId("results");
    if (inList && moveFocus(byId("hits"), event.key === "ArrowDown" ? 1 : -1)) event.preventDefault();
  } else if (event.key === "Escape" && event.target.matches("a[data-page]")) {
    byId("q").focus();
  }
});
byId("slash").checked = remembered("mmrr-slash") !== "off";
byId("slash").addEventListener("change", (event) => remember("mmrr-slash", event.target.checked ? "on" : "off"));
byId("help").addEventListener("click", () => byId("help-dialog").showModal());

function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = { system: "Theme: system", light: "Theme: light", dark: "Theme: dark" }[theme];
  remember("mmrr-theme", theme);
}
setTheme(document.documentElement.dataset.theme ?? "system");
byId("theme").addEventListener("click", () => {
  const order = ["system", "light", "dark"];
  setTheme(order[(order.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % 3]);
});

async function start() {
  informed = inform();
  const first = show(read()); // the first stage need not wait for what the server tells of itself
  try {
    await informed;
    if (!read().q) welcome();
  } catch (error) {
    await first;
    failed(error);
  }
}

async function inform() {
  info = await ask(address("v1/info"));
  listWorkspaces();
}

setUpViewer({ onClose: leavePage, onStep: step, refused });
setUpUpload({
  allowed: () => (info && !info.read_only && info.workspaces.length ? info : null),
  workspace: () => chosenWorkspace() ?? info.workspaces[0].name,
  done: async () => {
    listed = "";
    informed = inform();
    await informed;
    await listDocuments(read().workspace);
    if (!read().q) welcome();
  },
});
if (matchMedia("(max-width: 48rem)").matches) byId("filter").open = false;
if (!read().q && !read().page && matchMedia("(pointer: fine)").matches) byId("q").focus();
start();
