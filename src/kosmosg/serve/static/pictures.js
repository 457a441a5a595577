// Files that a person gives: passed if the server will read them, refused in words otherwise.

export class Refusal extends Error {}

// What browsers can show and the server can read, by the first bytes: a suffix proves nothing.
const KINDS = [
  ["image/png", /^\x89PNG\r\n\x1a\n/],
  ["image/jpeg", /^\xff\xd8\xff/],
  ["image/webp", /^RIFF[^]{4}WEBP/],
  ["image/gif", /^GIF8[79]a/],
  ["image/bmp", /^BM/],
];
export const ACCEPT = KINDS.map(([kind]) => kind).join(",");
export const MAX_WEIGHT = 4; // as kosmosg.controls has it
const IN_BASE64 = 0.74; // how much of a request's size its pictures can have

/** Return how many bytes of pictures a server takes in one request. */
export const roomOf = (limits) => (limits ? Math.floor(limits.max_upload_bytes * IN_BASE64) : Infinity);

let made = 0;

/**
 * Return a picture of the prompt: its bytes as given, a name, a weight and an address to show it.
 *
 * Throws a Refusal if it is too large, or no picture that can be read.
 */
export async function readPicture(blob, { name, maxBytes, weight = 1 }) {
  if (blob.size > maxBytes) {
    throw new Refusal(
      `${name} has ${size(blob.size)}; this server takes ${size(maxBytes)} of pictures at once. Make it smaller.`,
    );
  }
  const head = String.fromCharCode(...new Uint8Array(await blob.slice(0, 16).arrayBuffer()));
  const kind = KINDS.find(([, start]) => start.test(head))?.[0];
  if (!kind) {
    throw new Refusal(`${name} is not a picture that can be read. Give a PNG, JPEG, WebP, GIF or BMP.`);
  }
  const typed = new Blob([blob], { type: kind });
  try {
    (await createImageBitmap(typed)).close();
  } catch {
    throw new Refusal(`${name} is a damaged picture. Give it whole.`);
  }
  const heard = Math.min(MAX_WEIGHT, Math.max(0, weight));
  return shown({ name, blob: typed, weight: heard });
}

/** Return a picture that was read before, with an address to show it. */
export const shown = (picture) => withKey({ ...picture, url: URL.createObjectURL(picture.blob) });

/** Return the picture as another one: the same may stand in a prompt twice. */
export const withKey = (picture) => ({ ...picture, key: `picture-${(made += 1)}` });

export function toDataURL(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Refusal("A picture can no longer be read. Give it again."));
    reader.readAsDataURL(blob);
  });
}

export function fromBase64(text, type) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type });
}

/** Return a number of bytes as people read it. */
export function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  return bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
