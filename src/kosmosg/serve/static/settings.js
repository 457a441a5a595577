// The fields of the settings, as a model allows them.

import { readPicture, roomOf } from "./pictures.js";

const NUMBERS = ["n", "num_inference_steps", "guidance_scale", "image_guidance_scale", "seed"];
const CHOICES = ["size", "scheduler", "lora", "control"];
const NEW_SEEDS = 2 ** 32;

export class Settings {
  #form;
  #summary;
  #limits;
  #control; // the control picture, once it is read

  /** @param limits What `/v1/models` says under `kosmosg`. */
  constructor(form, summary, limits) {
    this.#form = form;
    this.#summary = summary;
    this.#limits = limits;
    const { n, num_inference_steps: steps, guidance_scale: guidance, size } = form.elements;
    n.max = limits.max_n;
    steps.max = limits.max_steps;
    steps.value = limits.default_steps;
    guidance.value = limits.default_guidance;
    this.#choices("size", limits.sizes);
    size.value = limits.default_size;
    this.#choices("scheduler", limits.schedulers);
    this.#choices("lora", limits.loras);
    this.#choices("control", limits.controls);
    form.addEventListener("input", () => this.#show());
    this.#show();
  }

  /** Return what is set, as the request's fields; throws a Refusal for a bad control picture. */
  async read() {
    const { elements } = this.#form;
    const values = {};
    for (const name of NUMBERS) {
      const value = elements[name].valueAsNumber;
      if (Number.isFinite(value)) values[name] = value;
    }
    for (const name of [...CHOICES, "negative_prompt"]) {
      const value = elements[name].value.trim();
      if (value) values[name] = value;
    }
    if (elements.seeding.value === "random") {
      values.seed = crypto.getRandomValues(new Uint32Array(1))[0] % NEW_SEEDS;
      elements.seed.value = values.seed; // to keep it, one only has to say "fixed"
    }
    if (values.control) values.control = { name: values.control, picture: await this.#picture() };
    return values;
  }

  /** Show settings, which may be anybody's: what this model does not have keeps its default. */
  write(values) {
    const { elements } = this.#form;
    for (const name of NUMBERS) {
      const field = elements[name];
      const value = Number(values[name]);
      const most = field.max === "" ? Infinity : Number(field.max);
      if (values[name] === undefined || !Number.isFinite(value)) {
        if (name === "image_guidance_scale") field.value = "";
        continue;
      }
      field.value = Math.min(most, Math.max(Number(field.min), value));
    }
    for (const name of CHOICES) {
      const value = String(values[name]?.name ?? values[name] ?? "");
      const field = elements[name];
      if ([...field.options].some((option) => option.value === value)) field.value = value;
    }
    this.#control = values.control?.picture;
    elements.negative_prompt.value = String(values.negative_prompt ?? "").slice(0, 2000);
    elements.seeding.value = values.seed === undefined ? "random" : "fixed";
    this.#show();
  }

  async #picture() {
    const file = this.#form.elements.control_picture.files[0];
    if (!file && this.#control) return this.#control;
    if (!file) return undefined;
    const maxBytes = roomOf(this.#limits);
    this.#control = await readPicture(file, { name: file.name, maxBytes });
    return this.#control;
  }

  #choices(name, values) {
    const field = this.#form.elements[name];
    field.append(...values.map((value) => new Option(value, value)));
    field.closest("label").hidden = values.length === 0;
  }

  #show() {
    const { elements } = this.#form;
    elements.seed.disabled = elements.seeding.value === "random";
    elements.control_picture.closest("label").hidden = !elements.control.value;
    const count = elements.n.valueAsNumber;
    this.#summary.textContent = [
      count === 1 ? "1 picture" : `${count} pictures`,
      `${elements.num_inference_steps.value} steps`,
      `guidance ${elements.guidance_scale.value}`,
      `${elements.size.value.replace("x", " × ")} px`,
      `seed ${elements.seed.disabled ? "random" : elements.seed.value}`,
    ].join(" · ");
  }
}
