// What is said to people: quietly what happens, loudly what went wrong.

import { ServerError } from "./client.js";
import { Refusal } from "./pictures.js";

let quiet;
let loud;
let onNoKey;

/** Say things by these elements; `noKey` is called when the server wants a key. */
export function tellBy(status, alert, noKey) {
  quiet = status;
  loud = alert;
  onNoKey = noKey;
}

/** Say something to people who hear the page; those who see it see it happen. */
export function say(words) {
  quiet.textContent = words;
}

/** Show what went wrong, until something else is tried. */
export function warn(words) {
  loud.firstElementChild.textContent = words;
  loud.hidden = !words;
}

/** Run what may be refused; the refusal is shown, any other error is ours. */
export async function trying(act) {
  warn("");
  try {
    return await act();
  } catch (error) {
    if (!(error instanceof Refusal || error instanceof ServerError)) throw error;
    warn(error.message);
    if (error.status === 401) onNoKey();
    return undefined;
  }
}
