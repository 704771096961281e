// A rack of vectors: which are on, how strongly, and where.

import { button, choice, el, field, said, short } from "./dom.js";
import { OPERATIONS, POSITIONS, SIDES, entryOf } from "./state.js";
import { T } from "./strings.js";

/** The controls of one rack. `changed` is called after every change of it; `vectors` are the registry's. */
export function rackPanel(title, rack, vectors, changed) {
  const list = el("ul", { class: "rack" });
  const redraw = () => {
    list.replaceChildren(...rack.map((entry) => row(entry, vectors, changed, () => {
        rack.splice(rack.indexOf(entry), 1);
        redraw();
        changed();
      })));
    if (!rack.length) list.append(el("li", { class: "dim empty" }, T.emptyRack));
  };
  const unused = vectors.find((vector) => !rack.some((entry) => entry.vector === vector.name));
  const names = el("select", { "aria-label": T.addVector },
    vectors.map((vector) => el("option", { value: vector.name, selected: vector === unused }, vector.name)));
  const add = button(T.add, () => {
    rack.push(entryOf(vectors.find((vector) => vector.name === names.value)));
    redraw();
    changed();
  });
  redraw();
  return el("section", { class: "panel" }, el("h2", {}, title), list,
    vectors.length ? el("div", { class: "row" }, names, add) : el("p", { class: "dim" }, T.noVectors));
}

/** The safe range of a calibrated vector below its slider, as far as the slider goes. */
function safeBand(vector, most) {
  if (!vector?.calibration) return null;
  const [low, high] = vector.calibration.safe_scale;
  const share = (scale) => `${50 + 50 * Math.max(-1, Math.min(1, scale / most))}%`;
  const says = T.safe(short(low), short(high));
  return el("div", { class: "safe", role: "img", title: says, "aria-label": says, vars: { low: share(low), high: share(high) } });
}

/** The controls of an entry's gate: which probe, from where on, and whether it stays open. */
function gateFields(entry, vectors, changed) {
  const { gate } = entry;
  const set = (name) => (value) => {
    gate[name] = value;
    changed();
  };
  const input = (name, label, hint, properties = {}) => field(label, el("input", { value: gate[name], inputmode: "decimal", ...properties,
    on: { input: (event) => set(name)(event.target.value) } }), hint);
  const latch = el("input", { type: "checkbox", checked: gate.latch, on: { change: () => set("latch")(latch.checked) } });
  const rest = el("div", { class: "grid2", hidden: !gate.probe },
    field(T.side, choice(SIDES.map((side) => [side, T[side]]), gate.side, set("side"))), input("threshold", T.threshold),
    input("layer", T.gateLayer, null, { inputmode: "numeric", placeholder: T.ownPlain }), input("sharpness", T.sharpness, null, { placeholder: T.allOrNothing }),
    el("label", { class: "check" }, latch, T.latch));
  const names = [["", T.noGate], ...vectors.map(({ name }) => [name, name])];
  if (gate.probe && !vectors.some(({ name }) => name === gate.probe)) names.push([gate.probe, gate.probe]);
  return el("div", { class: "gate-fields", role: "group", "aria-label": T.gateOf(entry.vector) },
    field(T.gate, choice(names, gate.probe, (value) => {
      rest.hidden = !value;
      set("probe")(value);
    }), T.gateHint), rest);
}

function row(entry, vectors, changed, remove) {
  const vector = vectors.find((each) => each.name === entry.vector);
  const most = Math.max(2, Math.ceil(2 * Math.abs(vector?.default_scale ?? 1)), Math.ceil(Math.abs(entry.scale)));
  const own = (value) => (value ? T.own(said(value)) : T.ownPlain);
  const number = el("input", { type: "number", step: "any", value: entry.scale, "aria-label": T.scaleOf(entry.vector),
    on: { input: () => take(number.valueAsNumber, slider) } });
  const slider = el("input", { type: "range", min: -most, max: most, step: most / 40, value: entry.scale, tabindex: "0",
    "aria-label": T.scaleOf(entry.vector), on: { input: () => take(slider.valueAsNumber, number) } });
  const take = (value, other) => {
    if (!Number.isFinite(value)) return;
    entry.scale = Number(value.toPrecision(6));
    other.value = entry.scale;
    sign();
    changed();
  };
  const sign = () => slider.style.setProperty("--at", `${50 + 50 * Math.max(-1, Math.min(1, entry.scale / most))}%`);
  sign();
  const on = el("input", { type: "checkbox", class: "switch", role: "switch", checked: entry.on,
    "aria-label": T.isOn(entry.vector),
    on: { change: () => {
      entry.on = on.checked;
      shown.classList.toggle("off", !entry.on);
      changed();
    } } });
  const set = (name) => (value) => {
    entry[name] = value;
    changed();
  };
  const layers = el("input", { value: entry.layers, placeholder: vector ? vector.layers.join(", ") : "", spellcheck: "false",
    on: { input: (event) => set("layers")(event.target.value) } });
  const norm = el("input", { type: "checkbox", checked: entry.norm, on: { change: () => set("norm")(norm.checked) } });
  const end = (name, label) => field(label, el("input", { value: entry[name], inputmode: "decimal", placeholder: T.openEnd,
    on: { input: (event) => set(name)(event.target.value) } }));
  const cap = el("div", { class: "grid2", hidden: entry.operation !== "cap" }, end("min", T.capMin), end("max", T.capMax));
  const shown = el("li", { class: entry.on ? "entry" : "entry off" },
    el("div", { class: "entry-head" }, on, el("bdi", { class: "entry-name", title: vector?.description }, entry.vector), number,
      button("✕", remove, { class: "quiet", "aria-label": T.remove(entry.vector) })),
    el("div", { class: "slider" }, slider,
      el("div", { class: "ticks dim", "aria-hidden": "true" }, el("span", {}, short(-most)), el("span", {}, "0"), el("span", {}, short(most))),
      safeBand(vector, most)),
    el("details", { open: Boolean(entry.layers || entry.positions || entry.operation || entry.norm || entry.gate.probe) },
      el("summary", {}, T.more),
      el("div", { class: "grid2" },
        field(T.layersOf, layers),
        field(T.positions, choice([["", own(vector?.positions)], ...POSITIONS.map((each) => [each, each])], entry.positions, set("positions"))),
        field(T.operation, choice([["", own(vector?.operation)], ...OPERATIONS.map((each) => [each, each])], entry.operation, (value) => {
          cap.hidden = value !== "cap";
          set("operation")(value);
        })),
        el("label", { class: "check" }, norm, T.keepNorm)), cap, gateFields(entry, vectors, changed)));
  return shown;
}
