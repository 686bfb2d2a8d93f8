// The list of results.

import { pageAddress, showImage } from "./api.js";
import { element, pageName } from "./dom.js";

/** Thumbnails are asked for in two sizes only, so that the server finds them in its memory. */
const THUMBNAIL = window.devicePixelRatio > 1 ? 384 : 192;
/** The first images are loaded at once, the others when they come near the screen. */
const AT_ONCE = 8;

/** How a page moved from the first stage to the reranked list: an arrow and the number of places. */
export function movement(hit) {
  if (hit.first_stage_rank === null) return null;
  const places = hit.first_stage_rank - hit.rank;
  const [kind, arrow, words] = places > 0
    ? ["up", `▲ ${places}`, `up ${places} from ${hit.first_stage_rank}`]
    : places < 0 ? ["down", `▼ ${-places}`, `down ${-places} from ${hit.first_stage_rank}`] : ["same", "=", "same place"];
  const title = `Place ${hit.first_stage_rank} in the first stage, place ${hit.rank} after reranking`;
  return element("span", { class: `movement ${kind}`, title },
    element("span", { "aria-hidden": "true" }, arrow), element("span", { class: "hidden" }, words));
}

/** A score with as many digits as tell neighbours apart. */
export const score = (value) => value.toFixed(Math.abs(value) >= 100 ? 1 : 3);

/** A snippet whose words of the query are marked. */
function snippet(found) {
  if (!found || !found.parts.length) return element("p", { class: "snippet muted" }, "No text: this page is found by its image.");
  const parts = found.parts.map((part) => (part.match ? element("mark", {}, part.text) : part.text));
  return element("p", { class: "snippet" }, found.before ? "… " : "", ...parts, found.after ? " …" : "");
}

/** The frame with the thumbnail of a page. */
function frame(hit, url, failed) {
  const image = element("img", {
    alt: "", class: "thumbnail", width: hit.width_px, height: hit.height_px, elementtiming: "thumbnail",
    loading: hit.rank > AT_ONCE ? "lazy" : "eager", decoding: "async",
  });
  const missing = element("span", { class: "missing", hidden: true }, "The image could not be loaded");
  image.addEventListener("error", () => { image.hidden = true; missing.hidden = false; });
  showImage(image, url).catch((error) => { image.dispatchEvent(new Event("error")); failed(error); });
  return element("div", { class: "frame", "data-image": url }, image, missing);
}

function card(hit, href, picture) {
  return element("li", { class: "hit" },
    picture,
    element("div", { class: "about" },
      element("h2", {}, element("a", { href, "data-page": hit.page_id },
        element("span", { class: "document" }, hit.document), " ", element("span", { class: "page" }, pageName(hit)))),
      element("p", { class: "numbers" },
        element("span", { class: "rank" }, element("span", { class: "hidden" }, "Place "), String(hit.rank)),
        movement(hit),
        element("span", { class: "score" }, "score ", element("b", {}, score(hit.score)))),
      snippet(hit.snippet)));
}

/** Show the results. `hrefOf(pageId)` is the address of an open page; `failed(error)` is told of images that fail. */
export function showResults(list, hits, { hrefOf, workspace, failed }) {
  // A page that was in the list before keeps its image, and the focus stays on it.
  const before = new Map([...list.querySelectorAll("[data-image]")].map((one) => [one.dataset.image, one]));
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.page : null;
  list.replaceChildren(...hits.map((hit) => {
    const url = pageAddress(hit.page_id, "/image", { width: THUMBNAIL, format: "jpeg", v: hit.sha256.slice(0, 16), workspace });
    const picture = before.get(url) ?? frame(hit, url, failed);
    if (hit.rank <= AT_ONCE) picture.querySelector("img").loading = "eager";
    return card(hit, hrefOf(hit.page_id), picture);
  }));
  if (focused) [...list.querySelectorAll("a[data-page]")].find((one) => one.dataset.page === focused)?.focus({ preventScroll: true });
}

/** Wait until the first thumbnails can be drawn, but not longer than this many milliseconds. */
export function firstThumbnails(list, milliseconds) {
  const images = [...list.querySelectorAll(".thumbnail")].slice(0, AT_ONCE);
  const drawn = Promise.allSettled(images.map((image) => image.decode()));
  return Promise.race([drawn, new Promise((resolve) => { setTimeout(resolve, milliseconds); })]);
}

/** Empty cards while the server searches. */
export function showSkeleton(list, n = 6) {
  const empty = () => element("li", { class: "hit skeleton", "aria-hidden": "true" },
    element("div", { class: "frame" }),
    element("div", { class: "about" }, ...[60, 30, 95, 90, 70].map((wide) => element("span", { class: `bar w${wide}` }))));
  list.replaceChildren(...Array.from({ length: n }, empty));
}

/** Move the focus by `step` results; from the search box to the first one. */
export function moveFocus(list, step) {
  const links = [...list.querySelectorAll("a[data-page]")];
  if (!links.length) return false;
  const at = links.indexOf(document.activeElement);
  const next = at < 0 ? 0 : Math.min(links.length - 1, Math.max(0, at + step));
  links[next].focus();
  links[next].closest("li").scrollIntoView({ block: "nearest" });
  return true;
}
