// The page: what each part of it does, put together.

import * as history from "./history.js";
import * as pieces from "./pieces.js";
import { generate, models, setKey } from "./client.js";
import { allowDrops } from "./drag.js";
import { entryElement, showEvent } from "./entry.js";
import { EXAMPLES, exampleButton, partsOf } from "./examples.js";
import { fromLink, toLink } from "./link.js";
import { say, tellBy, trying, warn } from "./messages.js";
import { pictureOptions } from "./options.js";
import {
  ACCEPT,
  Refusal,
  fromBase64,
  readPicture,
  roomOf,
  shown,
  size,
  toDataURL,
  withKey,
} from "./pictures.js";
import { PromptLine } from "./prompt.js";
import { Settings } from "./settings.js";

const at = (id) => document.getElementById(id);
let model; // the first of the server's, with its limits under `kosmosg`
let settings;
let lastId = 0; // of an entry: the time, but no two the same
let replacing = -1; // the picture in whose place the next chosen file goes

tellBy(at("status"), at("alert"), () => {
  at("key").hidden = false;
  at("key-field").focus();
});

// --------------------------------------------------------------------------------- prompt

const prompt = new PromptLine(at("prompt"), {
  changed: () => {
    at("linked").hidden = true;
    options.follow();
  },
  submit: () => at("compose").requestSubmit(),
  files: (files) => addFiles(files),
  chosen: (number, by) => options.show(number, by),
});
const options = pictureOptions(at("options"), prompt, (number) => {
  replacing = number;
  at("files").multiple = false;
  at("files").click();
});
allowDrops(prompt, at("marker"), (files, place) => addFiles(files, place));

const maxBytes = () => roomOf(model?.kosmosg);

/** Read files and put them into the line; whatever is refused is said, the others stay. */
async function addFiles(files, place = {}) {
  warn("");
  const read = await Promise.allSettled(
    [...files].map((file) => readPicture(file, { name: file.name, maxBytes: maxBytes() })),
  );
  const refused = read.flatMap(({ reason }) => (reason ? [reason] : []));
  const pictures = read.flatMap(({ value }) => (value ? [value] : []));
  addPictures(pictures, place);
  if (refused.length) warn(refused.map((error) => error.message).join(" "));
}

function addPictures(pictures, { at: place, onto } = {}) {
  if (!pictures.length) return;
  const most = model?.kosmosg.max_pictures ?? 8;
  const has = prompt.prompt.pictures.length;
  if (onto !== undefined && pictures.length === 1) {
    prompt.replace(onto, pictures[0]);
  } else if (has + pictures.length > most) {
    warn(`A prompt of this model has at most ${most} pictures; this would be ${has + pictures.length}.`);
  } else if (bytesOf([...prompt.prompt.pictures, ...pictures]) > maxBytes()) {
    warn(`This server takes ${size(maxBytes())} of pictures at once; that would be more. Make them smaller.`);
  } else {
    prompt.insert(pictures, place);
    say(pictures.length === 1 ? `${pictures[0].name} added` : `${pictures.length} pictures added`);
  }
}

const bytesOf = (pictures) => pictures.reduce((sum, { blob }) => sum + blob.size, 0);

function restore(parts, values) {
  prompt.set(pieces.fromParts(parts.map((part) => (typeof part === "string" ? part : withKey(part)))));
  if (values) settings.write(values);
}

// -------------------------------------------------------------------------------- drawing

async function draw(parts, values) {
  const request = { ...values, model: model.id };
  if (values.control) {
    const { name, picture } = values.control;
    if (!picture) throw new Refusal(`Control ${name} needs a picture: choose one in the settings.`);
    request.control = { name, image: await toDataURL(picture.blob) };
  }
  const leaving = new AbortController();
  const entry = { parts, settings: values, pictures: [] };
  const element = entryElement(entry, { cancel: () => leaving.abort() });
  at("none").hidden = true;
  at("made").prepend(element);
  say("Sent");
  const begun = performance.now();
  let seconds; // of what came whole
  try {
    for await (const event of generate(parts, request, leaving.signal)) {
      if (event.type === "image_generation.completed") entry.pictures.push(pictureOf(event));
      showEvent(element, event, entry);
    }
    seconds = (performance.now() - begun) / 1000;
    say(entry.pictures.length === 1 ? "Done: 1 picture" : `Done: ${entry.pictures.length} pictures`);
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    say("Cancelled");
  } finally {
    await finish(entry, element, seconds);
  }
}

const pictureOf = (event) => ({
  blob: fromBase64(event.b64_json, `image/${event.output_format ?? "png"}`),
  seed: event.seed,
  index: event.index,
  isFlagged: event.nsfw_content_detected === true,
});

/** Put what came in the place of what was being drawn, and keep it. */
async function finish(entry, element, seconds) {
  lastId = Math.max(Date.now(), lastId + 1);
  const pictures = entry.pictures.toSorted((one, other) => one.index - other.index);
  const done = { ...entry, id: lastId, pictures, seconds };
  if (done.pictures.length) {
    element.replaceWith(entryElement(done, does));
    await history.keep(forKeeping(done)).catch(() => warn("This browser keeps no history here."));
  } else {
    element.remove();
  }
  showWhetherEmpty();
}

