// The server's public API, with the keys that the user gave. Nothing here that another client could not do.

import { T } from "./strings.js";

const BASE = new URL(".", document.baseURI.split("#")[0]);
const KEYS = { use: "tiller-use-key", manage: "tiller-manage-key" };

/** Kept by the browser for this tab only. */
export const keys = {
  get: (role) => sessionStorage.getItem(KEYS[role]) ?? "",
  set: (role, key) => (key ? sessionStorage.setItem(KEYS[role], key) : sessionStorage.removeItem(KEYS[role])),
};

export const addressOf = (path) => new URL(path, BASE).href;

/** A refusal in the server's words; `status` is 0 where there is no server. */
export class Failure extends Error {
  constructor(status, { message, code = null, param = null }) {
    super(message);
    Object.assign(this, { status, code, param });
  }
}

async function refusal(response) {
  try {
    return new Failure(response.status, (await response.json()).error);
  } catch {
    return new Failure(response.status, { message: T.notOurs(response.status) });
  }
}

/** The response to a request; `json` or `body` is what it sends. Throws `Failure`, or `AbortError` when stopped. */
export async function send(method, path, { json, body, headers = {}, role = "use", signal } = {}) {
  const key = role === "manage" ? keys.get("manage") || keys.get("use") : keys.get("use") || keys.get("manage");
  const sent = { ...headers };
  if (key) sent.Authorization = `Bearer ${key}`;
  if (json !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(addressOf(path), {
      method, headers: sent, body: json === undefined ? body : JSON.stringify(json), signal, cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, { message: T.unreachable });
  }
  if (!response.ok) {
    const found = await refusal(response);
    if (found.status === 401) document.dispatchEvent(new CustomEvent("key-needed", { detail: found }));
    throw found;
  }
  return response;
}

export const get = async (path, options) => (await send("GET", path, options)).json();
export const post = async (path, json, options) => (await send("POST", path, { json, ...options })).json();

/** Every object of a list, page by page. */
export async function all(path, limit = 100) {
  const found = [];
  for (let after = ""; ; ) {
    const page = await get(`${path}?limit=${limit}${after && `&after=${encodeURIComponent(after)}`}`);
    found.push(...page.data);
    if (!page.has_more) return found;
    after = page.last_id;
  }
}

/** The events of a streamed answer. Throws `Failure` for an event that is an error. */
export async function* events(path, json, signal) {
  const response = await send("POST", path, { json, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Failure(0, { message: T.cutOff });
    const blocks = (waiting + value).split("\n\n");
    waiting = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const event = JSON.parse(data);
      if (event.error) throw new Failure(response.status, event.error);
      yield event;
    }
  }
}

/** Prometheus' text: the sum of each metric over its labels, and each series under its full name. */
export async function metrics() {
  const found = new Map();
  for (const line of (await (await send("GET", "metrics")).text()).split("\n")) {
    const match = /^([a-z_:]+)(\{.*\})? (\S+)$/.exec(line);
    if (!match) continue;
    found.set(match[1], (found.get(match[1]) ?? 0) + Number(match[3]));
    if (match[2]) found.set(match[1] + match[2], Number(match[3]));
  }
  return found;
}
