/** The page of `sfumato serve`: brings the form, the queue and the gallery together, and keeps what was typed. */

import * as api from "./api.js";
import { Begin } from "./begin.js";
import { asData, make, the } from "./dom.js";
import { Form } from "./form.js";
import { Gallery } from "./gallery.js";
import { Queue } from "./queue.js";
import { View } from "./view.js";

const KEPT = "sfumato form";
const NARROW = matchMedia("(max-width: 56rem)");
const fail = ({ message }) => (the("error").textContent = message);

api.onKey((why) => {
  const dialog = the("ask");
  the("ask_why").textContent = why;
  the("key").value = "";
  if (!dialog.open) dialog.showModal();
  dialog.onclose = () => dialog.showModal(); // without a key there is nothing behind it
  return new Promise((resolve) => {
    dialog.firstElementChild.onsubmit = (event) => {
      event.preventDefault();
      dialog.onclose = null;
      dialog.close();
      resolve(the("key").value);
    };
  });
});

async function main() {
  const about = await api.model();
  the("model").textContent = about.name;
  the("model").title = `${about.title}, ${about.dtype} on ${about.device}; sfumato ${about.version}`;
  const apple = /Mac|iPhone|iPad/.test(navigator.platform);
  the("draw").firstElementChild.textContent = apple ? "⌘ ↵" : "Ctrl ↵";

  const brought = new Map(); // id of a request -> the pictures it began from: the server tells their fingerprints alone
  const awaited = new Set(); // ids of requests whose pictures are to be opened when they are there
  const form = new Form(about);
  const begin = new Begin(about, {
    changed: () => {
      form.follow(begin.task);
      keep();
    },
    use: (request) => form.fill(request),
    failed: fail,
  });
  const gallery = new Gallery({
    open: (entry) => view.open(entry),
    stop: (id) => api.stop(id).then((work) => queue.take(work), fail),
    use: (work) => use({ work }).catch(fail),
  });
  const view = new View(() => gallery.entries, (request) => form.special(request), {
    use,
    begin: (entry) => from(entry, false),
    paint: (entry) => from(entry, true),
    explain,
  });
  const queue = new Queue((work) => {
    gallery.show(work);
    if (work.state === "done" && awaited.delete(work.id) && the("view").open) {
      view.open(gallery.entries.find((entry) => entry.work.id === work.id));
    }
    announce(work);
  });

  async function handIn(request, pictures) {
    const work = await api.submit(request);
    brought.set(work.id, { ...pictures, mask: request.mask });
    queue.take(work);
    return work;
  }

  async function draw() {
    const wrong = form.wrong();
    if (wrong) return wrong.reportValidity();
    the("error").textContent = "";
    try {
      await handIn({ ...form.request(begin.fields), ...begin.request }, begin.kept);
      if (NARROW.matches) the("gallery").scrollIntoView({ block: "start" });
    } catch (problem) {
      fail(problem);
    }
  }

  /** The pictures that a request began from. */
  function picturesOf(work) {
    if (work.request.image && !brought.has(work.id)) {
      throw new Error("This page does not hold the picture any more that it began from; give it once more.");
    }
    return brought.get(work.id) ?? {};
  }

  async function use({ work, number = 0 }) {
    const { request } = work;
    await begin.show(brought.get(work.id) ?? {});
    form.fill({ ...request, count: 1, seed: work.pictures?.[number].seed ?? request.seed });
    view.close();
    the("prompt").focus();
    try {
      picturesOf(work);
    } catch (problem) {
      fail(problem);
    }
  }

  async function from({ work, number }, paints) {
    const { blob } = await api.picture(work.pictures[number].url);
    await begin.show({ image: await asData(blob) });
    if (!the("prompt").value) form.fill({ prompt: work.request.prompt });
    view.close();
    begin.paint(paints);
    the("begin").scrollIntoView({ block: "nearest" });
  }

  async function explain({ work, number }) {
    const pictures = picturesOf(work);
    const asked = Object.fromEntries(Object.entries(work.request).filter(([, value]) => value !== null));
    const given = { image: pictures.image, mask: pictures.mask, depth: pictures.depth, control: pictures.control };
    const { seed } = work.pictures[number];
    const made = await handIn({ ...asked, ...given, count: 1, seed, explain: true }, pictures);
    awaited.add(made.id);
    view.say("It is drawn once more, to hear where it looks at each word …");
  }

  let announced = "";
  function announce(work) {
    const drawing = queue.unfinished.filter(({ state }) => state === "drawing");
    const waiting = queue.unfinished.length - drawing.length;
    const quarter = Math.floor((4 * drawing.reduce((sum, { share }) => sum + share, 0)) / drawing.length) * 25;
    const parts = [];
    if (drawing.length) parts.push(`${drawing.length > 1 ? `drawing ${drawing.length} at once` : "drawing"}: ${quarter} %`);
    if (waiting) parts.push(`${waiting} waiting`);
    const ended = { done: `drawn in ${work.seconds?.toFixed(1)} s`, cancelled: "stopped" }[work.state] ?? "";
    const now = parts.join(", ") || ended;
    if (now !== announced) the("status").textContent = announced = now;
  }

  function keep() {
    const kept = { texts: form.texts, more: the("more").open, begin: begin.kept };
    try {
      localStorage.setItem(KEPT, JSON.stringify(kept));
    } catch { // the picture is too large to be kept
      localStorage.setItem(KEPT, JSON.stringify({ ...kept, begin: {} }));
    }
  }

  const { texts = {}, more = false, begin: begun = {} } = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
  await begin.show(begun).catch(() => begin.show({}));
  form.texts = texts;
  the("more").open = more;

  the("chips").hidden = !about.loras.length;
  the("chips").append(...about.loras.map((name) => make("button", {
    type: "button", textContent: name, title: `Add <lora:${name}:0.8> to the prompt`,
    onclick: () => {
      the("prompt").value = `${the("prompt").value} <lora:${name}:0.8>`.trim();
      keep();
    },
  })));
  the("form").addEventListener("submit", (event) => {
    event.preventDefault();
    draw();
  });
  the("form").addEventListener("input", keep);
  the("more").addEventListener("toggle", keep);
  the("reset").onclick = () => form.fill({ prompt: the("prompt").value, negative_prompt: the("negative_prompt").value });
  addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !document.querySelector("dialog[open]")) draw();
  });

  for (const work of await api.works()) queue.take(work);
  if (!queue.unfinished.length) the("status").textContent = ""; // what was drawn long ago is no news
  the("empty").hidden = gallery.entries.length + queue.unfinished.length > 0;
}

main().catch(fail);
