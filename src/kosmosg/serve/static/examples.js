// Prompts that run with one click. The creatures are the toy world's, by `creature` of
// examples/demo.py: combinations that no stage of nano's training has seen.

import { readPicture } from "./pictures.js";

export const EXAMPLES = [
  ["a red star with white dots wearing a hat on the beach"],
  ["a creature", "triangle.png", "in the snow"],
  ["a creature", "diamond.png", "at night"],
  ["a creature", "square.png", "wearing a crown in the forest"],
  ["a creature", "star.png", "and a creature", "crowned.png", "in the city"],
];

const isFile = (part) => part.endsWith(".png");
const addressOf = (part) => `static/pictures/${part}`;

/** Return an example as a button that shows its words and pictures. */
export function exampleButton(example, onChosen) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(
    ...example.map((part) => {
      if (!isFile(part)) return document.createTextNode(part);
      const image = new Image(28, 28);
      image.src = addressOf(part);
      image.alt = part.replace(".png", "");
      return image;
    }),
  );
  button.addEventListener("click", onChosen);
  return button;
}

/** Return an example's words and pictures. */
export function partsOf(example) {
  return Promise.all(
    example.map(async (part) => {
      if (!isFile(part)) return part;
      const blob = await (await fetch(addressOf(part))).blob();
      return readPicture(blob, { name: part, maxBytes: Infinity });
    }),
  );
}
