// What the server does now: a strip in the header, and a view with the last two minutes. It asks while it can be seen.

import { metrics } from "./api.js";
import { el, percent } from "./dom.js";
import { sparkline } from "./plot.js";
import { T } from "./strings.js";

const SECONDS = 2;
const MOST = 60;
const SERIES = {
  running: { label: T.watchRunning, metric: "vllm:num_requests_running" },
  waiting: { label: T.watchWaiting, metric: "vllm:num_requests_waiting" },
  steered: { label: T.watchSteered, metric: "tiller:num_requests_steered" },
  rate: { label: T.watchRate },
  memory: { label: T.watchMemory, metric: "vllm:kv_cache_usage_perc" },
};
const text = (name, value) =>
  value === undefined ? "–" : name === "memory" ? percent(value) : name === "rate" ? value.toFixed(value < 10 ? 1 : 0) : String(value);

const history = Object.fromEntries(Object.keys(SERIES).map((name) => [name, []]));
let byVector = [];
let before = null;
const watchers = new Set();

async function look() {
  let found;
  try {
    found = await metrics();
  } catch {
    before = null;
    watchers.forEach((watcher) => watcher.redraw(false));
    return;
  }
  const now = { at: performance.now(), tokens: found.get("vllm:generation_tokens_total") ?? 0 };
  const rate = before ? Math.max(0, (1000 * (now.tokens - before.tokens)) / (now.at - before.at)) : 0;
  before = now;
  for (const [name, { metric }] of Object.entries(SERIES)) {
    const value = metric ? found.get(metric) : rate;
    if (value === undefined) continue;  // an engine without pages
    history[name] = [...history[name], value].slice(-MOST);
  }
  byVector = [...found].map(([name, value]) => [/^tiller:steered_tokens_total\{vector="(.*)"\}$/.exec(name)?.[1], value])
    .filter(([name]) => name).sort((one, other) => other[1] - one[1]);
  watchers.forEach((watcher) => watcher.redraw(true));
}

/** Look now and then every two seconds, while the tab is seen; for as long as the page lives. */
export function beginWatching() {
  const turn = async () => {
    if (document.visibilityState === "visible") await look();
    setTimeout(turn, 1000 * SECONDS);
  };
  turn();
}

class Watcher extends HTMLElement {
  connectedCallback() {
    watchers.add(this);
    this.redraw(before !== null);
  }

  disconnectedCallback() {
    watchers.delete(this);
  }
}

/** `<tiller-strip>`: four figures in a line. */
class Strip extends Watcher {
  redraw(isThere) {
    this.classList.toggle("gone", !isThere);
    this.replaceChildren(...["running", "waiting", "rate", "memory"].map((name) =>
      el("span", { "data-name": name }, el("b", {}, isThere ? text(name, history[name].at(-1)) : "–"), ` ${SERIES[name].label}`)));
  }
}
customElements.define("tiller-strip", Strip);

/** `<tiller-watch>`: each figure with its line, and the tokens by vector. */
class Watch extends Watcher {
  redraw(isThere) {
    const most = byVector[0]?.[1] ?? 0;
    this.classList.toggle("gone", !isThere);
    this.replaceChildren(
      el("div", { class: "figures" }, Object.entries(SERIES).map(([name, { label }]) =>
        el("section", { class: "panel figure", "data-name": name },
          el("h2", {}, label), el("p", { class: "big" }, isThere ? text(name, history[name].at(-1)) : "–"),
          sparkline(history[name], MOST, `${label}, ${T.lastMinutes}`)))),
      el("section", { class: "panel" }, el("h2", {}, T.byVector),
        byVector.length
          ? el("ul", { class: "bars" }, byVector.map(([name, value]) =>
            el("li", { vars: { share: value / most } }, el("bdi", {}, name), el("span", {}, value.toLocaleString()))))
          : el("p", { class: "dim" }, T.noTraffic)));
  }
}
customElements.define("tiller-watch", Watch);
