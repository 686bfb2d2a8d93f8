// A page at full size, with what can be drawn over it.

import { Refused, ask, pageAddress, showImage } from "./api.js";
import { byId, element, pageName, remember, remembered } from "./dom.js";
import { drawEvidence, drawKept, drawWords } from "./overlays.js";
import { movement, score } from "./results.js";

const LAYERS = ["words", "kept", "evidence"];
const dialog = byId("viewer");
/** Which layers are on: chosen once, kept from page to page. */
const shown = new Set((remembered("mmrr-layers") ?? "words").split(",").filter((name) => LAYERS.includes(name)));

let open = null; // { pageId, query, workspace, controller } of the page that is shown
let source = ""; // whose evidence is shown
let word = ""; // index of the word whose evidence is shown; "" for all

/** `onClose()` is asked to leave the page; `onStep(step)` to show the next or previous result; `refused(error)`. */
export function setUpViewer({ onClose, onStep, refused }) {
  byId("close").addEventListener("click", onClose);
  byId("previous").addEventListener("click", () => onStep(-1));
  byId("next").addEventListener("click", () => onStep(1));
  dialog.addEventListener("cancel", (event) => { event.preventDefault(); onClose(); });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) onClose(); });
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const typing = event.target.matches("input[type=radio], select") || dialog.classList.contains("wide");
    if (step && !typing && !event.ctrlKey && !event.altKey && !event.metaKey) {
      event.preventDefault();
      onStep(step);
    }
  });
  byId("zoom").addEventListener("click", () => {
    byId("zoom").setAttribute("aria-pressed", String(dialog.classList.toggle("wide")));
  });
  for (const name of LAYERS) {
    byId(`show-${name}`).addEventListener("change", (event) => {
      if (event.target.checked) shown.add(name);
      else shown.delete(name);
      remember("mmrr-layers", [...shown].join(","));
      showLayer(name, refused);
    });
  }
  byId("source").addEventListener("change", (event) => { source = event.target.value; word = ""; showLayer("evidence", refused); });
  byId("page-image").addEventListener("error", () => problem("The page image could not be loaded."));
}

/** Show a page. `hit` is its place among the results, or null; `steps` whether there is a result before and after. */
export async function showPage(pageId, { hit, query, workspace, steps, refused }) {
  byId("previous").disabled = !steps.before;
  byId("next").disabled = !steps.after;
  facts(hit);
  if (open && open.pageId === pageId && open.query === query && open.workspace === workspace) return;
  open?.controller.abort();
  open = { pageId, query, workspace, controller: new AbortController() };
  [source, word] = ["", ""];
  byId("page-problem").hidden = true;
  byId("page-image").hidden = false;
  byId("page-image").removeAttribute("src");
  byId("text").textContent = "";
  for (const name of LAYERS) resetLayer(name, query);
  title(hit ?? { document: pageId.slice(0, pageId.lastIndexOf("/")), page: Number(pageId.slice(pageId.lastIndexOf("/") + 1)), label: "" });
  if (hit) ready(hit);
  if (!dialog.open) dialog.showModal();
  byId("stage").scrollTo(0, 0);
  byId("viewer-title").focus();
  const { signal } = open.controller;
  for (const name of LAYERS) if (shown.has(name)) showLayer(name, refused);
  try {
    const page = await ask(pageAddress(pageId, "", { workspace }), { signal });
    if (signal.aborted) return;
    title(page);
    if (!hit) ready(page);
    byId("text").textContent = page.text || "The page has no text.";
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) refused(error);
    else problem(error.status === 404 ? "There is no such page. It may have been removed." : error.message);
  }
}

/** Returns the id of the page that was shown, or null. */
export function closePage() {
  const left = open?.pageId ?? null;
  open?.controller.abort();
  open = null;
  if (dialog.open) dialog.close();
  return left;
}

function title(page) {
  const name = element("span", { class: "page" }, pageName(page));
  byId("viewer-title").replaceChildren(element("span", { class: "document" }, page.document), " ", name);
  byId("page-image").alt = `${page.document}, ${pageName(page)}`;
}

/** Show the image of a page whose size is known. */
function ready(page) {
  byId("sheet").style.setProperty("--width", page.width_px);
  byId("sheet").style.setProperty("--height", page.height_px);
  const url = pageAddress(open.pageId, "/image", { v: page.sha256.slice(0, 16), workspace: open.workspace });
  showImage(byId("page-image"), url).catch((error) => problem(error.message));
}

