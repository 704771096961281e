// A map of small answers to one prompt: a row for each layer, a column for each scale, all asked with one request.

import { Answer, askTogether } from "./answer.js";
import { emptyChat, write } from "./conversation.js";
import { button, el, failure, field, percent, short } from "./dom.js";
import { requestOf, steeringOf } from "./request.js";
import { layersIn, numbersIn } from "./state.js";
import { T } from "./strings.js";

const MOST_CELLS = 128;
const NUM_TOKENS = "24";

/** The panel of the map in `view`, a `PlayView`. */
export function mapView(view) {
  const { state } = view;
  const vector = () => view.vectors.find((each) => each.name === state.racks[0].find((entry) => entry.on)?.vector);
  if (!state.map.layers && vector()) state.map.layers = layersAround(vector().layers);
  const input = (label, name) => field(label, el("input", { value: state.map[name], spellcheck: "false",
    on: { input: (event) => view.set(() => (state.map[name] = event.target.value)) } }));
  const prompt = el("textarea", { rows: 2, value: state.turns.at(-1)?.user ?? T.exampleList[0], "aria-label": T.message });
  const table = el("div", { class: "map-scroll", tabindex: "0", role: "region", "aria-label": T.modes.map });
  const run = button(T.run, start, { class: "primary" });
  const stop = button(T.stopAll, () => answers.forEach((answer) => answer.stop()), { class: "stop", hidden: true });
  let answers = [];

  async function start() {
    answers.forEach((answer) => answer.stop());
    const [layers, scales] = [layersIn(state.map.layers), numbersIn(state.map.scales)];
    const first = steeringOf(state.racks[0])[0];
    if (!first || !layers.length || !scales.length) return table.replaceChildren(failure({ message: T.mapEmpty }));
    if (layers.length * scales.length > MOST_CELLS) return table.replaceChildren(failure({ message: T.mapMost(MOST_CELLS) }));
    const cells = layers.flatMap((layer) => scales.map((scale) => cellOf(layer, scale, first)));
    const head = el("tr", {}, el("th", { scope: "col" }, `${T.layer} ╲ ${T.scale}`), scales.map((scale) => el("th", { scope: "col" }, short(scale))));
    table.replaceChildren(el("table", { class: "map" }, el("thead", {}, head), el("tbody", {}, layers.map((layer, row) =>
      el("tr", {}, el("th", { scope: "row" }, String(layer)), cells.slice(row * scales.length, (row + 1) * scales.length).map((cell) => cell.shown))))));
    answers = cells.map((cell) => cell.answer);
    const own = answers;
    stop.hidden = false;
    await askTogether(cells, (answer) => cells.find((cell) => cell.answer === answer).draw());
    if (own === answers) stop.hidden = true;
    view.status.textContent = T.allDone(answers.filter((answer) => !answer.error).length);
  }

  function cellOf(layer, scale, first) {
    const answer = new Answer();
    const text = button("…", () => use(layer, scale), { class: "cell", title: T.mapUse(layer, scale), dir: "auto" });
    const shown = el("td", {}, text);
    const asked = { ...state, turns: [{ user: prompt.value, answers: [] }], probabilities: true, probes: [],
      sampling: { ...state.sampling, max_tokens: NUM_TOKENS } };
    const column = { steering: [{ ...first, layers: [layer], scale }, ...steeringOf(state.racks[0]).slice(1)] };
    const request = requestOf(asked, view.model, column, 0, 0, Number(state.sampling.seed) || 0);
    const draw = () => {
      text.textContent = answer.error ? answer.error.message : answer.text || "…";
      text.classList.toggle("refused", Boolean(answer.error));
      const known = answer.tokens.filter((token) => token.logprob !== undefined);
      const mean = known.reduce((sum, token) => sum + token.logprob, 0) / Math.max(1, known.length);
      text.style.setProperty("--surprise", String(Math.min(1, -mean / 3)));
      text.title = `${T.mapUse(layer, scale)} · ${percent(Math.exp(mean), 0)}`;
    };
    return { answer, shown, request, draw };
  }

  function use(layer, scale) {
    const entry = state.racks[0].find((each) => each.on);
    view.reset(() => {
      Object.assign(entry, { layers: String(layer), scale });
      state.mode = "compare";
      state.chat = emptyChat();
      write(state.chat, 0, prompt.value);
    });
    view.run();
  }

  const stopWhenGone = new MutationObserver(() => {
    if (table.isConnected) return;
    answers.forEach((answer) => answer.stop());
    stopWhenGone.disconnect();
  });
  stopWhenGone.observe(document.body, { childList: true, subtree: true });
  return el("section", { class: "panel" }, el("p", { class: "dim" }, T.mapHint), prompt,
    el("div", { class: "row wrap bottom" }, input(T.mapLayers, "layers"), input(T.mapScales, "scales"), stop, run), table,
    el("p", { class: "hint" }, T.mapLegend), view.status);
}

/** The vector's layers, or where it has but one those around it. */
function layersAround(layers) {
  if (layers.length > 1) return layers.join(",");
  return `${Math.max(0, layers[0] - 2)}-${layers[0] + 1}`;
}
