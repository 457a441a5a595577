// One prompt and what came of it, on the page: while it is drawn, and afterwards.

import { spoken } from "./pieces.js";

const template = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

/**
 * Return the element of an entry.
 *
 * @param entry `{ id, parts, settings, pictures: [{ blob, seed, isFlagged }] }`; no id while it is drawn.
 * @param does What its buttons do, by their names: cancel, edit, link, forget, use, replay.
 */
export function entryElement(entry, does) {
  const element = template("entry");
  element.setAttribute("aria-label", spoken(entry.parts));
  element.querySelector("h3").append(...entry.parts.map(small));
  element.querySelector(".facts").textContent = facts(entry);
  for (const button of element.querySelectorAll(".entry > .actions button, .going button")) {
    button.addEventListener("click", () => does[button.dataset.do](entry, element));
  }
  const isDone = entry.id !== undefined;
  element.querySelector(".going").hidden = isDone;
  element.querySelector(":scope > .actions").hidden = !isDone;
  const tiles = isDone
    ? entry.pictures.map((picture, number) => doneTile(entry, picture, number, does))
    : Array.from({ length: entry.settings.n }, waitingTile);
  const shape = entry.settings.size?.replace("x", " / ") ?? "1";
  for (const tile of tiles) tile.querySelector("img").style.aspectRatio = shape;
  element.querySelector(".tiles").append(...tiles);
  return element;
}

/** Show an event of the server in the element of an entry that is being drawn. */
export function showEvent(element, event, entry) {
  const bar = element.querySelector("progress");
  const state = element.querySelector(".state");
  const images = element.querySelectorAll(".tile img");
  if (event.type === "kosmosg.queued") {
    bar.removeAttribute("value");
    state.textContent = event.position > 0 ? `Waiting, ${event.position} before you` : "Next";
  } else if (event.type === "kosmosg.progress") {
    bar.value = event.step / event.steps;
    state.textContent = `Step ${event.step} of ${event.steps}`;
  } else if (event.type === "image_generation.partial_image") {
    const image = images[event.index ?? 0];
    image.src = `data:image/${event.output_format ?? "png"};base64,${event.b64_json}`;
    image.closest("li").classList.add("preview");
  } else if (event.type === "image_generation.completed") {
    const number = event.index ?? entry.pictures.length - 1;
    images[number].src = URL.createObjectURL(entry.pictures.at(-1).blob);
    images[number].closest("li").className = "tile";
  }
}

function small(part) {
  if (typeof part === "string") return document.createTextNode(part);
  const image = new Image();
  image.src = part.url;
  image.alt = part.name;
  image.title = part.weight === 1 ? part.name : `${part.name}, weight ${part.weight}`;
  return image;
}

function facts({ settings, seconds }) {
  const said = [
    settings.size?.replace("x", " × "),
    `${settings.num_inference_steps} steps`,
    `guidance ${settings.guidance_scale}`,
    settings.image_guidance_scale !== undefined && `picture guidance ${settings.image_guidance_scale}`,
    settings.scheduler,
    settings.negative_prompt && `not: ${settings.negative_prompt}`,
    settings.lora && `LoRA ${settings.lora}`,
    settings.control && `control ${settings.control.name}`,
    `seed ${settings.seed}`,
    seconds !== undefined && `${seconds.toFixed(1)} s`,
  ];
  return said.filter(Boolean).join(" · ");
}

function waitingTile() {
  const tile = template("tile");
  tile.classList.add("waiting");
  tile.querySelector("img").alt = "being drawn";
  tile.querySelector(".actions").remove();
  return tile;
}

function doneTile(entry, picture, number, does) {
  const tile = template("tile");
  const url = URL.createObjectURL(picture.blob);
  const image = tile.querySelector("img");
  image.src = url;
  image.alt = `Picture ${number + 1} of: ${spoken(entry.parts)}`;
  if (picture.isFlagged) {
    const words = document.createElement("p");
    words.textContent = "Black: the server's safety checker flagged this picture.";
    image.after(words);
  }
  for (const act of tile.querySelectorAll("[data-do]")) {
    act.setAttribute("aria-label", `${act.textContent}: picture ${number + 1}`);
    act.addEventListener("click", () => does[act.dataset.do]?.(entry, picture));
  }
  const link = tile.querySelector("a");
  link.href = url;
  link.download = `kosmosg-${picture.seed}.${picture.blob.type.split("/")[1] ?? "png"}`;
  return tile;
}
