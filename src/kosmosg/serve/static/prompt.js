// The prompt line as people use it: typing, caret, undo, clipboard, pictures by keyboard.

import * as pieces from "./pieces.js";
import { Edits } from "./edits.js";
import { Line } from "./line.js";
import { MAX_WEIGHT, withKey } from "./pictures.js";

const OWN = "application/x-kosmosg-parts"; // how cut and copied pictures travel inside the page

/**
 * @param root The element in which people write.
 * @param on.changed Called after each change.
 * @param on.submit Called for Enter.
 * @param on.files Called with files that were pasted.
 * @param on.chosen Called with a picture's number when it is to show its options, or -1, and with
 *   "pointer" or "keyboard".
 */
export class PromptLine {
  #line;
  #on;
  #edits = new Edits({ prompt: pieces.EMPTY, caret: 0 });
  #caret = 0;
  #known = new Map(); // every picture that was here, by its key

  constructor(root, on) {
    this.#line = new Line(root);
    this.#on = on;
    this.root = root;
    this.#line.write(pieces.EMPTY);
    root.addEventListener("beforeinput", (event) => this.#before(event));
    root.addEventListener("input", (event) => event.isComposing || this.#typed());
    root.addEventListener("compositionend", () => this.#typed());
    root.addEventListener("keydown", (event) => this.#key(event));
    root.addEventListener("copy", (event) => this.#copy(event));
    root.addEventListener("cut", (event) => this.#copy(event) && this.#delete());
    root.addEventListener("paste", (event) => this.#paste(event));
    root.addEventListener("click", (event) => this.#click(event));
    document.addEventListener("selectionchange", () => {
      // Elsewhere it only says that the words were written anew.
      if (!root.contains(document.activeElement)) return;
      this.#caret = this.#line.selected()?.to ?? this.#caret;
    });
  }

  get prompt() {
    return this.#line.read();
  }

  get line() {
    return this.#line;
  }

  /** Show another prompt, which can be undone, with the caret at a place. */
  set(prompt, caret = prompt.text.length) {
    this.#show(prompt, Math.min(caret, prompt.text.length));
    this.root.focus();
    this.#line.place(this.#caret);
  }

  /** Put pictures at a place, by default where the caret is or was last. */
  insert(pictures, place = this.#caret) {
    const at = Math.min(place, this.prompt.text.length);
    const put = pieces.withPictures(this.prompt, at, pictures);
    this.set(put.prompt, put.caret);
  }

  remove(number) {
    const at = pieces.placeOf(this.prompt, number);
    this.set(pieces.removed(this.prompt, number), at);
  }

  move(number, direction) {
    const moved = pieces.moved(this.prompt, number, direction);
    this.#change(moved.prompt, moved.number);
  }

  moveTo(number, place) {
    const moved = pieces.movedTo(this.prompt, number, place);
    this.#change(moved.prompt, moved.number);
  }

  /** Exchange two pictures; a number that is none changes nothing. */
  swap(one, other) {
    if (!this.prompt.pictures[other]) return;
    this.#change(pieces.swapped(this.prompt, one, other), other);
  }

  replace(number, picture) {
    const { weight } = this.prompt.pictures[number];
    this.#change(pieces.replaced(this.prompt, number, { ...picture, weight }), number);
  }

  weigh(number, weight) {
    const exact = Math.round(Math.max(0, Math.min(MAX_WEIGHT, weight)) * 10) / 10;
    const picture = { ...this.prompt.pictures[number], weight: exact };
    this.#change(pieces.replaced(this.prompt, number, picture), number);
  }

  /** Let the keyboard be on a picture. */
  focus(number) {
    this.#line.chips()[number]?.focus();
  }

  /** Show what became of a picture; the keyboard stays where it is, on the picture or elsewhere. */
  #change(prompt, number) {
    const hadFocus = this.root.contains(document.activeElement);
    this.#show(prompt, pieces.placeOf(prompt, number) + 1);
    if (!hadFocus) return;
    this.#line.place(this.#caret);
    this.focus(number);
  }

  #show(prompt, caret) {
    for (const picture of prompt.pictures) this.#known.set(picture.key, picture);
    this.#line.write(prompt);
    this.#caret = caret;
    this.#edits.record({ prompt, caret }, "own");
    this.#on.changed();
  }

  // ------------------------------------------------------------------------------ typing

  #typed() {
    this.#line.tidy();
    this.#caret = this.#line.selected()?.to ?? this.#caret;
    this.#edits.record({ prompt: this.prompt, caret: this.#caret }, "typing");
    this.#on.changed();
  }

  #before(event) {
    const { inputType } = event;
    if (event.isComposing) return;
    if (inputType === "insertParagraph" || inputType === "insertLineBreak") {
      event.preventDefault();
      this.#on.submit();
    } else if (inputType === "historyUndo" || inputType === "historyRedo") {
      event.preventDefault();
      this.#goTo(inputType === "historyUndo" ? this.#edits.undo() : this.#edits.redo());
    } else if (/^format|^insertFrom(Paste|Drop|Yank)|^insert(Link|Horizontal)/.test(inputType)) {
      event.preventDefault(); // words have no looks; what is pasted and dropped comes by itself
    } else if (/^delete.*(Backward|Forward)$/.test(inputType)) {
      this.#deletes(event, inputType.endsWith("Backward") ? -1 : 0);
    }
  }

  /** Delete the picture beside the caret as a character; the browser deletes anything else. */
  #deletes(event, side) {
    const selected = this.#line.selected();
    if (!selected) return;
    const { from, to } = selected;
    if (from !== to) {
      event.preventDefault();
      this.#delete();
    } else if (this.prompt.text[from + side] === pieces.PICTURE) {
      event.preventDefault();
      this.set(pieces.splice(this.prompt, from + side, from + side + 1), from + side);
    }
  }

  #delete() {
    const { from, to } = this.#line.selected();
    this.set(pieces.splice(this.prompt, from, to), from);
  }

  #goTo(state) {
    if (!state) return;
    this.#line.write(state.prompt);
    this.root.focus();
    this.#line.place(state.caret);
    this.#on.changed();
  }

  // ---------------------------------------------------------------------------- keyboard

  #key(event) {
    if (event.isComposing || event.keyCode === 229) return; // the keys are the input method's
    const command = event.ctrlKey || event.metaKey;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const number = this.#line.numberOf(event.target);
    if (command && (key === "z" || key === "y")) {
      event.preventDefault();
      this.#goTo(key === "z" && !event.shiftKey ? this.#edits.undo() : this.#edits.redo());
    } else if (number >= 0) {
      this.#chipKey(event, number);
    } else if (key === "Enter") {
      event.preventDefault();
      this.#on.submit();
    } else if ((key === "ArrowLeft" || key === "ArrowRight") && !command && !event.altKey) {
      this.#arrow(event, key === "ArrowLeft" ? -1 : 0);
    }
  }

