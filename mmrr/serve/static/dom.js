// Small helpers for the document. Text from outside enters the page as text nodes only.

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** A new element. Of `values`, `class`, `data-*`, `aria-*` and the like are attributes; children are nodes or strings. */
export function element(name, values = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(values)) {
    if (value === null || value === undefined || value === false) continue;
    if (key in made && key !== "width" && key !== "height") made[key] = value;
    else made.setAttribute(key === "class" ? "class" : key, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** "1 page", "3 pages". */
export const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

/** What a page is called: its number, or the document's own label with the number. */
export const pageName = (hit) => (hit.label ? `page ${hit.label} (no. ${hit.page})` : `page ${hit.page}`);

/** Read and write what this browser remembers; nothing where it does not allow that. */
export function remembered(name) {
  try { return localStorage.getItem(name); } catch { return null; }
}
export function remember(name, value) {
  try { localStorage.setItem(name, value); } catch { /* private mode */ }
}