// Of a picture its bytes are kept; addresses end with the page.
const bare = ({ name, blob, weight }) => ({ name, blob, weight });
const forKeeping = ({ settings: values, ...entry }) => ({
  ...entry,
  parts: entry.parts.map((part) => (typeof part === "string" ? part : bare(part))),
  settings: values.control
    ? { ...values, control: { ...values.control, picture: bare(values.control.picture) } }
    : values,
});

const does = {
  edit: (entry) => {
    restore(entry.parts, entry.settings);
    prompt.root.focus();
    scrollTo({ top: 0 });
  },
  link: (entry) => copyLink(entry.parts, entry.settings),
  forget: async (entry, element) => {
    await history.forget(entry.id).catch(() => {}); // where none is kept
    element.remove();
    showWhetherEmpty();
    at("made-title").focus();
    say("Removed");
  },
  use: (entry, picture) =>
    trying(async () => {
      const name = `made-${picture.seed}.png`;
      addPictures([await readPicture(picture.blob, { name, maxBytes: maxBytes() })]);
      scrollTo({ top: 0 });
    }),
  replay: (entry, picture) =>
    trying(() => draw(entry.parts, { ...entry.settings, n: 1, seed: picture.seed })),
};

function showWhetherEmpty() {
  const isEmpty = !at("made").childElementCount;
  at("none").hidden = !isEmpty;
  at("forget-all").hidden = isEmpty;
}

async function copyLink(parts, values) {
  await trying(async () => {
    const { control, ...plain } = values;
    const link = await toLink(parts, plain);
    at("linked").hidden = false;
    at("link-field").value = link;
    at("link-field").focus();
    at("link-field").select();
    const copied = await navigator.clipboard?.writeText(link).then(
      () => true,
      () => false,
    );
    const without = control ? " The control picture is not in it." : "";
    say(`${copied ? "Link copied." : "Copy the link from its field."}${without}`);
    if (without) warn(without.trim());
  });
}

// --------------------------------------------------------------------------------- wiring

at("compose").addEventListener("submit", (event) => {
  event.preventDefault();
  const parts = pieces.toParts(prompt.prompt);
  trying(async () => {
    if (!model) throw new Refusal("The server has not answered yet.");
    if (!parts.length) throw new Refusal("The prompt is empty: type words, or add a picture.");
    await draw(parts, await settings.read());
  });
});
at("files").accept = ACCEPT;
at("add").addEventListener("click", () => {
  replacing = -1;
  at("files").multiple = true;
  at("files").click();
});
at("files").addEventListener("change", async () => {
  const files = [...at("files").files];
  at("files").value = "";
  await addFiles(files, replacing >= 0 ? { onto: replacing } : {});
});
at("link").addEventListener("click", () =>
  trying(async () => {
    const { seed, ...values } = await settings.read();
    const isFixed = at("compose").elements.seeding.value === "fixed";
    await copyLink(pieces.toParts(prompt.prompt), isFixed ? { seed, ...values } : values);
  }),
);
at("clear").addEventListener("click", () => {
  prompt.set(pieces.EMPTY);
  prompt.root.focus();
});
at("alert").querySelector("button").addEventListener("click", () => {
  warn("");
  prompt.root.focus();
});
at("forget-all").addEventListener("click", async () => {
  if (!confirm("Remove all pictures from this browser's history?")) return;
  await history.forgetAll().catch(() => {});
  for (const element of at("made").querySelectorAll(".entry")) {
    if (element.querySelector(".going").hidden) element.remove();
  }
  showWhetherEmpty();
});
at("key").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(at("key-field").value);
  at("key").hidden = true;
  if (!model) begin();
});
addEventListener("hashchange", () => openLink());

// ------------------------------------------------------------------------------ beginning

function showExamples() {
  for (const example of EXAMPLES) {
    const run = () =>
      trying(async () => {
        restore(await partsOf(example));
        at("compose").requestSubmit();
      });
    const item = document.createElement("li");
    item.append(exampleButton(example, run));
    at("examples").append(item);
  }
}

async function showHistory() {
  const entries = await history.kept().catch(() => []);
  const whole = (part) => (typeof part === "string" ? part : shown(part));
  for (const entry of entries) {
    at("made").append(entryElement({ ...entry, parts: entry.parts.map(whole) }, does));
  }
  showWhetherEmpty();
}

async function openLink() {
  await trying(async () => {
    const found = await fromLink(location.hash, maxBytes());
    if (!found) return;
    restore(found.parts, found.settings);
    window.history.replaceState(null, "", location.pathname + location.search);
    say("The prompt of the link is in the line.");
  });
}

/** Return the server's model; a server that has just been started needs some seconds for it. */
async function loaded() {
  for (;;) {
    try {
      return (await models())[0];
    } catch (error) {
      if (error.status !== 503) throw error;
    }
    at("model").textContent = "loading the model";
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function begin() {
  await trying(async () => {
    model = await loaded();
    at("model").textContent = model.id;
    settings = new Settings(at("compose"), at("summary"), model.kosmosg);
    await openLink();
  });
}

showExamples();
await showHistory();
await begin();
