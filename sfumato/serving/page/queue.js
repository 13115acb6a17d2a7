/** What becomes of requests: heard as it happens of the first ones, asked for now and then of the others. */

import * as api from "./api.js";

const STREAMS = 3; // a browser opens six connections to a server, for all of its tabs together
const PACE = 1000; // milliseconds

export const ended = (work) => ["done", "failed", "cancelled"].includes(work.state);

export class Queue {
  #unfinished = new Map();
  #streams = new Map();
  #running = false;

  /** @param hear told of a request whenever it has changed; of one that the server has forgotten, as failed. */
  constructor(hear) {
    this.hear = hear;
    document.addEventListener("visibilitychange", () => document.hidden && this.#hush());
  }

  /** All that have not ended, the oldest first. */
  get unfinished() {
    return [...this.#unfinished.values()];
  }

  /** Follow a request to its end. */
  take(work) {
    if (ended(work)) this.#unfinished.delete(work.id);
    else this.#unfinished.set(work.id, work);
    this.hear(work);
    if (!this.#running) this.#run();
  }

  async #run() {
    this.#running = true;
    while (this.#unfinished.size) {
      for (const { id } of this.unfinished) {
        if (!this.#streams.has(id) && this.#streams.size < STREAMS && !document.hidden) this.#listen(id);
      }
      const others = this.unfinished.filter(({ id, state }) => state === "waiting" || !this.#streams.has(id));
      await Promise.all(others.map(({ id }) => this.#look(id)));
      await new Promise((resolve) => setTimeout(resolve, PACE));
    }
    this.#running = false;
  }

  async #listen(id) {
    const control = new AbortController();
    this.#streams.set(id, control);
    try {
      for await (const work of api.events(id, control.signal)) this.take(work);
    } catch {
      // it was hushed, or the line broke: it is looked at instead
    }
    this.#streams.delete(id);
  }

  async #look(id) {
    try {
      const now = await api.work(id);
      if (this.#unfinished.has(id)) this.take(now);
    } catch (problem) {
      const work = this.#unfinished.get(id);
      if (problem.status === 404 && work) this.take({ ...work, state: "failed", error: problem.message });
    }
  }

  #hush() {
    for (const control of this.#streams.values()) control.abort();
  }
}
