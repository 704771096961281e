// The registry: upload, look, compare, change, roll back, download, delete.

import { all, get, post, send } from "./api.js";
import { button, choice, day, dialog, dropZone, droppable, el, failure, field, save, short } from "./dom.js";
import { normPlot } from "./plot.js";
import { cosine, directionsIn, norm } from "./safetensors.js";
import { OPERATIONS, POSITIONS } from "./state.js";
import { T } from "./strings.js";

const PLACE = "v1/steering/vectors";
const pathOf = (name) => `${PLACE}/${encodeURIComponent(name)}`;
const PARTS = ["reasoning", "content", "structured", "tool_calls"];
const brief = (revision) => revision.slice(0, 8);

/** `<tiller-keep>`: made with `KeepView.of(name, model, tryIt)`; `tryIt` gets a vector to play with. */
export class KeepView extends HTMLElement {
  static of(name, model, tryIt) {
    const view = document.createElement("tiller-keep");
    Object.assign(view, { chosen: name, model, tryIt });
    return view;
  }

  connectedCallback() {
    this.list = el("nav", { class: "names", "aria-label": T.vectors });
    this.detail = el("div", { class: "detail" });
    this.append(el("aside", { class: "side" }, dropZone(T.upload, T.uploadHint, (file) => this.upload(file)),
      el("section", { class: "panel" }, el("h2", {}, T.vectors), this.list)), this.detail);
    droppable(this, (file) => this.upload(file));
    this.refresh();
  }

  async refresh() {
    try {
      this.vectors = await all(PLACE);
    } catch (error) {
      this.list.replaceChildren(failure(error));
      return;
    }
    document.dispatchEvent(new CustomEvent("vectors-changed", { detail: this.vectors }));
    this.list.replaceChildren(...this.vectors.map((vector) => el("a", {
      href: `#keep:${encodeURIComponent(vector.name)}`, "aria-current": vector.name === this.chosen ? "true" : null },
    el("bdi", {}, vector.name), el("small", { class: "dim" },
      vector.layers ? `${T.layers} ${vector.layers.join(", ")} · × ${short(vector.default_scale)}` : vector.error))));
    if (!this.vectors.length) this.list.append(el("p", { class: "dim" }, T.noVectors));
    await this.showDetail();
  }

  choose(name) {
    this.chosen = name;
    this.refresh();
  }

  async showDetail(note) {
    if (!this.chosen) {
      this.detail.replaceChildren(el("p", { class: "welcome dim" }, T.pick));
      return;
    }
    let vector;
    try {
      vector = await get(pathOf(this.chosen));
    } catch (error) {
      const damaged = this.vectors.find((each) => each.name === this.chosen && each.error);
      this.detail.replaceChildren(damaged ? el("div", { class: "title" }, el("h1", {}, el("bdi", {}, damaged.name)), el("span", { class: "grow" }),
        button(T.delete, () => this.remove(damaged), { class: "danger" })) : "", failure(error));
      return;
    }
    const fact = (name, value) => el("div", {}, el("dt", {}, T.facts[name]), el("dd", {}, value));
    this.detail.replaceChildren(
      el("div", { class: "title" }, el("h1", {}, el("bdi", {}, vector.name)), el("code", { class: "dim", title: vector.revision }, brief(vector.revision)),
        el("span", { class: "grow" }), button(T.tryIt, () => this.tryIt(vector), { class: "primary" }),
        button(T.calibrate, () => this.calibrate(vector)),
        button(T.download, () => this.download(vector.name)), button(T.delete, () => this.remove(vector), { class: "danger" })),
      note ? el("p", { class: "note", role: "status" }, note) : "",
      el("p", { class: "description", dir: "auto" }, vector.description),
      el("dl", { class: "facts" }, fact("site", vector.site), fact("layers", vector.layers.join(", ")), fact("model", vector.model ?? "–"),
        vector.calibration ? fact("safe", vector.calibration.safe_scale.map(short).join(" … ")) : "", fact("bytes", vector.bytes.toLocaleString()), fact("created_at", day(vector.created_at))),
      el("section", { class: "panel" }, el("h2", {}, T.norms), normPlot(vector.norms)),
      this.defaults(vector), this.history(vector),
      vector.training ? el("details", { class: "panel" }, el("summary", {}, T.trainedWith),
        el("pre", { class: "code", tabindex: "0", "aria-label": T.trainedWith }, JSON.stringify(vector.training, null, 2))) : "");
  }

