/** One picture, large, with its recipe and what can be done with it. */

import * as api from "./api.js";
import { make, the } from "./dom.js";

const PICTURES = ["image", "mask", "depth", "control"];

export class View {
  #entry = null;

  /**
   * @param entries gives all pictures.
   * @param special gives the fields of a request that are worth telling.
   * @param on what to call with a request and number: `use`, `begin`, `paint`, `explain`.
   */
  constructor(entries, special, on) {
    this.entries = entries;
    this.special = special;
    this.dialog = the("view");
    the("close").onclick = () => this.dialog.close();
    the("newer").onclick = () => this.#step(-1);
    the("older").onclick = () => this.#step(1);
    this.dialog.addEventListener("keydown", ({ key }) => {
      if (key === "ArrowLeft") this.#step(-1);
      if (key === "ArrowRight") this.#step(1);
    });
    this.dialog.addEventListener("click", ({ target }) => target === this.dialog && this.dialog.close());
    const buttons = { use: "use", from_this: "begin", paint_this: "paint", explain: "explain" };
    for (const [id, name] of Object.entries(buttons)) {
      the(id).onclick = () => on[name](this.#entry).catch((problem) => this.say(problem.message));
    }
  }

  /** Whether this picture is the one that is shown. */
  shows(entry) {
    return this.dialog.open && this.#entry === entry;
  }

  close() {
    this.dialog.close();
  }

  say(text) {
    the("view_status").textContent = text;
  }

  async open(entry) {
    this.#entry = entry;
    const { work, number } = entry;
    const { url, seed, width, height } = work.pictures[number];
    const entries = this.entries();
    const place = entries.indexOf(entry);
    the("newer").disabled = place <= 0;
    the("older").disabled = place === entries.length - 1;
    the("title").textContent = work.request.prompt || "no prompt";
    the("explain").hidden = Boolean(work.sheet) || !work.request.prompt;
    this.say("");
    this.#recipe(work, { seed, size: `${width} × ${height}` });
    the("notes").replaceChildren(...work.notes.map((textContent) => make("li", { textContent })));
    the("large").alt = work.request.prompt;
    the("large").style.setProperty("--ratio", width / height);
    the("large").style.setProperty("--most", `${8 * width}px`); // a small picture is not blown up without end
    the("large").classList.toggle("sheet", Boolean(work.sheet));
    the("large").removeAttribute("src");
    if (!this.dialog.open) this.dialog.showModal();
    try {
      const { href } = await api.picture(work.sheet ?? url);
      if (this.#entry !== entry) return;
      the("large").src = href;
      Object.assign(the("download"), { href, download: `${named(work.request.prompt)}-${seed}.png` });
    } catch (problem) {
      this.say(problem.message);
    }
  }

  #recipe({ request, seconds, words }, told) {
    const rows = { ...told };
    if (request.negative_prompt) rows["negative prompt"] = request.negative_prompt;
    for (const name of ["steps", "cfg_scale", "sampler", "spacing"]) rows[name] = request[name];
    for (const [name, value] of this.special(request)) {
      if (["seed", "width", "height", "count"].includes(name)) continue;
      rows[name] = PICTURES.includes(name) ? "a picture" : [value].flat().join(", ");
    }
    if (words?.length) rows["looked at"] = words.map(({ word, share }) => `${word} ${(share * 100).toFixed(1)} %`).join(", ");
    rows.drawn = `in ${seconds.toFixed(1)} s`;
    const lines = Object.entries(rows).flatMap(([name, value]) => [
      make("dt", { textContent: name.replaceAll("_", " ") }), make("dd", { textContent: value }),
    ]);
    the("recipe").replaceChildren(...lines);
  }

  #step(by) {
    const entries = this.entries();
    const entry = entries[entries.indexOf(this.#entry) + by];
    if (entry) this.open(entry);
  }
}

/** A prompt as the name of a file. */
function named(prompt) {
  return prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "picture";
}
