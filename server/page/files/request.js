// From what is set up to the request that is sent, and from that request to programs that send the same.

import { addressOf } from "./api.js";
import { MOST_COLUMNS, layersIn, numbersIn } from "./state.js";
import { short } from "./dom.js";
import { T } from "./strings.js";

const OPENAI = new Set(["model", "messages", "prompt", "stream", "temperature", "top_p", "max_tokens",
  "max_completion_tokens", "seed", "logprobs", "top_logprobs", "tools"]);
const NUM_ALTERNATIVES = 8;

function entryBody(entry) {
  const body = { vector: entry.vector, scale: entry.scale };
  if (entry.layers.trim()) body.layers = entry.layers.trim();
  if (entry.positions) body.positions = entry.positions;
  if (entry.operation) body.operation = entry.operation;
  for (const end of ["min", "max"]) if (entry.operation === "cap" && entry[end].trim()) body[end] = Number(entry[end]);
  if (entry.norm) body.preserve_norm = true;
  if (entry.gate.probe) body.when = gateBody(entry.gate);
  return body;
}

function gateBody(gate) {
  const body = { probe: gate.probe, [gate.side]: Number(gate.threshold) };
  for (const name of ["layer", "sharpness"]) if (gate[name].trim()) body[name] = Number(gate[name]);
  if (gate.latch) body.latch = "rest";
  return body;
}

/** The probes that are on, as the API takes them. */
const probesOf = (probes) => probes.map(({ vector, layers }) => (layers.trim() ? { vector, layers: layers.trim() } : { vector }));

/** The names that the scores of probes have, each with its vector: one for each layer where there are several. */
export function scoreNames(probes, vectors) {
  return probes.flatMap((probe) => {
    const vector = vectors.find((each) => each.name === probe.vector);
    const layers = layersIn(probe.layers).length ? layersIn(probe.layers) : vector?.layers ?? [];
    return layers.length > 1 ? layers.map((layer) => ({ name: `${probe.vector}.${layer}`, vector })) : [{ name: probe.vector, vector }];
  });
}

/** True for a vector whose score is a probability, as that of a trained probe. */
export const isProbability = (vector) => ["sigmoid", "step"].includes(vector?.activation);

/** The entries of a rack that are on, as the API takes them. */
export const steeringOf = (rack) => rack.filter((entry) => entry.on).map(entryBody);

/** The columns of a mode: a name, the steering, and the number of the column that the others are compared with. */
export function columnsOf(state) {
  const [first, second] = state.racks.map(steeringOf);
  if (state.mode === "ab") return [{ name: "A", steering: first }, { name: "B", steering: second, reference: 0 }];
  if (state.mode === "fan") {
    const scales = numbersIn(state.fan).slice(0, MOST_COLUMNS);
    const plain = Math.max(0, scales.indexOf(0));
    return scales.map((scale, number) => ({
      name: `× ${short(scale)}`,
      steering: first.map((entry, place) => (place === 0 ? { ...entry, scale } : entry)),
      reference: number === plain ? undefined : plain,
    }));
  }
  return [{ name: T.unsteered, steering: [] }, { name: T.steered, steering: first, reference: 0 }];
}

/** What `turn` asks in a column: the path and the body. Throws `SyntaxError` where tools are not JSON. */
export function requestOf(state, model, column, turn, number, seed) {
  const json = { model };
  if (state.kind === "chat") {
    json.messages = state.system.trim() ? [{ role: "system", content: state.system }] : [];
    for (const past of state.turns.slice(0, turn)) {
      json.messages.push({ role: "user", content: past.user });
      json.messages.push({ role: "assistant", content: past.answers[number]?.content ?? "" });
    }
    json.messages.push({ role: "user", content: state.turns[turn].user });
    if (state.sampling.tools.trim()) json.tools = JSON.parse(state.sampling.tools);
  } else json.prompt = state.turns[turn].user;
  for (const name of ["temperature", "top_p", "top_k", "max_tokens"]) {
    if (state.sampling[name].trim()) json[name] = Number(state.sampling[name]);
  }
  json.seed = seed;
  const hasEntries = state.probabilities || state.probes.length > 0;  // scores are shown by token
  if (hasEntries && state.kind === "chat") Object.assign(json, { logprobs: true, top_logprobs: NUM_ALTERNATIVES });
  else if (hasEntries) json.logprobs = NUM_ALTERNATIVES;
  if (state.probes.length) json.probes = probesOf(state.probes);
  if (column.steering.length) json.steering = column.steering;
  json.stream = true;
  return { path: state.kind === "chat" ? "v1/chat/completions" : "v1/completions", json };
}

