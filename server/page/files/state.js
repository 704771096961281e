// What the user set up and what came of it, and the same as a link. A link holds no key, and what comes out of one is
// checked like anything else that a stranger wrote.

import { checkedChat, emptyChat, mapAnswers, turnsOf } from "./conversation.js";

const MODES = ["compare", "fan", "ab", "map"];
export const POSITIONS = ["response", "prompt", "all"];
export const OPERATIONS = ["add", "ablate", "clamp", "cap", "amplify"];
export const MOST_COLUMNS = 8;
export const SIDES = ["above", "below"];
const MOST_BYTES = 1 << 20;
const MOST_TURNS = 50;

export const emptyState = () => ({
  mode: "compare",
  kind: "chat",
  racks: [[], []],
  fan: "-1, -0.5, 0, 0.5, 1",
  map: { layers: "", scales: "-1, -0.5, 0, 0.5, 1" },
  system: "",
  sampling: { temperature: "0", top_p: "", top_k: "", max_tokens: "200", seed: "", tools: "" },
  probabilities: true,
  probes: [],
  tint: "",
  chat: emptyChat(),
  get turns() {
    return turnsOf(this.chat);
  },
});

export const entryOf = (vector) => ({
  vector: vector.name, on: true, scale: vector.default_scale, layers: "", positions: "", operation: "", min: "", max: "", norm: false,
  gate: { probe: "", side: "above", threshold: "0", layer: "", sharpness: "", latch: false },
});

const text = (value, most = 200_000) => (typeof value === "string" ? value.slice(0, most) : "");
const oneOf = (value, choices) => (choices.includes(value) ? value : choices[0]);
const number = (value) => (Number.isFinite(value) ? value : 0);
const list = (value, most) => (Array.isArray(value) ? value.slice(0, most) : []);
const object = (value) => (value && typeof value === "object" ? value : {});

function checkedEntry(given) {
  const entry = object(given);
  return {
    vector: text(entry.vector, 200), on: entry.on !== false, scale: number(entry.scale), layers: text(entry.layers, 200),
    positions: oneOf(entry.positions, ["", ...POSITIONS]), operation: oneOf(entry.operation, ["", ...OPERATIONS]),
    min: text(entry.min, 40), max: text(entry.max, 40), norm: entry.norm === true, gate: checkedGate(object(entry.gate)),
  };
}

const checkedGate = (gate) => ({
  probe: text(gate.probe, 200), side: oneOf(gate.side, SIDES), threshold: text(gate.threshold, 40) || "0", layer: text(gate.layer, 10),
  sharpness: text(gate.sharpness, 40), latch: gate.latch === true,
});

const checkedProbe = (given) => ({ vector: text(object(given).vector, 200), layers: text(object(given).layers, 200) });

const checkedSummary = (given) => {
  const probe = object(given);
  return { name: text(probe.name, 200), layer: number(probe.layer), threshold: number(probe.threshold), mean: number(probe.mean),
    max: number(probe.max), above: number(probe.above) };
};

const checkedCount = (given) => {
  const gate = object(given);
  return { entry: number(gate.entry), open: number(gate.open), of: number(gate.of) };
};

function checkedAnswer(given) {
  if (!given) return null;
  const answer = object(given);
  return {
    reasoning: text(answer.reasoning), content: text(answer.content), calls: list(answer.calls, 100).map((call) => text(call)),
    plan: list(answer.plan, 64).map((entry) => object(entry)), finish: text(answer.finish, 40),
    probes: list(answer.probes, 256).map(checkedSummary), gates: list(answer.gates, 64).map(checkedCount),
  };
}

/** Anything -> a state; what is not understood is left at its default. */
export function checked(given) {
  const raw = object(given);
  const state = emptyState();
  state.mode = oneOf(raw.mode, MODES);
  state.kind = oneOf(raw.kind, ["chat", "text"]);
  state.racks = [0, 1].map((number) => list(object(raw.racks)[number], 64).map(checkedEntry));
  state.fan = text(raw.fan, 200) || state.fan;
  state.map = { layers: text(object(raw.map).layers, 200), scales: text(object(raw.map).scales, 200) || state.map.scales };
  state.system = text(raw.system);
  for (const name of Object.keys(state.sampling)) state.sampling[name] = text(object(raw.sampling)[name]);
  state.probabilities = raw.probabilities !== false;
  state.probes = list(raw.probes, 64).map(checkedProbe);
  state.tint = text(raw.tint, 200);
  const turn = (each) => ({ user: text(object(each).user), answers: list(object(each).answers, 32).map(checkedAnswer) });
  state.chat = checkedChat(raw.chat, turn, MOST_TURNS);
  return state;
}

/** The same without what a link does not need: tokens, and answers that are not whole. */
export function portable(state) {
  const answers = (given) => given.map((answer) => answer && !answer.error && answer.finish
    ? { reasoning: answer.reasoning, content: answer.content, calls: answer.calls.map(String), plan: answer.plan,
        finish: answer.finish, probes: answer.probes, gates: answer.gates }
    : null);
  const { turns: _, ...rest } = state;
  return { ...rest, chat: mapAnswers(state.chat, answers) };
}

async function through(bytes, stream, most) {
  const reader = new Blob([bytes]).stream().pipeThrough(stream).getReader();
  const parts = [];
  for (let size = 0; ; ) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
    size += value.length;
    if (size > most) throw new RangeError("the link is too long");
    parts.push(value);
  }
}

/** A state -> text for the address. */
export async function packed(state) {
  const bytes = new TextEncoder().encode(JSON.stringify(portable(state)));
  const small = await through(bytes, new CompressionStream("deflate-raw"), Infinity);
  const letters = Array.from(small, (byte) => String.fromCharCode(byte)).join("");
  return btoa(letters).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The reverse. Throws for what no page made. */
export async function unpacked(packed) {
  const letters = atob(packed.replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
  const whole = await through(bytes, new DecompressionStream("deflate-raw"), MOST_BYTES);
  return checked(JSON.parse(new TextDecoder().decode(whole)));
}

/** Numbers in text such as "-1, 0, 1". */
export const numbersIn = (given) =>
  given.split(/[\s,;]+/).filter(Boolean).map((part) => Number(part.replace("−", "-"))).filter(Number.isFinite);

/** Layers in text such as "1-3,5". */
export const layersIn = (given) => given.split(",").flatMap((part) => {
  const match = /^\s*(\d{1,4})(?:\s*-\s*(\d{1,4}))?\s*$/.exec(part);
  if (!match) return [];
  const [first, last] = [Number(match[1]), Number(match[2] ?? match[1])];
  return Array.from({ length: Math.max(0, Math.min(last - first + 1, 64)) }, (_, step) => first + step);
});
