// Probes: which vectors are read while the model writes, and by what the tokens are coloured.

import { button, choice, el, field } from "./dom.js";
import { scoreNames } from "./request.js";
import { T } from "./strings.js";

/** The panel of the probes of `state`. `changed` is called after every change; `vectors` are the registry's. */
export function probePanel(state, vectors, changed) {
  const list = el("ul", { class: "rack" });
  const tint = el("div");
  const names = el("select", { "aria-label": T.probeToAdd });
  const adding = el("div", { class: "row" }, names, button(T.addProbe, () => {
    state.probes.push({ vector: names.value, layers: "" });
    redraw();
    changed();
  }));
  const redrawTint = () => {
    const scores = scoreNames(state.probes, vectors).map(({ name }) => [name, T.tintScore(name)]);
    const ways = [["", T.tintNone], ["logprob", T.tintLogprob], ...scores];
    if (!ways.some(([way]) => way === state.tint)) state.tint = "";
    tint.replaceChildren(field(T.tint, choice(ways, state.tint, (way) => {
      state.tint = way;
      changed();
    }), T.tintHint));
  };
  const row = (probe) => {
    const vector = vectors.find((each) => each.name === probe.vector);
    const layers = el("input", { value: probe.layers, placeholder: vector ? vector.layers.join(", ") : "", spellcheck: "false",
      "aria-label": T.layersOfProbe(probe.vector), on: { input: (event) => {
        probe.layers = event.target.value;
        redrawTint();
        changed();
      } } });
    return el("li", { class: "probe" }, el("bdi", { class: "entry-name", title: vector?.description }, probe.vector), layers,
      button("✕", () => {
        state.probes.splice(state.probes.indexOf(probe), 1);
        redraw();
        changed();
      }, { class: "quiet", "aria-label": T.removeProbe(probe.vector) }));
  };
  const redraw = () => {
    list.replaceChildren(...state.probes.map(row));
    const unused = vectors.filter(({ name }) => !state.probes.some((probe) => probe.vector === name));
    names.replaceChildren(...unused.map(({ name }) => el("option", { value: name }, name)));
    adding.hidden = !unused.length;
    redrawTint();
  };
  redraw();
  return el("details", { class: "panel settings", open: state.probes.length > 0 || Boolean(state.tint) },
    el("summary", {}, el("h2", {}, T.probes)), el("p", { class: "hint" }, T.probesHint), list, adding, tint);
}
