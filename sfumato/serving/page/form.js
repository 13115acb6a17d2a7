/** The fields of a request, made of its JSON Schema: a new field of Request appears here by itself. Blank: the model's. */

import { make, the } from "./dom.js";

const FRONT = ["width", "height", "steps", "cfg_scale", "seed", "count", "sampler", "spacing"];
const PROMPTS = ["prompt", "negative_prompt"];
const APART = [...PROMPTS, "task", "image", "mask", "depth", "control"];
const TITLES = { cfg_scale: "CFG scale", count: "pictures" };
const OTHERWISE = { seed: "random" };
const SLIDERS = { strength: { min: 0.05, max: 1, step: 0.05 } };

export class Form {
  #fields = new Map(); // name -> { input, schema }

  constructor(about) {
    this.about = about;
    const { properties } = about.request;
    const ofTasks = [...new Set(Object.values(about.tasks).flat(2))];
    const rest = Object.keys(properties).filter(
      (name) => ![...FRONT, ...APART, ...ofTasks, ...about.unused].includes(name),
    );
    for (const name of PROMPTS) this.#fields.set(name, { input: the(name), schema: properties[name] });
    for (const name of FRONT) the("front").append(this.#field(name));
    for (const name of rest) the("rest").append(this.#field(name));
    for (const name of ofTasks) if (!APART.includes(name)) the("told").append(this.#field(name));
  }

  /** What is asked for; what was left blank is left out. Only these fields of pictures mean something. */
  request(ofPictures) {
    const found = {};
    for (const [name, { input, schema }] of this.#fields) {
      const hidden = input.closest("#told") && !ofPictures.includes(name);
      if (input.value.trim() && !hidden) found[name] = valued(schema, input.value);
    }
    return found;
  }

  /** Ask for what a request asks for, and for nothing else. */
  fill(request) {
    for (const [name, { input, schema }] of this.#fields) {
      const value = request[name];
      const kept = schema.enum !== undefined || !same(value, this.#usual(name));
      const begun = request.image && ["width", "height"].includes(name); // else they would follow the picture
      const shown = value === undefined || value === null || !(kept || begun) ? "" : [value].flat().join(", ");
      input.value = shown || (input.type === "range" ? input.defaultValue : schema.enum ? schema.default : "");
      if (input.selectedIndex === -1) input.append(make("option", { value: shown, textContent: shown, selected: true }));
      input.dispatchEvent(new Event("input"));
    }
    the("form").dispatchEvent(new Event("input"));
  }

  /** What stands in the fields, to be kept. */
  get texts() {
    return Object.fromEntries([...this.#fields].map(([name, { input }]) => [name, input.value]));
  }

  set texts(texts) {
    for (const [name, { input }] of this.#fields) {
      if (texts[name] !== undefined) input.value = texts[name];
      if (input.selectedIndex === -1) input.selectedIndex = 0; // another model's
      input.dispatchEvent(new Event("input"));
    }
  }

  /** Sliders that nobody has moved stand where this task has them. */
  follow(task) {
    for (const [name, usual] of Object.entries(this.about.fills[task] ?? {})) {
      const { input } = this.#fields.get(name);
      if (input.type !== "range") continue;
      if (input.value === input.defaultValue) input.value = usual;
      input.defaultValue = usual;
      input.dispatchEvent(new Event("input"));
    }
  }

  /** Those fields of a request that are not what the model does unasked. */
  special(request) {
    return Object.entries(request).filter(
      ([name, value]) => !PROMPTS.includes(name) && value !== null && !same(value, this.#usual(name)),
    );
  }

  /** The first field that holds no number where one is wanted, brought into sight. */
  wrong() {
    for (const { input } of this.#fields.values()) {
      if (input.checkValidity()) continue;
      const fold = input.closest("details");
      if (fold) fold.open = true;
      return input;
    }
    return undefined;
  }

  #usual(name) {
    return this.about.usual[name] ?? this.about.request.properties[name]?.default ?? null;
  }

  #field(name) {
    const declared = this.about.request.properties[name];
    const schema = declared.anyOf?.find(({ type }) => type !== "null") ?? declared;
    const input = this.#input(name, schema);
    this.#fields.set(name, { input, schema });
    Object.assign(input, { id: `field-${name}`, name, ariaDescription: declared.description });
    const beside = [];
    if (name === "seed") beside.push(this.#dice(input));
    if (input.type === "range") beside.push(reading(input));
    const title = TITLES[name] ?? name.replaceAll("_", " ");
    const label = make("label", { htmlFor: input.id, textContent: title });
    const field = make("div", { className: `field ${name}`, title: declared.description }, label);
    field.append(beside.length ? make("span", { className: "pair" }, input, ...beside) : input);
    return field;
  }

  #input(name, schema) {
    const usual = this.#usual(name);
    const offered = this.#offered(name, schema);
    if (offered) {
      const options = offered.map(([value, text]) => make("option", { value, textContent: text }));
      if (!schema.enum) options.unshift(make("option", { value: "", textContent: this.#named(name, usual) }));
      const select = make("select", {}, ...options);
      if (schema.enum) select.value = schema.default;
      return select;
    }
    const slider = SLIDERS[name];
    if (slider) return make("input", { type: "range", ...slider, defaultValue: slider.max });
    const number = ["integer", "number"].includes(schema.type);
    const fills = Object.values(this.about.fills).find((fills) => name in fills)?.[name];
    const placeholder = [usual ?? fills ?? OTHERWISE[name] ?? ""].flat().join(", ");
    const input = make("input", { type: number ? "number" : "text", placeholder, autocomplete: "off" });
    if (number) input.step = schema.type === "integer" ? this.#step(name) : "any";
    return input;
  }

  #offered(name, schema) {
    if (schema.enum) return schema.enum.map((value) => [value, value]);
    if (name === "sampler") return Object.entries(this.about.samplers);
    if (name === "spacing") return ["automatic", ...this.about.spacings].map((value) => [value, words(value)]);
    if (schema.type === "boolean") return [["true", "yes"], ["false", "no"]];
    return undefined;
  }

  #named(name, usual) {
    const title = (name === "sampler" ? this.about.samplers[usual] : undefined) ?? words(usual ?? "");
    return title ? `${title} (usual)` : "usual";
  }

  #step(name) {
    return ["width", "height"].includes(name) ? this.about.multiple : 1;
  }

  #dice(input) {
    const roll = () => {
      input.value = "";
      input.dispatchEvent(new Event("input", { bubbles: true }));
      dice.classList.toggle("rolled");
    };
    const title = "A new seed each time";
    const dice = make("button", { type: "button", className: "dice", title, ariaLabel: title, onclick: roll });
    dice.textContent = "⚄";
    return dice;
  }
}

/** What a slider says, in numbers. */
function reading(slider) {
  const output = make("output", { textContent: slider.value });
  slider.addEventListener("input", () => (output.textContent = Number(slider.value).toFixed(2)));
  return output;
}

/** A field's text as its value; what is no such value is sent as it is, and the server says what is wrong with it. */
function valued(schema, text) {
  if (schema.type === "array") {
    const parts = text.split(",").map((part) => part.trim()).filter(Boolean);
    return parts.map((part, i) => valued(schema.items ?? schema.prefixItems[i] ?? {}, part));
  }
  if (schema.type === "boolean") return text === "true";
  if (schema.type !== "integer" && schema.type !== "number") return text;
  const number = Number(text);
  return Number.isNaN(number) || (schema.type === "integer" && !Number.isSafeInteger(number)) ? text.trim() : number;
}

const same = (a, b) => JSON.stringify(a ?? null) === JSON.stringify(b ?? null);

const words = (name) => name.replaceAll("_", " ");
