/** What is drawn and was drawn, the newest first: a tile a picture, from the moment that it is asked for. */

import * as api from "./api.js";
import { make, the } from "./dom.js";
import { ended } from "./queue.js";

export class Gallery {
  #tiles = new Map(); // id of a request -> its tiles
  #entries = new Map(); // tile -> { work, number }, of pictures that are there

  /** @param on what to call: `open(entry)`, `stop(work)`, `use(work)`. */
  constructor(on) {
    this.on = on;
    this.list = the("gallery");
    const come = (seen) => seen.filter((one) => one.isIntersecting).forEach(({ target }) => this.#fetch(target));
    this.near = new IntersectionObserver(come, { rootMargin: "100%" }); // a hundred pictures are not fetched at once
  }

  /** All pictures, in the order in which they are shown. */
  get entries() {
    return [...this.list.children].map((tile) => this.#entries.get(tile)).filter(Boolean);
  }

  /** Show how far a request is. */
  show(work) {
    if (!this.#tiles.has(work.id)) {
      if (ended(work) && work.state !== "done") return; // of before this page was opened
      this.#tiles.set(work.id, Array.from({ length: work.request.count }, (_, number) => this.#tile(work, number)));
      this.list.prepend(...this.#tiles.get(work.id));
    }
    const tiles = this.#tiles.get(work.id);
    if (work.state === "cancelled") for (const tile of tiles) tile.remove();
    else if (work.state === "failed") this.#failed(work, tiles);
    else for (const [number, tile] of tiles.entries()) this.#refresh(tile, work, number);
    the("empty").hidden = this.list.children.length > 0;
  }

  #tile({ request, id }, number) {
    const tile = make("li", { className: "tile" });
    tile.style.setProperty("--ratio", `${request.width} / ${request.height}`);
    const open = make("button", {
      type: "button", className: "picture", disabled: true, ariaLabel: `${request.prompt}, not drawn yet`,
    });
    open.append(make("img", { alt: "" }));
    const bar = make("progress", { max: 1, value: 0, ariaLabel: `Picture ${number + 1}: ${request.prompt}` });
    const caption = make("p", {}, make("span", { textContent: request.prompt || "no prompt", title: request.prompt }));
    const told = make("p", { className: "told" }, make("span"));
    if (!number) {
      const stop = make("button", { type: "button", className: "stop", textContent: "Stop" });
      stop.title = request.count > 1 ? `Stop these ${request.count} pictures` : "Stop this picture";
      stop.ariaLabel = `Stop ${request.prompt}`;
      stop.onclick = () => this.on.stop(id);
      told.append(stop);
    }
    tile.append(open, bar, caption, told);
    return tile;
  }

  #refresh(tile, work, number) {
    const [picture, image, bar, told] = ["button", "img", "progress", ".told span"].map((what) =>
      tile.querySelector(what),
    );
    tile.dataset.state = work.state;
    if (work.state === "done") {
      if (this.#entries.has(tile)) return;
      this.#entries.set(tile, { work, number });
      tile.querySelector(".stop")?.remove();
      const { seed } = work.pictures[number];
      told.textContent = `${work.sheet ? "explained · " : ""}seed ${seed}`;
      Object.assign(picture, { disabled: false, ariaLabel: `${work.request.prompt || "no prompt"}, seed ${seed}` });
      picture.onclick = () => this.on.open(this.#entries.get(tile));
      bar.value = 1;
      this.near.observe(tile);
      return;
    }
    const now = work.progress.find((one) => one.picture === number);
    const share = now ? now.step / now.steps : 0;
    if (now?.preview) image.src = now.preview;
    tile.style.setProperty("--share", share);
    bar.value = share;
    told.textContent = now ? `step ${now.step} of ${now.steps}` : waiting(work);
  }

  async #fetch(tile) {
    const { work, number } = this.#entries.get(tile);
    this.near.unobserve(tile);
    try {
      tile.querySelector("img").src = (await api.picture(work.pictures[number].url)).href;
      tile.style.setProperty("--share", 1);
    } catch (problem) {
      tile.querySelector(".told").textContent = problem.message;
    }
  }

  #failed(work, tiles) {
    const [first, ...others] = tiles;
    for (const tile of others) tile.remove();
    const close = make("button", { type: "button", className: "stop", textContent: "Close" });
    close.onclick = () => {
      first.remove();
      the("empty").hidden = this.list.children.length > 0;
    };
    const use = make("button", { type: "button", textContent: "Use these settings", onclick: () => this.on.use(work) });
    first.dataset.state = work.state;
    first.replaceChildren(make("p", { className: "why", textContent: work.error }), use, close);
  }
}

function waiting({ state, before }) {
  if (state === "drawing") return "about to begin";
  return before ? `waiting for ${before} before it` : "next";
}