/** The place of the page among the results. */
function facts(hit) {
  const fact = (name, ...value) => element("div", {}, element("dt", {}, name), element("dd", {}, ...value));
  byId("facts").replaceChildren(...(hit ? [
    fact("Place", String(hit.rank), " ", movement(hit) ?? ""),
    fact("Score", score(hit.score)),
    ...(hit.first_stage_rank === null ? [] : [fact("First stage", `place ${hit.first_stage_rank}`)])] : []));
}

function problem(text) {
  byId("page-image").hidden = true;
  for (const name of LAYERS) byId(`layer-${name}`).toggleAttribute("hidden", true);
  byId("page-problem").textContent = text;
  byId("page-problem").hidden = false;
}

// Layers

function resetLayer(name, query) {
  const control = byId(`show-${name}`);
  control.checked = shown.has(name);
  control.disabled = name === "evidence" && !query;
  note(name, control.disabled ? "It needs a question." : "");
  byId(`layer-${name}`).toggleAttribute("hidden", true);
  if (name === "evidence") byId("evidence-choice").hidden = true;
}

const note = (name, text) => { byId(`note-${name}`).textContent = text; };

function unavailable(name, reason) {
  byId(`show-${name}`).checked = false;
  byId(`show-${name}`).disabled = true;
  note(name, reason);
}

async function showLayer(name, refused) {
  const layer = byId(`layer-${name}`);
  const now = open;
  if (!now || byId(`show-${name}`).disabled) return;
  if (!shown.has(name)) {
    layer.toggleAttribute("hidden", true);
    if (name === "evidence") byId("evidence-choice").hidden = true;
    note(name, "");
    return;
  }
  const { pageId, query, workspace } = now;
  const parameters = { workspace, ...(name === "kept" ? {} : { q: query }) };
  if (name === "evidence") Object.assign(parameters, { source, word });
  const waiting = setTimeout(() => note(name, "Loading …"), 300);
  try {
    const found = await ask(pageAddress(pageId, `/${name}`, parameters), { signal: now.controller.signal });
    if (open !== now || !shown.has(name)) return;
    clearTimeout(waiting);
    draw(name, layer, found, refused);
  } catch (error) {
    clearTimeout(waiting);
    if (error.name === "AbortError" || open !== now) return;
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) refused(error);
    else if (error.status === 404) unavailable(name, sentence(error.message));
    else note(name, sentence(error.message));
  } finally {
    clearTimeout(waiting);
  }
}

function draw(name, layer, found, refused) {
  if (name === "words") {
    if (!found.boxes.length) {
      unavailable(name, sentence(found.reason));
      return;
    }
    drawWords(layer, found);
    const marked = found.boxes.filter((box) => box.match).length;
    note(name, `${found.boxes.length} words` + (open.query ? `, ${marked || "none"} of the question` : ""));
  } else if (name === "kept") {
    drawKept(layer, found);
    const n = found.kept.filter(Boolean).length;
    note(name, `${n} of ${found.kept.length} visual tokens (${Math.round((100 * n) / found.kept.length)} %)`);
  } else {
    drawEvidence(layer, found);
    choices(found, refused);
    note(name, "");
  }
  layer.toggleAttribute("hidden", false);
}

/** The words of the question, to choose the one whose evidence is shown, and the models that can tell. */
function choices(found, refused) {
  byId("evidence-choice").hidden = false;
  byId("source-label").hidden = found.sources.length < 2;
  byId("source").replaceChildren(...found.sources.map((one) => element("option", { value: one, selected: one === found.source }, one)));
  const focused = document.activeElement?.name === "evidence-word";
  const all = [{ text: "the whole question", index: "" }, ...found.words];
  byId("evidence-words").replaceChildren(...all.map((one) => {
    const input = element("input", { type: "radio", name: "evidence-word", value: String(one.index), checked: String(one.index) === String(word) });
    input.addEventListener("change", () => { word = one.index; showLayer("evidence", refused); });
    return element("label", { class: "chip" }, input, element("span", {}, one.text));
  }));
  if (focused) byId("evidence-words").querySelector("input:checked")?.focus();
}

/** A reason of the server as a sentence. */
const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}` : "");
