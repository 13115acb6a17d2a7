/**
 * Every call of the server, with the key if it needs one.
 *
 * Paths are relative to the page, so that it may stand below any path of another server. Failures are thrown as errors
 * that say what the server said.
 */

const KEPT = "sfumato key";
let key = sessionStorage.getItem(KEPT);
let ask = null;
let asking = null;

/** Say how a key is asked for: a function that is told why, and promises one. */
export function onKey(asks) {
  ask = asks;
}

async function call(path, options = {}) {
  for (;;) {
    const shown = key;
    const answer = await fetch(path, {
      ...options, headers: { ...options.headers, ...(shown && { Authorization: `Bearer ${shown}` }) },
    }).catch((problem) => {
      throw problem.name === "AbortError" ? problem : new Error("The server does not answer.");
    });
    if (answer.ok) return answer;
    const text = await answer.text();
    const why = told(text) ?? `The server answers ${answer.status}.`;
    if (answer.status !== 401) throw Object.assign(new Error(why), { status: answer.status });
    if (key !== shown) continue; // another call has asked meanwhile
    asking ??= ask(shown === null ? "This server needs a key." : "That is not the key of this server.");
    key = await asking;
    asking = null;
    sessionStorage.setItem(KEPT, key);
  }
}

function told(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return undefined;
  }
}

// Seeds go up to 2^64, and JavaScript's numbers hold 2^53: longer ones are kept as text. A prompt cannot look like one,
// for in JSON its quotes are escaped.
const read = (text) => JSON.parse(text.replace(/("seed": ?)(\d{16,})/g, '$1"$2"'));
const write = (value) => JSON.stringify(value).replace(/"seed":"(\d+)"/g, '"seed":$1');

const json = async (path, options) => read(await (await call(path, options)).text());

export const model = () => json("api/model");
export const works = () => json("api/requests");
export const work = (id) => json(`api/requests/${id}`);
export const stop = (id) => json(`api/requests/${id}`, { method: "DELETE" });
export const reading = (blob) => json("api/read", { method: "POST", body: blob });
export const submit = (request) =>
  json("api/requests", { method: "POST", body: write(request), headers: { "Content-Type": "application/json" } });

/** What becomes of a request, as it happens: server-sent events, read by hand since EventSource sends no key. */
export async function* events(id, signal) {
  const { body } = await call(`api/requests/${id}/events`, { signal });
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) yield read(event.slice("data: ".length));
  }
}

const blobs = new Map();

/** A picture of the server's as { blob, href }: an <img> shows the latter, and could not ask with a key by itself. */
export function picture(url) {
  if (!blobs.has(url)) {
    const fetched = call(url.slice(1)).then((answer) => answer.blob());
    blobs.set(url, fetched.then((blob) => ({ blob, href: URL.createObjectURL(blob) })));
    fetched.catch(() => blobs.delete(url));
  }
  return blobs.get(url);
}
