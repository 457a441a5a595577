// The server, as its API documents it. Nothing else is ever asked, no other host either.

import { toDataURL } from "./pictures.js";

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

let key = sessionStorage.getItem("kosmosg-key") ?? "";

/** Keep the key as long as this tab is open. */
export function setKey(given) {
  key = given;
  sessionStorage.setItem("kosmosg-key", given);
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it still running?", 0);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const wait = response.headers.get("Retry-After");
  const said = body.error?.message ?? `The server answered ${response.status}.`;
  throw new ServerError(wait ? `${said} Try again in ${wait} s.` : said, response.status);
}

/** Return the models that the server has, the first being the one that draws. */
export async function models() {
  return (await (await ask("v1/models")).json()).data;
}

/**
 * Ask for pictures and yield the server's events until all have come.
 *
 * @param parts Words and pictures in order.
 * @param settings Fields of the request besides the prompt; undefined ones are left out.
 * @param signal Aborting it frees the place in the server.
 */
export async function* generate(parts, settings, signal) {
  const prompt = await Promise.all(
    parts.map(async (part) =>
      typeof part === "string"
        ? { type: "text", text: part }
        : {
            type: "image_url",
            image_url: { url: await toDataURL(part.blob) },
            weight: part.weight,
          },
    ),
  );
  const response = await ask("v1/images/generations", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...settings, prompt, stream: true, partial_images: 3 }),
    signal,
  });
  for await (const event of eventsOf(response.body)) {
    if (event.type === "error" || event.error) throw new ServerError(event.error.message, 200);
    yield event;
  }
}

/** Yield the JSON of each event of a text/event-stream. */
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("The server went away before the pictures were done. Try again.", 0);
    }
    if (part.done) return;
    const blocks = (rest + part.value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}
