// Adding documents by drag and drop or with the button.

import { address, ask, upload } from "./api.js";
import { byId, count, element } from "./dom.js";

const POLL_MS = 600;

/** `allowed()` is what GET /v1/info says, or null; `workspace()` its name; `done()` is called when a document is in. */
export function setUpUpload({ allowed, workspace, done }) {
  const [files, drop] = [byId("files"), byId("drop")];
  byId("add").addEventListener("click", () => files.click());
  files.addEventListener("change", () => {
    addAll(files.files);
    files.value = "";
  });
  const holdsFiles = (event) => allowed() && [...(event.dataTransfer?.types ?? [])].includes("Files");
  let depth = 0; // a drag enters and leaves every element on its way
  const end = () => { depth = 0; drop.hidden = true; };
  addEventListener("dragenter", (event) => {
    if (!holdsFiles(event)) return;
    depth++;
    drop.hidden = false;
  });
  addEventListener("dragleave", (event) => { if (holdsFiles(event) && --depth <= 0) end(); });
  addEventListener("dragover", (event) => { if (holdsFiles(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    end();
    addAll(event.dataTransfer.files);
  });

  function addAll(chosen) {
    for (const file of chosen) add(file, allowed(), workspace(), done);
  }
}

async function add(file, allowed, workspace, done) {
  const bar = element("progress", { max: 1, value: 0, "aria-label": `Progress of ${file.name}` });
  const state = element("span", { class: "state", role: "status" }, "Waiting");
  const line = element("li", { class: "job" }, element("span", { class: "document" }, file.name), bar, state);
  byId("jobs").prepend(line);
  byId("uploads").hidden = false;
  const end = (text, kind) => {
    bar.hidden = true;
    state.textContent = text;
    line.classList.add(kind);
  };
  const ending = file.name.slice(file.name.lastIndexOf(".")).toLowerCase();
  if (!allowed.upload_endings.includes(ending)) {
    end(`No document: expected ${allowed.upload_endings.slice(0, 5).join(", ")} or another image`, "failed");
    return;
  }
  if (file.size > allowed.upload_bytes) {
    end(`Too large: ${megabytes(file.size)}; expected at most ${megabytes(allowed.upload_bytes)}`, "failed");
    return;
  }
  try {
    let job = await upload(file, workspace, (share) => {
      bar.value = share / 4; // sending is the shorter part
      state.textContent = share < 1 ? `Sending, ${Math.round(100 * share)} %` : "Sent";
    });
    while (job.status === "queued" || job.status === "running") {
      await new Promise((resolve) => { setTimeout(resolve, POLL_MS); });
      job = await ask(address(`v1/documents/jobs/${encodeURIComponent(job.id)}`));
      state.textContent = told(job);
      if (job.pages) bar.value = 0.25 + 0.75 * (job.pages_done / job.pages);
    }
    if (job.status !== "done") {
      end(job.message || "It could not be added", "failed");
      return;
    }
    end("Added", "added");
    done();
  } catch (error) {
    end(error.message, "failed");
  }
}

function told(job) {
  if (job.status === "queued") return "Waiting for its turn";
  return job.stage ? `${job.stage}: ${job.pages_done} of ${count(job.pages, "page")}` : "Working";
}

const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MB`;
