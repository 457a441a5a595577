// Dragging: files into the line or anywhere on the page, pictures along the line and onto each other.

import * as pieces from "./pieces.js";

const OWN = "application/x-kosmosg-picture";

/**
 * @param prompt The PromptLine.
 * @param marker An element that shows where a picture would land.
 * @param onFiles Called with files and the place where they fell, `{ at }`, `{ onto }` or `{}`.
 */
export function allowDrops(prompt, marker, onFiles) {
  const { root, line } = prompt;
  let dragged = -1;

  root.addEventListener("dragstart", (event) => {
    dragged = line.numberOf(event.target);
    if (dragged < 0) return event.preventDefault(); // words are moved by cutting
    event.dataTransfer.setData(OWN, String(dragged));
    event.dataTransfer.effectAllowed = "move";
    return undefined;
  });
  root.addEventListener("dragend", () => {
    dragged = -1;
    show({});
  });
  document.addEventListener("dragover", (event) => {
    const carriesFiles = event.dataTransfer.types.includes("Files");
    const carriesOwn = dragged >= 0 && event.dataTransfer.types.includes(OWN);
    if (!carriesFiles && !carriesOwn) return;
    event.preventDefault(); // else the browser would leave the page for the picture
    event.dataTransfer.dropEffect = carriesOwn ? "move" : "copy";
    show(placeUnder(event));
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? show({}));
  document.addEventListener("drop", (event) => {
    const files = [...event.dataTransfer.files];
    const place = placeUnder(event);
    show({});
    if (!files.length && dragged < 0) return;
    event.preventDefault();
    if (files.length) onFiles(files, place);
    else if (place.onto !== undefined) prompt.swap(dragged, place.onto);
    else if (place.at !== undefined) prompt.moveTo(dragged, place.at);
  });

  function show({ at, onto }) {
    line.chips().forEach((chip, number) => chip.classList.toggle("target", number === onto));
    marker.hidden = at === undefined;
    if (marker.hidden) return;
    const box = line.rectangle(at);
    const origin = marker.offsetParent.getBoundingClientRect();
    marker.style.left = `${box.left - origin.left}px`;
    marker.style.top = `${box.top - origin.top}px`;
    marker.style.height = `${box.height}px`;
  }

  /** Return the place under the pointer: on a picture, between two words, or nowhere. */
  function placeUnder({ clientX: x, clientY: y, target }) {
    if (!root.contains(target)) return {};
    const element = target instanceof Element ? target : target.parentElement; // Firefox: a text
    const chip = element.closest(".chip");
    const number = line.numberOf(chip);
    if (number >= 0) {
      const box = chip.getBoundingClientRect();
      const part = (x - box.left) / box.width;
      if (part > 0.25 && part < 0.75 && number !== dragged) return { onto: number };
      return { at: pieces.placeOf(prompt.prompt, number) + (part < 0.5 ? 0 : 1) };
    }
    const [node, offset] = pointUnder(x, y);
    const inside = node && root.contains(node);
    const at = inside ? line.measure(node, offset) : prompt.prompt.text.length;
    return { at: pieces.snapped(prompt.prompt, at) };
  }
}

function pointUnder(x, y) {
  if (document.caretPositionFromPoint) {
    const point = document.caretPositionFromPoint(x, y);
    return [point?.offsetNode, point?.offset];
  }
  const range = document.caretRangeFromPoint(x, y); // Safari
  return [range?.startContainer, range?.startOffset];
}
