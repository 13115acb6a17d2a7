/** A mask that is painted by hand. It is kept as strokes, in shares of the picture's width: they can be undone. */

const [LIGHT, DARK] = ["#fff3e2", "#7a3f6b"];
const FINE = 700; // pixels of the canvas from side to side, whatever the picture has

export class Brush {
  strokes = [];
  erases = false;
  active = false;
  size = 0.14;

  /** @param canvas lies over the picture. @param changed told after each stroke. */
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;
    canvas.addEventListener("pointerdown", (event) => this.active && this.#begin(event));
    canvas.addEventListener("pointermove", (event) => {
      this.#ring(event);
      this.#go(event);
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => this.#end());
  }

  /** Lie over another picture, with these strokes on it. */
  lay(width, height, strokes = []) {
    this.picture = { width, height };
    Object.assign(this.canvas, { width: FINE, height: Math.round((FINE * height) / width) });
    this.strokes = strokes;
    this.#paint();
  }

  get painted() {
    return this.strokes.some(({ erases }) => !erases);
  }

  undo() {
    this.strokes = this.strokes.slice(0, -1);
    this.#paint();
    this.changed();
  }

  clear() {
    this.strokes = [];
    this.#paint();
    this.changed();
  }

  /** White where it was painted and black elsewhere, as large as the picture, as a data: URL; undefined for nothing. */
  mask() {
    if (!this.painted) return undefined;
    const made = Object.assign(document.createElement("canvas"), this.picture);
    const context = made.getContext("2d");
    this.#stroke(context, "white");
    context.globalCompositeOperation = "destination-over";
    context.fillRect(0, 0, made.width, made.height);
    return made.toDataURL("image/png");
  }

  #begin(event) {
    if (event.button) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.stroke = { size: this.size, erases: this.erases, points: [] };
    this.strokes = [...this.strokes, this.stroke];
    this.#go(event);
  }

  #go(event) {
    if (!this.stroke) return;
    const box = this.canvas.getBoundingClientRect();
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const { clientX, clientY } of passed.length ? passed : [event]) {
      const point = [(clientX - box.left) / box.width, (clientY - box.top) / box.width];
      this.stroke.points.push(point.map((share) => Math.round(share * 1e4) / 1e4));
    }
    this.#paint();
  }

  #ring({ offsetX, offsetY }) {
    const { style } = this.canvas.parentElement;
    style.setProperty("--x", `${offsetX}px`);
    style.setProperty("--y", `${offsetY}px`);
    style.setProperty("--brush", `${this.size * 100}%`);
  }

  #end() {
    if (!this.stroke) return;
    this.stroke = null;
    this.changed();
  }

  #paint() {
    const context = this.canvas.getContext("2d");
    this.#stroke(context, context.createPattern(hatch(), "repeat"));
  }

  #stroke(context, style) {
    const { width, height } = context.canvas;
    context.clearRect(0, 0, width, height);
    Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: style });
    for (const { size, erases, points } of this.strokes) {
      context.globalCompositeOperation = erases ? "destination-out" : "source-over";
      context.lineWidth = size * width;
      context.beginPath();
      context.moveTo(points[0][0] * width, points[0][1] * width);
      for (const [x, y] of points) context.lineTo(x * width + 0.01, y * width); // a dot has a length too
      context.stroke();
    }
  }
}

/** Stripes that are seen on any picture. */
function hatch() {
  const tile = Object.assign(document.createElement("canvas"), { width: 14, height: 14 });
  const context = tile.getContext("2d");
  Object.assign(context, { fillStyle: LIGHT, strokeStyle: DARK, lineWidth: 5 });
  context.fillRect(0, 0, 14, 14);
  for (const x of [-14, 0, 14]) {
    context.moveTo(x - 7, 21);
    context.lineTo(x + 21, -7);
  }
  context.stroke();
  return tile;
}
