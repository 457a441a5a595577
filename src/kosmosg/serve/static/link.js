// A prompt as the part of an address behind "#", which browsers keep to themselves.

import { Refusal, fromBase64, readPicture, size, toDataURL } from "./pictures.js";

const MARK = "#k1."; // and the version of what follows: base64url of deflated JSON
export const MAX_LINK = 32_000; // characters; beyond it, mail and chat programs cut links off
const MAX_JSON = 1_000_000;

/**
 * Return the address of this page with a prompt and settings in it.
 *
 * Throws a Refusal if the pictures are too large for a link.
 */
export async function toLink(parts, settings) {
  const said = await Promise.all(
    parts.map(async (part) => {
      if (typeof part === "string") return part;
      const data = (await toDataURL(part.blob)).split(",")[1];
      return { name: part.name, weight: part.weight, data };
    }),
  );
  const bytes = new TextEncoder().encode(JSON.stringify({ parts: said, settings }));
  const packed = await through(new CompressionStream("deflate-raw"), bytes, Infinity);
  if (packed.length > MAX_LINK * 0.74) {
    const pictures = parts.filter((part) => typeof part !== "string");
    const bytesIn = pictures.reduce((sum, { blob }) => sum + blob.size, 0);
    throw new Refusal(
      `A link holds about ${size(MAX_LINK * 0.7)} of pictures; these have ${size(bytesIn)}. ` +
        "Take smaller pictures, or send the files and the words.",
    );
  }
  const text = btoa(String.fromCharCode(...packed));
  const fragment = text.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
  return location.href.replace(/#.*$/, "") + MARK + fragment;
}

/**
 * Return the parts and settings of a fragment, which anybody may have written, or undefined.
 *
 * Throws a Refusal if it is of this kind, but damaged.
 */
export async function fromLink(fragment, maxBytes) {
  if (!fragment.startsWith(MARK)) return undefined;
  let found;
  try {
    const text = fragment.slice(MARK.length).replaceAll("-", "+").replaceAll("_", "/");
    const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const bytes = await through(new DecompressionStream("deflate-raw"), packed, MAX_JSON);
    found = JSON.parse(new TextDecoder().decode(bytes));
    if (!Array.isArray(found.parts)) throw new TypeError("no parts");
    const parts = await Promise.all(
      found.parts.map((part) => {
        if (typeof part === "string") return part;
        const weight = Number.isFinite(part.weight) ? part.weight : 1;
        const name = String(part.name).slice(0, 200);
        return readPicture(fromBase64(part.data, ""), { name, maxBytes, weight });
      }),
    );
    return { parts, settings: found.settings ?? {} };
  } catch (error) {
    if (error instanceof Refusal) throw error;
    throw new Refusal("This link is damaged: it was cut off or changed. Ask for it again.");
  }
}

/** Return what a stream makes of some bytes; no more than `most` of them. */
async function through(stream, bytes, most) {
  const reader = new Blob([bytes]).stream().pipeThrough(stream).getReader();
  const chunks = [];
  let length = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    chunks.push(part.value);
    length += part.value.length;
    if (length > most) throw new RangeError("too long");
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}
