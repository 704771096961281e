// The frame: which view is shown, what is known of the server, the keys. The address says all of it.

import { all, get, keys, post } from "./api.js";
import { button, dialog, el, failure, field } from "./dom.js";
import { KeepView } from "./keep.js";
import { PlayView } from "./play.js";
import { isProbability, scoreNames } from "./request.js";
import { emptyState, entryOf, unpacked } from "./state.js";
import { T } from "./strings.js";
import { TrainView } from "./train.js";
import { beginWatching } from "./watch.js";

const known = { model: "", vectors: [], state: emptyState(), isFresh: true };
const main = el("main", { id: "content", tabindex: "-1" });
const nav = el("nav", { class: "views", "aria-label": "tiller" });
const modelName = el("bdi", { class: "model dim" });

function frame() {
  document.body.append(
    el("a", { href: "#content", class: "skip", on: { click: (event) => {
      event.preventDefault();
      main.focus();
    } } }, T.skip),
    el("header", { class: "top" },
      el("div", { class: "brand" }, el("img", { src: "page/icon.svg", alt: "", width: 26, height: 26 }), el("strong", {}, "tiller"), modelName),
      nav, el("span", { class: "grow" }), el("tiller-strip"),
      el("a", { href: "docs", class: "quiet-link" }, T.api), button(T.keys, () => askForKeys(), { class: "quiet" })),
    main);
}

function askForKeys(reason) {
  const inputs = ["use", "manage"].map((role) => el("input", { type: "password", value: keys.get(role), autocomplete: "off", spellcheck: "false" }));
  const shown = dialog(reason ? T.keyNeeded : T.keys, reason ? failure(reason) : "", el("p", { class: "dim" }, T.keysHint),
    field(T.useKey, inputs[0]), field(T.manageKey, inputs[1]),
    el("div", { class: "row end" }, button(T.cancel, () => shown.close()), button(T.save, async () => {
      ["use", "manage"].forEach((role, number) => keys.set(role, inputs[number].value.trim()));
      shown.close();
      await learn();
      await show();
    }, { class: "primary" })));
}

/** Ask the server what it serves, and with which vectors. */
async function learn() {
  const models = (await get("v1/models")).data;
  known.model = models[0].id;  // the others are the same model, steered
  modelName.textContent = known.model;
  document.title = `${known.model} · tiller`;
  known.vectors = await usableVectors();
  if (!known.isFresh) return;
  known.isFresh = false;
  if (known.vectors.length) known.state.racks[0].push(entryOf(known.vectors[0]));
  if (known.vectors.length) known.state.racks[1].push({ ...entryOf(known.vectors.at(-1)) });
  try {
    await post("tokenize", { messages: [{ role: "user", content: "a" }] });
  } catch (error) {
    if (error.code === "no_chat_template") known.state.kind = "text";
  }
}

/** False for a vector whose files are damaged. */
const isUsable = (vector) => vector.object === "steering.vector";

const usableVectors = async () => (await all("v1/steering/vectors")).filter(isUsable);

/** Play with a vector: steer by it, or read it if it is a probe. */
function play(name) {
  const { state, vectors } = known;
  const vector = vectors.find((each) => each.name === name);
  if (isProbability(vector)) {
    state.probes = [{ vector: name, layers: "" }];
    state.tint = scoreNames(state.probes, vectors)[0].name;
  } else if (vector) state.racks[0] = [entryOf(vector)];
  location.hash = "#play";
}

async function tryIt(name) {
  known.vectors = await usableVectors();
  play(name);
}

async function viewOf(name, rest) {
  const inside = main.firstElementChild;
  if (name === "keep") {
    if (inside?.localName !== "tiller-keep") return KeepView.of(rest, known.model, (vector) => play(vector.name));
    if (inside.chosen !== rest) inside.choose(rest);
    return inside;
  }
  if (name === "train") {
    if (inside?.localName !== "tiller-train") return TrainView.of(rest, known.model, tryIt);
    if (inside.job !== rest) inside.choose(rest);
    return inside;
  }
  if (name === "watch") return el("tiller-watch");
  if (rest) known.state = await unpacked(rest);
  return PlayView.of(known.state, known.model, known.vectors);
}

/** A part of the address without its escapes; as it stands where they are malformed. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Show the view that the address names. */
async function show() {
  const [name, rest] = location.hash.slice(1).split(":").map(decoded);
  const chosen = name in T.views ? name : "play";
  nav.replaceChildren(...Object.entries(T.views).map(([view, label]) =>
    el("a", { href: `#${view}`, "aria-current": view === chosen ? "page" : null }, label)));
  let view;
  try {
    view = await viewOf(chosen, rest);
  } catch {
    view = el("div", {}, failure({ message: T.badLink }), PlayView.of((known.state = emptyState()), known.model, known.vectors));
  }
  if (view !== main.firstElementChild || main.childElementCount > 1) main.replaceChildren(view);
}

async function begin() {
  frame();
  let asking = false;
  document.addEventListener("key-needed", (event) => {
    if (asking || document.querySelector("dialog")) return;
    asking = true;
    askForKeys(event.detail);
    asking = false;
  });
  document.addEventListener("vectors-changed", (event) => (known.vectors = event.detail.filter(isUsable)));
  window.addEventListener("hashchange", show);
  try {
    await learn();
  } catch (error) {
    main.replaceChildren(failure(error));
    nav.replaceChildren();
    return;
  }
  beginWatching();
  await show();
}

begin();
