// The prompt line's elements and the value they show: text nodes for words, one element for each
// picture. The browser edits the words; everything else goes through `write`.

import * as pieces from "./pieces.js";
import { chipOf, named } from "./chip.js";

const ANCHOR = "\u200B"; // where the caret can stand beside a picture that has no words there

export class Line {
  #shown = new WeakMap(); // element → its picture
  #elements = new Map(); // a picture's key → its element

  constructor(root) {
    this.root = root;
  }

  /** Return the prompt as it stands. */
  read() {
    let text = "";
    const pictures = [];
    for (const node of this.root.childNodes) {
      const picture = this.#shown.get(node);
      text += picture ? pieces.PICTURE : visible(node.textContent);
      if (picture) pictures.push(picture);
    }
    return { text, pictures };
  }

  /** Show a prompt. The caret is elsewhere afterwards: see `place`. */
  write(prompt) {
    const words = prompt.text.split(pieces.PICTURE).map((text) => document.createTextNode(text));
    const chips = prompt.pictures.map((picture) => this.#chip(picture));
    this.root.replaceChildren(...words.flatMap((node, n) => (n ? [chips[n - 1], node] : [node])));
    this.tidy();
  }

  /** Put right what the browser left behind; the caret stays where it is. */
  tidy() {
    const { root } = this;
    for (const node of [...root.childNodes]) {
      if (node.nodeType === Node.TEXT_NODE || this.#shown.has(node)) continue;
      node.replaceWith(...node.childNodes); // what a browser or an extension wrapped words in
    }
    root.normalize();
    const chips = this.chips();
    if (!chips.length && !visible(root.textContent)) root.replaceChildren();
    for (const chip of chips) {
      for (const side of ["previousSibling", "nextSibling"]) {
        if (chip[side]?.nodeType === Node.TEXT_NODE) continue;
        chip[side === "nextSibling" ? "after" : "before"](document.createTextNode(ANCHOR));
      }
    }
    for (const node of root.childNodes) if (node.nodeType === Node.TEXT_NODE) unanchor(node);
    root.toggleAttribute("data-empty", !root.hasChildNodes());
    chips.forEach((chip, number) => {
      chip.setAttribute("aria-label", named(this.#shown.get(chip), number, chips.length));
    });
  }

  chips() {
    return [...this.root.children].filter((node) => this.#shown.has(node));
  }

  /** Return the number of the picture that an element shows, or -1. */
  numberOf(element) {
    return this.chips().indexOf(element);
  }

  // ------------------------------------------------------------------------------- places

  /** Return the place in the prompt of a point between the line's elements. */
  measure(node, offset) {
    const { root } = this;
    const children = [...root.childNodes];
    if (node === root) return total(children.slice(0, offset).map((one) => this.#length(one)));
    const own = children.find((one) => one.contains(node));
    const before = total(children.slice(0, children.indexOf(own)).map((one) => this.#length(one)));
    if (this.#shown.has(own)) return before + 1;
    return before + visible(own.textContent.slice(0, offset)).length;
  }

  /** Return where the selection begins and ends, or undefined if it is elsewhere. */
  selected() {
    const selection = document.getSelection();
    if (!selection.rangeCount) return undefined;
    const { startContainer, startOffset, endContainer, endOffset } = selection.getRangeAt(0);
    if (!this.root.contains(startContainer) || !this.root.contains(endContainer)) return undefined;
    return {
      from: this.measure(startContainer, startOffset),
      to: this.measure(endContainer, endOffset),
    };
  }

  /** Put the caret at a place, which brings the keyboard here too. */
  place(at) {
    const [node, offset] = this.#point(at);
    document.getSelection().collapse(node, offset);
  }

  /** Return the rectangle of the caret at a place. */
  rectangle(at) {
    const range = document.createRange();
    range.setStart(...this.#point(at));
    const box = this.root.getBoundingClientRect();
    return range.getClientRects()[0] ?? new DOMRect(box.left + 14, box.top + 14, 0, 24);
  }

  #point(at) {
    let left = at;
    for (const node of this.root.childNodes) {
      const length = this.#length(node);
      if (node.nodeType === Node.TEXT_NODE && left <= length) return [node, raw(node.data, left)];
      left -= length;
    }
    return [this.root, this.root.childNodes.length];
  }

  #length(node) {
    return this.#shown.has(node) ? 1 : visible(node.textContent).length;
  }

  #chip(picture) {
    const element = chipOf(picture, this.#elements.get(picture.key));
    this.#elements.set(picture.key, element);
    this.#shown.set(element, picture);
    return element;
  }
}

const visible = (data) => data.replace(/[\u200B\uFEFF\uFFFC]/g, "").replace(/\s/gu, " ");
const total = (numbers) => numbers.reduce((sum, one) => sum + one, 0);

/** Return the offset in a text node's data of a place in what is visible of it. */
function raw(data, place) {
  let left = place;
  let offset = 0;
  while (offset < data.length && (left > 0 || data[offset] === ANCHOR)) {
    left -= data[offset] === ANCHOR ? 0 : 1;
    offset += 1;
  }
  return offset;
}

/** Take the anchor out of a text node that has words by now; deleteData keeps the caret. */
function unanchor(node) {
  if (node.data === "") node.insertData(0, ANCHOR);
  if (!visible(node.data)) return;
  for (let at = node.data.indexOf(ANCHOR); at >= 0; at = node.data.indexOf(ANCHOR)) {
    node.deleteData(at, 1);
  }
}