  defaults(vector) {
    const given = {};
    const set = (name) => (value) => (given[name] = value);
    const input = (name, label, properties) => field(label, el("input", { value: vector[name], ...properties,
      on: { input: (event) => set(name)(properties.type === "number" ? event.target.valueAsNumber : event.target.value) } }));
    const pairs = (names) => names.map((name) => [name, name]);
    const boxes = PARTS.map((part) => [part, el("input", { type: "checkbox", checked: vector.parts.includes(part),
      on: { change: () => (given.parts = boxes.filter(([, box]) => box.checked).map(([name]) => name)) } })]);
    const said = el("div");
    const own = typeof vector.positions === "string" ? [] : [JSON.stringify(vector.positions)]; // a window
    const change = async () => {
      try {
        const changed = await (await send("PATCH", pathOf(vector.name), {
          json: given, role: "manage", headers: { "If-Match": `"${vector.revision}"` } })).json();
        await this.refresh();
        await this.showDetail(T.saved(brief(changed.revision)));
      } catch (error) {
        said.replaceChildren(failure(error));
      }
    };
    return el("section", { class: "panel" }, el("h2", {}, T.defaults),
      el("div", { class: "grid3" },
        input("default_scale", T.defaultScale, { type: "number", step: "any" }),
        field(T.operation, choice(pairs(OPERATIONS), vector.operation, set("operation"))),
        field(T.positions, choice(pairs([...own, ...POSITIONS]), own[0] ?? vector.positions,
          (value) => set("positions")(own.includes(value) ? vector.positions : value))),
        field(T.defaultLayers, choice(Object.entries(T.defaultLayersChoices), vector.default_layers, set("default_layers"))),
        el("fieldset", {}, el("legend", {}, T.partsOf), boxes.map(([name, box]) => el("label", { class: "check" }, box, T.partNames[name])))),
      input("description", T.description, { dir: "auto" }), said,
      el("div", { class: "row end" }, button(T.saveDefaults, change)));
  }

  history(vector) {
    const compared = el("div");
    const said = el("div");
    const rollBack = async (revision) => {
      try {
        await post(`${pathOf(vector.name)}/rollback`, { revision }, { role: "manage", headers: { "If-Match": `"${vector.revision}"` } });
        await this.refresh();
        await this.showDetail(T.saved(brief(revision)));
      } catch (error) {
        said.replaceChildren(failure(error));
      }
    };
    const row = ({ revision, created_at }) => {
      const isCurrent = revision === vector.revision;
      return el("li", {}, el("code", { title: revision }, brief(revision)), el("span", { class: "dim" }, day(created_at)),
        el("span", { class: "grow" }), isCurrent ? el("span", { class: "badge" }, T.current) : [
          button(T.compareWith, () => this.compare(vector, revision, vector.revision, compared), { class: "small", "aria-label": T.compareOf(brief(revision)) }),
          button(T.rollBack, () => rollBack(revision), { class: "small", "aria-label": T.rollBackTo(brief(revision)) })],
        button("↓", () => this.download(vector.name, revision), { class: "quiet small", "aria-label": T.downloadOf(brief(revision)) }));
    };
    return el("section", { class: "panel" }, el("h2", {}, T.history), el("ul", { class: "history" }, vector.history.map(row)), said, compared);
  }

