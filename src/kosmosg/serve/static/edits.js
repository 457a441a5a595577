// Undo for the prompt line: the browser's own forgets whatever a program changes.

const PAUSE_MS = 1000; // typing without such a pause is undone in one piece
const MOST = 200;

export class Edits {
  #past = [];
  #future = [];
  #now;
  #kind = "";
  #time = 0;

  constructor(first) {
    this.#now = first;
  }

  /** Keep a state; the one before it can be come back to, unless both are of one burst. */
  record(state, kind) {
    const time = performance.now();
    const goesOn = kind !== "own" && kind === this.#kind && time - this.#time < PAUSE_MS;
    if (!goesOn) this.#past = [...this.#past.slice(-MOST), this.#now];
    this.#now = state;
    this.#future = [];
    this.#kind = kind;
    this.#time = time;
  }

  /** Return the state before, or undefined. */
  undo() {
    return this.#step(this.#past, this.#future);
  }

  /** Return the state that was undone last, or undefined. */
  redo() {
    return this.#step(this.#future, this.#past);
  }

  #step(from, to) {
    if (!from.length) return undefined;
    to.push(this.#now);
    this.#now = from.pop();
    this.#kind = "";
    return this.#now;
  }
}
