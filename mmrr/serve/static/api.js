// Requests to the server that this page came from, and to no other.

const KEY = "mmrr-key";
let key = readKey();

function readKey() {
  try { return sessionStorage.getItem(KEY) ?? ""; } catch { return ""; }
}

/** Use an API key for all later requests of this tab. */
export function setKey(value) {
  key = value;
  try { sessionStorage.setItem(KEY, value); } catch { /* it stays in memory */ }
}

/** An answer that is no success. `status` is 0 where no server answered. */
export class Refused extends Error {
  constructor(status, message, retryAfter = 0) {
    super(message);
    Object.assign(this, { status, retryAfter });
  }
}

/** The address of a route. Relative, so that the page also works below a path of a proxy. */
export function address(path, parameters = {}) {
  const url = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
  }
  return url.href;
}

/** The address of a route of a page. */
export function pageAddress(pageId, route, parameters) {
  return address(`v1/pages/${pageId.split("/").map(encodeURIComponent).join("/")}${route}`, parameters);
}

const headers = () => (key ? { Authorization: `Bearer ${key}` } : {});

async function send(url, options) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer. It may have been stopped, or the network is down.");
  }
  if (answer.ok) return answer;
  let message = `The server answered with status ${answer.status}.`;
  try { message = (await answer.json()).error.message; } catch { /* no JSON */ }
  throw new Refused(answer.status, message, Number(answer.headers.get("Retry-After")) || 0);
}

/** The JSON of a route; with a `body` it is posted. Raises Refused. */
export async function ask(url, { body, signal } = {}) {
  const posted = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const answer = await send(url, {
    ...posted,
    signal,
    cache: "no-store",
    headers: { ...headers(), ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
  });
  return answer.json();
}

/** Show an image of the server. An <img> sends no API key, so with a key its bytes are fetched. Raises Refused. */
export async function showImage(image, url) {
  if (!key) {
    image.src = url;
    return;
  }
  const blob = await (await send(url, { headers: headers() })).blob();
  const local = URL.createObjectURL(blob);
  image.addEventListener("load", () => URL.revokeObjectURL(local), { once: true });
  image.src = local;
}

/** Send a file. `progress` gets a number from 0 to 1. Answers with the JSON of the job; raises Refused. */
export function upload(file, workspace, progress) {
  const form = new FormData();
  form.append("workspace", workspace);
  form.append("file", file, file.name);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not tell how much of a body was sent
    request.open("POST", address("v1/documents"));
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => progress(event.loaded / Math.max(1, event.total)));
    request.addEventListener("error", () => reject(new Refused(0, "The server does not answer.")));
    request.addEventListener("load", () => {
      if (request.status < 300) resolve(request.response);
      else reject(new Refused(request.status, request.response?.error?.message ?? `Status ${request.status}.`));
    });
    request.send(form);
  });
}