  /** The directions of two revisions side by side, as bars and figures; the browser reads both files. */
  async compare(vector, revision, base, place) {
    try {
      const files = await Promise.all([revision, base].map(async (each) =>
        directionsIn(await (await send("GET", `${pathOf(vector.name)}/content?revision=${each}`)).arrayBuffer())));
      const [old, current] = files;
      const layers = [...new Set([...old.keys(), ...current.keys()])].sort((one, other) => one - other);
      const cell = (value) => el("td", {}, Number.isFinite(value) ? short(value) : T.noDirection);
      const norms = (directions) => Object.fromEntries([...directions].map(([layer, numbers]) => [layer, norm(numbers)]));
      const others = vector.history.map((each) => each.revision).filter((each) => each !== revision);
      place.replaceChildren(field(T.compareBase, choice(others.map((each) => [each, each === vector.revision ? T.current : brief(each)]), base,
        (other) => this.compare(vector, revision, other, place))),
      normPlot(norms(current), norms(old)), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": T.compareWith }, el("table", { class: "figures-table" }, el("caption", {}, T.compared(brief(revision), brief(base))),
        el("thead", {}, el("tr", {}, [T.layer, T.cosine, T.normOf(brief(revision)), T.normOf(brief(base))].map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, layers.map((layer) => {
          const [one, other] = [old.get(layer), current.get(layer)];
          return el("tr", {}, el("th", { scope: "row" }, String(layer)), cell(one && other ? cosine(one, other) : undefined),
            cell(one && norm(one)), cell(other && norm(other)));
        })))));
    } catch (error) {
      place.replaceChildren(failure(error));
    }
  }

  /** Start a job that measures how strong the vector may be; the training view follows it. */
  async calibrate(vector) {
    try {
      const job = await post("v1/fine_tuning/jobs", { model: this.model, metadata: { vector: vector.name },
        method: { type: "steering", steering: { task: "calibrate", vector: vector.name } } }, { role: "manage" });
      location.hash = `#train:${job.id}`;
    } catch (error) {
      this.detail.prepend(failure(error));
    }
  }

  async download(name, revision) {
    try {
      const response = await send("GET", `${pathOf(name)}/content${revision ? `?revision=${revision}` : ""}`);
      save(await response.blob(), `${name}${revision ? `-${brief(revision)}` : ""}.safetensors`);
    } catch (error) {
      this.detail.prepend(failure(error));
    }
  }

  upload(file) {
    const stem = file.name.replace(/\.[^.]*$/, "").replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 64);
    const name = el("input", { value: stem, required: true, spellcheck: "false", autocomplete: "off" });
    const options = el("textarea", { rows: 2, spellcheck: "false" });
    const said = el("div");
    const put = async () => {
      const form = new FormData();
      form.append("file", file);
      if (options.value.trim()) form.append("metadata", options.value);
      go.disabled = true;
      try {
        await send("PUT", pathOf(name.value.trim()), { body: form, role: "manage" });
        shown.close();
        location.hash = `#keep:${encodeURIComponent(name.value.trim())}`;
        this.choose(name.value.trim());
      } catch (error) {
        said.replaceChildren(failure(error));
      }
      go.disabled = false;
    };
    const go = button(T.uploadNow, put, { class: "primary" });
    const shown = dialog(T.uploadTitle(file.name), field(T.name, name, T.nameHint),
      el("details", {}, el("summary", {}, T.uploadOptions), field(T.uploadOptions, options, T.uploadOptionsHint)), said,
      el("div", { class: "row end" }, button(T.cancel, () => shown.close()), go));
  }

  remove(vector) {
    const said = el("div");
    const typed = el("input", { autocomplete: "off", spellcheck: "false", on: { input: () => (go.disabled = typed.value !== vector.name) } });
    const go = button(T.delete, async () => {
      try {
        await send("DELETE", pathOf(vector.name), { role: "manage", headers: vector.revision ? { "If-Match": `"${vector.revision}"` } : {} });
        shown.close();
        this.chosen = null;
        location.hash = "#keep";
        this.refresh();
      } catch (error) {
        said.replaceChildren(failure(error));
      }
    }, { class: "danger", disabled: true });
    const shown = dialog(T.deleteTitle(vector.name), field(T.name, typed, T.deleteHint(vector.name)), said,
      el("div", { class: "row end" }, button(T.cancel, () => shown.close()), go));
  }
}
customElements.define("tiller-keep", KeepView);
