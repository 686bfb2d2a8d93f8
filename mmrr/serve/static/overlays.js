// What is drawn over a page image. A grid of visual tokens becomes a small canvas that the style sheet stretches.

const SVG = "http://www.w3.org/2000/svg";
/** The colour of the paper over a token that was dropped, as `mmrr view` draws it: red, green, blue, opacity. */
const DROPPED = [236, 238, 244, 209];

function paint(canvas, [rows, columns], colour) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) image.data.set(colour(i), 4 * i);
  context.putImageData(image, 0, 0);
}

/** Fade the tokens that pruning dropped. */
export function drawKept(canvas, { grid, kept }) {
  paint(canvas, grid, (i) => (kept[i] ? [0, 0, 0, 0] : DROPPED));
}

/** The colours of heat 0, 1/2 and 1, and the opacity of 1: those of `mmrr explain`. Opacity grows with the root. */
const RAMP = [[255, 221, 60], [242, 116, 32], [170, 10, 80]];
const OPACITY = 0.8 * 255;

/** A heat map. Dropped tokens are grey. */
export function drawEvidence(canvas, { grid, heat, kept }) {
  paint(canvas, grid, (i) => {
    if (!kept[i]) return [120, 126, 138, 60];
    const value = Math.min(1, Math.max(0, heat[i]));
    const [from, to] = value < 0.5 ? [RAMP[0], RAMP[1]] : [RAMP[1], RAMP[2]];
    const share = 2 * value - (value < 0.5 ? 0 : 1);
    return [0, 1, 2].map((c) => from[c] + share * (to[c] - from[c])).concat(OPACITY * Math.sqrt(value));
  });
}

/** A box around each word; those of the query are filled. */
export function drawWords(svg, { boxes }) {
  svg.replaceChildren(...boxes.map((box) => {
    const rect = document.createElementNS(SVG, "rect");
    for (const [name, value] of Object.entries({ x: box.left, y: box.top, width: box.width, height: box.height })) {
      rect.setAttribute(name, value);
    }
    rect.setAttribute("class", box.match ? "word match" : "word");
    const title = document.createElementNS(SVG, "title");
    title.textContent = box.text;
    rect.append(title);
    return rect;
  }));
}
