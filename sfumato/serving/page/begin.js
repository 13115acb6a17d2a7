/** The picture to begin from: dropped anywhere, pasted or chosen; a mask may be painted on it, and its recipe used. */

import * as api from "./api.js";
import { Brush } from "./brush.js";
import { asData, the } from "./dom.js";

/** Pictures that may be given beside the one to begin from, and what they are. */
const BESIDE = { depth: "a picture, the whiter the nearer", control: "edges, depths, poses, … for the control model" };

export class Begin {
  #given = {}; // image, depth and control, as data: URLs

  /**
   * @param about the model.
   * @param on what to call: `changed()`, `use(request)` with the settings that a picture carries, `failed(error)`.
   */
  constructor(about, on) {
    this.about = about;
    this.on = on;
    this.brush = new Brush(the("mask"), () => this.#refresh());
    this.takes = Object.values(about.tasks).some(([needed]) => needed.includes("image"));
    the("begin").hidden = !this.takes && !about.control;
    the("image").hidden = !this.takes;
    this.paints = this.#can("mask");
    the("file").onchange = ({ target }) => this.#chosen(target, (file) => this.take(file));
    for (const name of Object.keys(BESIDE)) {
      the(name).onchange = ({ target }) => this.#chosen(target, async (file) => this.#give(name, await asData(file)));
      the(name).onclick = (event) => {
        if (!this.#given[name]) return;
        event.preventDefault();
        this.#give(name, undefined);
      };
    }
    the("remove").onclick = () => this.show({});
    the("paint").onclick = () => this.paint(!this.brush.active);
    the("erase").onclick = ({ target }) => {
      this.brush.erases = !this.brush.erases;
      target.setAttribute("aria-pressed", this.brush.erases);
    };
    the("undo").onclick = () => this.brush.undo();
    the("clear").onclick = () => this.brush.clear();
    the("size").oninput = ({ target }) => (this.brush.size = target.value / 100);
    if (this.takes) this.#catch();
  }

  /** What it adds to a request. */
  get request() {
    const mask = this.#given.image && this.paints ? this.brush.mask() : undefined;
    const { task } = this;
    const given = Object.fromEntries(Object.entries({ ...this.#given, mask }).filter(([, picture]) => picture));
    return task === "upscale" ? { ...given, task } : given; // any other task follows from the pictures
  }

  /** The fields that mean something to what is asked for. */
  get fields() {
    return (this.about.tasks[this.task] ?? []).flat();
  }

  get task() {
    const { image, depth } = this.#given;
    const given = { image, depth, mask: image && this.paints && this.brush.painted };
    const fits = Object.entries(this.about.tasks).filter(([, [needed]]) => needed.every((name) => given[name]));
    const most = Math.max(...fits.map(([, [needed]]) => needed.length));
    return fits.find(([, [needed]]) => needed.length === most)?.[0];
  }

  /** All that is here, to be shown again. */
  get kept() {
    return { ...this.#given, strokes: this.brush.strokes };
  }

  /** Begin from what was kept; from nothing, if that is what it was. */
  async show({ image, depth, control, strokes = [] }) {
    this.#given = { image, depth, control };
    this.paint(false);
    the("reading").hidden = true;
    if (image) {
      the("from").src = image;
      await the("from").decode();
      const { naturalWidth: width, naturalHeight: height } = the("from");
      the("easel").style.setProperty("--ratio", width / height);
      this.brush.lay(width, height, strokes);
    } else this.brush.lay(1, 1);
    this.#refresh();
  }

  /** Begin from a file; its recipe is offered, if it carries one. */
  async take(file) {
    try {
      const found = await api.reading(file);
      await this.show({ image: await asData(file), control: this.#given.control });
      this.#offer(found);
    } catch (problem) {
      this.on.failed(problem);
    }
  }

  /** Have the brush in hand, or lay it down. */
  paint(active) {
    this.brush.active = active;
    the("paint").setAttribute("aria-pressed", active);
    the("brush").hidden = !active;
    the("mask").classList.toggle("active", active);
  }

  #give(name, picture) {
    this.#given[name] = picture;
    this.#refresh();
  }

  #offer({ request, recipe, not_understood: unclear }) {
    const told = Object.keys(recipe).length > 0 || request.seed !== null;
    const lost = Object.keys(unclear).join(", ");
    the("reading").hidden = !told;
    the("reading").firstElementChild.textContent =
      `This picture says how it was made.${lost && ` Not understood: ${lost}.`}`;
    the("use_read").onclick = () => {
      the("reading").hidden = true;
      this.on.use(request);
    };
  }

  #refresh() {
    const begun = Boolean(this.#given.image);
    the("begun").hidden = !begun;
    the("paint").hidden = !this.paints;
    the("depths").hidden = !this.#can("depth");
    the("controls").hidden = !this.about.control;
    for (const [name, what] of Object.entries(BESIDE)) {
      the(`${name}_name`).textContent = this.#given[name] ? "chosen; a click leaves it out" : what;
    }
    for (const field of the("told").children) {
      field.hidden = !this.fields.includes(field.querySelector("input, select").name);
    }
    this.on.changed();
  }

  #can(name) {
    return Object.values(this.about.tasks).some(([needed]) => needed.includes(name));
  }

  #chosen(input, take) {
    if (input.files.length) take(input.files[0]);
    input.value = ""; // the same file may be chosen again
  }

  #catch() {
    const carries = (event) => event.dataTransfer?.types.includes("Files");
    addEventListener("dragover", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dropping"));
    addEventListener("drop", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      document.body.classList.remove("dropping");
      this.take(event.dataTransfer.files[0]);
    });
    addEventListener("paste", (event) => {
      const [file] = event.clipboardData.files;
      if (!file) return;
      event.preventDefault();
      this.take(file);
    });
  }
}