  /** Go from the words onto a picture beside the caret. */
  #arrow(event, side) {
    const selected = this.#line.selected();
    if (event.shiftKey || !selected || selected.from !== selected.to) return;
    const at = selected.from + side;
    if (this.prompt.text[at] !== pieces.PICTURE) return;
    event.preventDefault();
    this.focus(pieces.countIn(this.prompt.text.slice(0, at)));
  }

  #chipKey(event, number) {
    const { key, shiftKey, altKey } = event;
    const side = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (side && altKey) this.swap(number, number + side);
    else if (side && shiftKey) this.move(number, side);
    else if (side) this.#leave(number, side);
    else if (key === "ArrowUp") this.weigh(number, this.prompt.pictures[number].weight + 0.1);
    else if (key === "ArrowDown") this.weigh(number, this.prompt.pictures[number].weight - 0.1);
    else if (key === "Delete" || key === "Backspace") this.remove(number);
    else if (key === "Enter" || key === " ") this.#on.chosen(number, "keyboard");
    else if (key === "Escape") this.#leave(number, 1);
    else {
      // A character goes behind the picture, and so does what is pasted.
      if (key.length === 1) this.#leave(number, 1);
      return;
    }
    event.preventDefault();
  }

  #leave(number, side) {
    this.#on.chosen(-1);
    this.root.focus();
    this.#line.place(pieces.placeOf(this.prompt, number) + (side > 0 ? 1 : 0));
  }

  #click(event) {
    const chip = event.target.closest(".chip");
    const number = chip ? this.#line.numberOf(chip) : -1;
    if (chip) chip.focus();
    this.#on.chosen(number, event.detail ? "pointer" : "keyboard"); // or a screen reader
  }

  // --------------------------------------------------------------------------- clipboard

  #copy(event) {
    const selected = this.#line.selected();
    if (!selected || selected.from === selected.to) return false;
    const cut = pieces.slice(this.prompt, selected.from, selected.to);
    const keys = cut.pictures.map((picture) => picture.key);
    event.preventDefault();
    event.clipboardData.setData("text/plain", pieces.spoken(pieces.toParts(cut)));
    event.clipboardData.setData(OWN, JSON.stringify({ text: cut.text, keys }));
    return true;
  }

  #paste(event) {
    event.preventDefault();
    const { clipboardData: data } = event;
    const words = data.getData("text/plain");
    const files = [...data.files];
    const own = data.getData(OWN);
    const cut = own && this.#ours(own);
    if (cut) return this.#put(cut);
    // Word processors add a picture of the text; file managers add the names of the files.
    const onlyNames = files.some((file) => words.includes(file.name));
    if (files.length && (!words.trim() || onlyNames)) return this.#on.files(files);
    return this.#put({ text: pieces.plain(words), pictures: [] });
  }

  #put(put) {
    const { from, to } = this.#line.selected() ?? { from: this.#caret, to: this.#caret };
    this.set(pieces.splice(this.prompt, from, to, put), from + put.text.length);
  }

  /** Return what was cut or copied here; undefined where another page wrote it, or an older one. */
  #ours(data) {
    try {
      const { text, keys } = JSON.parse(data);
      const pictures = keys.map((key) => withKey(this.#known.get(key) ?? {}));
      const whole = pictures.every((picture) => picture.url) && pieces.countIn(text) === keys.length;
      return whole ? { text, pictures } : undefined;
    } catch {
      return undefined;
    }
  }
}