/** One request for all of `requests`, which differ in their steering and messages: each is a variant. */
export function togetherOf(requests) {
  if (requests.length === 1) return requests[0];
  const [{ path, json: { steering: _, ...common } }] = requests;
  const isOwn = (messages) => JSON.stringify(messages) !== JSON.stringify(common.messages);
  const variants = requests.map(({ json }) => ({ steering: json.steering ?? [], ...(isOwn(json.messages) ? { messages: json.messages } : {}) }));
  return { path, json: { ...common, variants } };
}

// ---- programs

function python(value, depth = 1) {
  const [inner, outer] = ["    ".repeat(depth + 1), "    ".repeat(depth)];
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const parts = Array.isArray(value)
    ? value.map((each) => python(each, depth + 1))
    : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${python(each, depth + 1)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const line = open + parts.join(", ") + close;
  return line.length <= 80 ? line : `${open}\n${parts.map((part) => `${inner}${part},\n`).join("")}${outer}${close}`;
}

const isChat = (request) => request.path.includes("chat");
const pieceOf = (request) => (isChat(request) ? "choice.delta.content" : "choice.text");
const isMany = (request) => Boolean(request.json.variants);

function pythonProgram(request) {
  const own = Object.entries(request.json).filter(([name]) => !OPENAI.has(name));
  const known = Object.entries(request.json).filter(([name]) => OPENAI.has(name));
  const lines = known.map(([name, value]) => `    ${name}=${python(value)},`);
  if (own.length) lines.push(`    extra_body=${python(Object.fromEntries(own))},`);
  return [
    "import os", "", "from openai import OpenAI", "",
    `client = OpenAI(base_url=${JSON.stringify(addressOf("v1"))}, api_key=os.environ.get("TILLER_API_KEY", "none"))`,
    `stream = client.${isChat(request) ? "chat.completions" : "completions"}.create(`, ...lines, ")",
    ...(isMany(request)
      ? ["texts = {}", "for chunk in stream:", "    for choice in chunk.choices:",
        `        texts[choice.index] = texts.get(choice.index, "") + (${pieceOf(request)} or "")`,
        "for index in sorted(texts):", "    print(index, texts[index])"]
      : ["for chunk in stream:", "    for choice in chunk.choices:", `        print(${pieceOf(request)} or "", end="", flush=True)`, "print()"]),
  ].join("\n");
}

const nodeProgram = (request) => [
  'import OpenAI from "openai";', "",
  `const client = new OpenAI({ baseURL: ${JSON.stringify(addressOf("v1"))}, apiKey: process.env.TILLER_API_KEY ?? "none" });`,
  `const stream = await client.${isChat(request) ? "chat.completions" : "completions"}.create(${JSON.stringify(request.json, null, 2)});`,
  ...(isMany(request)
    ? ["const texts = [];", "for await (const chunk of stream)",
      `  for (const choice of chunk.choices) texts[choice.index] = (texts[choice.index] ?? "") + (${pieceOf(request)} ?? "");`,
      "texts.forEach((text, index) => console.log(index, text));"]
    : ["for await (const chunk of stream)", `  for (const choice of chunk.choices) process.stdout.write(${pieceOf(request)} ?? "");`, "console.log();"]),
].join("\n");

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const curlCommand = (request) => [
  `curl -sN ${quoted(addressOf(request.path))} \\`,
  '  -H "Authorization: Bearer ${TILLER_API_KEY:-none}" -H \'Content-Type: application/json\' \\',
  `  -d ${quoted(JSON.stringify(request.json, null, 2))}`,
].join("\n");

/** `model+vector:scale`, or why a model name cannot say it. */
function modelName({ json }) {
  const more = [...["variants", "probes"].filter((name) => json[name]),
    ...(json.steering ?? []).flatMap((entry) => Object.keys(entry).filter((name) => name !== "vector" && name !== "scale"))];
  if (more.length) return T.notInName([...new Set(more)].join(", "));
  return json.model + (json.steering ?? []).map((entry) => `+${entry.vector}:${entry.scale}`).join("");
}

export const PROGRAMS = { python: pythonProgram, node: nodeProgram, curl: curlCommand, model: modelName };
