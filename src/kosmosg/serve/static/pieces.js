// A prompt is a line of text in which each picture is one character, beside the list of those
// pictures. All that can be done to it is done here, on such values; nothing here knows the page.

export const PICTURE = "\uFFFC"; // Unicode's "object replacement character"
export const EMPTY = Object.freeze({ text: "", pictures: [] });

/** Return words from elsewhere as they may stand in the line: one line, no mark of ours. */
export const plain = (words) =>
  words.replace(/[\uFFFC\u200B\uFEFF]/g, "").replace(/\s+/gu, " ");

export const countIn = (text) => text.split(PICTURE).length - 1;

/** Return the place right before picture `number`, counted from 0. */
export function placeOf(prompt, number) {
  let at = -1;
  for (let seen = 0; seen <= number; seen += 1) at = prompt.text.indexOf(PICTURE, at + 1);
  return at;
}

/** Return what stands from one place to another. */
export function slice(prompt, from, to) {
  const first = countIn(prompt.text.slice(0, from));
  const text = prompt.text.slice(from, to);
  return { text, pictures: prompt.pictures.slice(first, first + countIn(text)) };
}

/** Return the prompt with `put` in the place of what stood from `from` to `to`. */
export function splice(prompt, from, to, put = EMPTY) {
  const before = slice(prompt, 0, from);
  const after = slice(prompt, to, prompt.text.length);
  return {
    text: before.text + put.text + after.text,
    pictures: [...before.pictures, ...put.pictures, ...after.pictures],
  };
}

/** Return the prompt with pictures at a place, a space around each, and the place after them. */
export function withPictures(prompt, at, pictures) {
  const before = prompt.text.slice(0, at);
  const after = prompt.text.slice(at);
  const left = before === "" || before.endsWith(" ") ? "" : " ";
  const right = after.startsWith(" ") ? "" : " ";
  const text = left + pictures.map(() => PICTURE).join(" ") + right;
  const put = splice(prompt, at, at, { text, pictures });
  return { prompt: put, caret: at + text.length + (right ? 0 : 1) };
}

export function replaced(prompt, number, picture) {
  return { ...prompt, pictures: prompt.pictures.with(number, picture) };
}

export function swapped(prompt, one, other) {
  const { pictures } = prompt;
  return {
    ...prompt,
    pictures: pictures.with(one, pictures[other]).with(other, pictures[one]),
  };
}

/** Return the prompt without a picture, and without the second of the two spaces around it. */
export function removed(prompt, number) {
  const at = placeOf(prompt, number);
  const twice = prompt.text[at + 1] === " " && (at === 0 || prompt.text[at - 1] === " ");
  return splice(prompt, at, at + (twice ? 2 : 1));
}

/** Return the prompt with a picture moved by a word or picture: -1 is towards the beginning. */
export function moved(prompt, number, direction) {
  const tokens = prompt.text.match(/\uFFFC|[^\s\uFFFC]+/gu) ?? [];
  const places = tokens.flatMap((token, index) => (token === PICTURE ? [index] : []));
  const from = places[number];
  const to = from + direction;
  if (to < 0 || to >= tokens.length) return { prompt, number };
  if (tokens[to] === PICTURE) {
    return { prompt: swapped(prompt, number, number + direction), number: number + direction };
  }
  const text = tokens.with(from, tokens[to]).with(to, PICTURE).join(" ");
  return { prompt: { ...prompt, text: text + (text.endsWith(PICTURE) ? " " : "") }, number };
}

/** Return the prompt with a picture moved to a place, and its new number. */
export function movedTo(prompt, number, place) {
  const at = placeOf(prompt, number);
  const picture = prompt.pictures[number];
  const rest = removed(prompt, number);
  const gone = prompt.text.length - rest.text.length;
  const target = Math.max(0, Math.min(rest.text.length, place > at ? place - gone : place));
  const put = withPictures(rest, target, [picture]).prompt;
  return { prompt: put, number: put.pictures.indexOf(picture) };
}

/** Return the nearest place that does not cut a word. */
export function snapped(prompt, at) {
  const { text } = prompt;
  const isWord = (character) => character !== undefined && !/[\s\uFFFC]/u.test(character);
  if (!isWord(text[at - 1]) || !isWord(text[at])) return at;
  let left = at;
  let right = at;
  while (isWord(text[left - 1])) left -= 1;
  while (isWord(text[right])) right += 1;
  return at - left <= right - at ? left : right;
}

/** Return the words and pictures in order, without what is empty: what is sent and kept. */
export function toParts(prompt) {
  const words = prompt.text.split(PICTURE).map((piece) => piece.replace(/\s+/gu, " ").trim());
  return words
    .flatMap((piece, index) => (index ? [prompt.pictures[index - 1], piece] : [piece]))
    .filter((part) => part !== "");
}

export function fromParts(parts) {
  const text = parts.map((part) => (typeof part === "string" ? plain(part).trim() : PICTURE));
  const pictures = parts.filter((part) => typeof part !== "string");
  return { text: text.join(" ") + (text.at(-1) === PICTURE ? " " : ""), pictures };
}

/** Return parts as words, pictures by number: for people who hear the page, and for names. */
export function spoken(parts) {
  let number = 0;
  return parts.map((part) => (typeof part === "string" ? part : `[picture ${(number += 1)}]`)).join(" ");
}
