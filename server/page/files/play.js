// The playground: what is set up on the left, the answers of every column on the right.

import { AnswerCard, Answer, askTogether, tokenDetails } from "./answer.js";
import { copyButton, showCode } from "./carry.js";
import { emptyChat, everyTurn, versionsOf, write } from "./conversation.js";
import { button, choice, el, failure, field } from "./dom.js";
import { mapView } from "./map.js";
import { probePanel } from "./probes.js";
import { rackPanel } from "./rack.js";
import { columnsOf, isProbability, requestOf, scoreNames } from "./request.js";
import { packed } from "./state.js";
import { T } from "./strings.js";

/** `<tiller-play>`: made with `PlayView.of(state, model, vectors)`. */
export class PlayView extends HTMLElement {
  static of(state, model, vectors) {
    const view = document.createElement("tiller-play");
    Object.assign(view, { state, model, vectors });
    return view;
  }

  connectedCallback() {
    if (this.isBuilt) return;
    this.isBuilt = true;
    this.side = el("aside", { class: "side", "aria-label": T.rack });
    this.main = el("div", { class: "stage" });
    this.turns = el("div", { class: "turns" });
    this.status = el("p", { class: "for-readers", role: "status" });
    this.drawer = el("section", { class: "drawer", hidden: true, "aria-label": T.token, "aria-live": "polite" });
    this.append(this.side, this.main, this.drawer);
    this.buildSide();
    this.buildMain();
  }

  // ---- what is set up

  buildSide() {
    const { state } = this;
    const racks = state.mode === "ab" ? [T.rackOf("A"), T.rackOf("B")] : [T.rack];
    const panels = racks.map((title, number) => rackPanel(title, state.racks[number], this.vectors, () => this.changed()));
    const input = (name, label, hint, properties = {}) =>
      field(label, el("input", { inputmode: "decimal", value: state.sampling[name], ...properties,
        on: { input: (event) => this.set(() => (state.sampling[name] = event.target.value)) } }), hint);
    const area = (label, value, take, hint) =>
      field(label, el("textarea", { rows: 2, value, on: { input: (event) => this.set(() => take(event.target.value)) } }), hint);
    const check = (name, label) => {
      const box = el("input", { type: "checkbox", checked: state[name], on: { change: () => this.set(() => (state[name] = box.checked)) } });
      return el("label", { class: "check" }, box, label);
    };
    const isChat = state.kind === "chat";
    const line = (label, object, name, hint) => field(label,
      el("input", { value: object[name], spellcheck: "false", on: { input: (event) => this.set(() => (object[name] = event.target.value)) } }), hint);
    this.side.replaceChildren(...panels,
      probePanel(state, this.vectors, () => this.changed()),
      state.mode === "fan" ? el("section", { class: "panel" }, line(T.fanScales, state, "fan", T.fanHint)) : "",
      el("details", { class: "panel settings", open: !matchMedia("(max-width: 900px)").matches },
        el("summary", {}, el("h2", {}, T.sampling)),
        isChat ? area(T.system, state.system, (value) => (state.system = value)) : "",
        el("div", { class: "grid2" },
          input("temperature", T.temperature, T.temperatureHint), input("seed", T.seed, T.seedHint, { inputmode: "numeric" }),
          input("top_p", T.topP), input("top_k", T.topK, null, { inputmode: "numeric" }),
          input("max_tokens", T.maxTokens, null, { inputmode: "numeric" }),
          field(T.kind, choice(Object.entries(T.kinds), state.kind, (kind) => this.reset(() => {
            state.kind = kind;
            state.chat = emptyChat();
          })))),
        check("probabilities", T.probabilities),
        isChat ? el("details", {}, el("summary", {}, T.tools), area(T.tools, state.sampling.tools, (value) => (state.sampling.tools = value), T.toolsHint)) : ""));
  }

  set(change) {
    change();
    this.changed();
  }

  /** A change after which the answers that are shown are no longer those of what is set up. */
  reset(change) {
    this.stop();
    change();
    for (const turn of everyTurn(this.state.chat)) turn.answers = [];
    this.buildSide();
    this.buildMain();
    this.changed();
  }

  changed() {
    this.tint();
    this.stale?.toggleAttribute("hidden", !this.state.turns.length);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.remember(), 200);
  }

  /** Colour the tokens of every answer as it is set up, on one scale. */
  tint() {
    const by = this.state.tint;
    const { vector } = scoreNames(this.state.probes, this.vectors).find(({ name }) => name === by) ?? {};
    const threshold = vector?.threshold ?? (isProbability(vector) ? 0.5 : 0);
    this.main.classList.toggle("tinted", Boolean(by));
    for (const card of (this.cards ?? []).flat()) card.tint(by, threshold);
    this.scaleTint();
  }

  scaleTint() {
    const { tint } = this.state;
    if (!tint) return;
    const reach = tint === "logprob" ? 1 : Math.max(1e-9, ...(this.cards ?? []).flat().map((card) => card.reach));
    this.turns.style.setProperty("--reach", String(reach));
  }

  /** Put the state into the address; a link to it is then what the browser shows. */
  async remember() {
    const hash = `#play:${await packed(this.state)}`;
    if (this.isConnected) history.replaceState(null, "", hash);
    return hash;
  }

  // ---- the answers

  buildMain() {
    const { state } = this;
    const modes = el("div", { class: "segments", role: "group", "aria-label": T.views.play },
      Object.entries(T.modes).map(([mode, label]) => button(label, () => this.reset(() => (state.mode = mode)), {
        "aria-pressed": String(state.mode === mode), class: state.mode === mode ? "on" : "" })));
    const link = copyButton(T.copyLink, async () => {
      await this.remember();
      return location.href;
    }, { class: "copy-link" });
    const bar = el("div", { class: "bar" }, modes, el("span", { class: "grow" }),
      button(T.clear, () => this.reset(() => (state.chat = emptyChat())), { class: "quiet" }), link);
    if (state.mode === "map") {
      this.main.replaceChildren(bar, mapView(this));
      this.stale = null;
      return;
    }
    this.box = el("textarea", { id: "message", rows: 2, placeholder: state.kind === "chat" ? T.message : T.prompt,
      "aria-label": state.kind === "chat" ? T.message : T.prompt,
      on: { keydown: (event) => {
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
          event.preventDefault();
          this.send();
        }
      } } });
    this.sendButton = button(T.send, () => this.send(), { class: "primary" });
    this.stopButton = button(T.stopAll, () => this.stop(), { class: "stop", hidden: true });
    this.stale = button(T.runAgain, () => this.runAgain(), { hidden: true });
    this.main.replaceChildren(bar, this.turns,
      el("div", { class: "composer" }, this.box, el("div", { class: "row end" }, this.stale, this.stopButton, this.sendButton)), this.status);
    this.drawTurns();
  }

  drawTurns() {
    const { state } = this;
    this.columns = columnsOf(state);
    this.cards = [];
    this.turns.replaceChildren();
    this.stale.hidden = !state.turns.length;
    if (!state.turns.length) {
      this.turns.append(el("div", { class: "welcome" }, el("p", { class: "lead" }, T.emptyPlay),
        el("p", { class: "dim" }, T.examples),
        el("div", { class: "row wrap" }, T.exampleList.map((example) => button(example, () => {
          this.box.value = example;
          this.send();
        }, { class: "example" })))));
    }
    state.turns.forEach((turn, number) => this.drawTurn(turn, number));
    this.tint();
  }

  drawTurn(turn, number) {
    const cards = this.columns.map((column, place) => {
      const card = AnswerCard.of(column.name, {
        again: () => this.again(number, place),
        carry: () => this.showCode(number, place),
        pick: (token) => this.showToken(token),
      });
      card.classList.toggle("plain", !column.steering.length);
      const known = turn.answers[place];
      card.show(known ? (known instanceof Answer ? known : (turn.answers[place] = Answer.restored(known))) : null);
      return card;
    });
    this.cards[number] = cards;
    this.compare(number);
    const said = el("div", { class: "said" }, el("span", { class: "who" }, T.you), el("p", { dir: "auto" }, turn.user),
      el("div", { class: "said-tools" }, this.versions(number),
        button(T.edit, () => this.edit(number, said), { class: "quiet small", "aria-label": T.editTurn(number + 1) })));
    this.turns.append(el("section", { class: "turn", "aria-label": `${T.you}: ${turn.user.slice(0, 80)}` }, said,
      el("div", { class: "columns", vars: { columns: this.columns.length } }, cards)));
  }

  /** Leads from one version of message `number` to the others, each with what followed it. */
  versions(number) {
    const versions = versionsOf(this.state.chat, number);
    const { at, next: { length } } = versions;
    if (length < 2) return null;
    const step = (by, sign, label) => button(sign, () => {
      this.stop();
      versions.at = (at + by + length) % length;
      this.drawTurns();
      this.turns.children[number].querySelectorAll(".versions button")[by < 0 ? 0 : 1].focus();
      if (this.state.turns.some((turn) => this.columns.some((_, place) => !turn.answers[place]))) this.run();
      else this.changed();
    }, { class: "quiet small", "aria-label": label(number + 1) });
    return el("div", { class: "versions dim", role: "group", "aria-label": T.versionsOf(number + 1) },
      step(-1, "‹", T.earlierVersion), el("span", {}, T.versionAt(at + 1, length)), step(1, "›", T.laterVersion));
  }

  edit(number, said) {
    const box = el("textarea", { rows: 3, value: this.state.turns[number].user, "aria-label": T.editTurn(number + 1) });
    const done = () => {
      this.stop();
      write(this.state.chat, number, box.value);
      this.drawTurns();
      this.run();
    };
    said.replaceChildren(box, el("div", { class: "row end" }, button(T.cancel, () => this.drawTurns()), button(T.run, done, { class: "primary" })));
    box.focus();
  }

  send() {
    const user = this.box.value;
    if (!user.trim()) return;
    this.stop();
    const { state } = this;
    if (state.kind === "text") state.chat = emptyChat();
    write(state.chat, state.turns.length, user);
    this.box.value = "";
    this.drawTurns();
    this.run();
  }

  runAgain() {
    this.stop();
    for (const turn of this.state.turns) turn.answers = [];
    this.drawTurns();
    this.run();
  }

  again(turn, place) {
    for (const later of this.state.turns.slice(turn)) later.answers[place] = undefined;
    this.run([place]);
  }

  stop() {
    for (const turn of everyTurn(this.state.chat)) for (const answer of turn.answers) answer?.stop?.();
  }

  /** Have every column write the answers that it lacks, each after the one before it, all columns at once. */
  async run(places = this.columns.map((_, place) => place)) {
    this.failure?.remove();
    const seed = this.state.sampling.seed.trim() ? Number(this.state.sampling.seed) : Math.floor(Math.random() * 2 ** 31);
    try {
      checkNumbers(this.state.sampling);
      requestOf(this.state, this.model, this.columns[0], 0, 0, seed);
    } catch (error) {
      this.failure = failure({ message: error instanceof SyntaxError ? T.badTools(error.message) : error.message });
      this.turns.after(this.failure);
      return;
    }
    this.stopButton.hidden = false;
    this.main.classList.add("busy");
    const { turns } = this.state;
    let going = places;
    for (let number = 0; number < turns.length && going.length; number++) {
      going = await this.answerTurn(turns[number], number, going, seed);
    }
    if (this.isRunning()) return;
    this.main.classList.remove("busy");
    this.stopButton.hidden = true;
    this.status.textContent = T.allDone(going.length);
    this.changed();
  }

  isRunning() {
    return everyTurn(this.state.chat).some((turn) => turn.answers.some((answer) => answer?.isRunning));
  }

  /** Have the columns that lack an answer to message `number` write it, all with one request. Returns those that can go on. */
  async answerTurn(turn, number, places, seed) {
    const asked = places.filter((place) => !turn.answers[place]).map((place) => {
      const request = requestOf(this.state, this.model, this.columns[place], number, place, seed);
      const answer = (turn.answers[place] = new Answer());
      answer.isRunning = true;
      const card = this.cards[number][place];
      card.show(answer);
      return { place, answer, request, card };
    });
    await askTogether(asked, (answer, tokens) => {
      const { card } = asked.find((each) => each.answer === answer);
      if (card.answer !== answer) return;
      card.add(tokens);
      this.compare(number);
      if (tokens.length) this.scaleTint();
    });
    const over = new Set(asked.filter(({ answer }) => answer.error || answer.finish === "stopped").map(({ place }) => place));
    return places.filter((place) => !over.has(place));
  }

  compare(number) {
    this.columns.forEach((column, place) => {
      if (column.reference !== undefined) this.cards[number][place].compare(this.cards[number][column.reference].answer);
    });
  }

  showCode(turn, place) {
    const seed = Number(this.state.sampling.seed) || 0;
    const answers = this.columns.map((_, number) => this.state.turns[turn].answers[number]);
    const own = this.columns.map((column, number) => [column.name,
      answers[number]?.request ?? requestOf(this.state, this.model, column, turn, number, seed)]);
    const together = answers[place]?.sent?.json.variants ? [[T.allColumns, answers[place].sent]] : [];
    showCode([...own, ...together], place);
  }

  showToken(token) {
    this.drawer.hidden = false;
    this.drawer.replaceChildren(el("header", {}, el("h2", {}, T.token),
      button("✕", () => (this.drawer.hidden = true), { class: "quiet", "aria-label": T.close })), ...tokenDetails(token));
  }
}
customElements.define("tiller-play", PlayView);

function checkNumbers(sampling) {
  const names = { temperature: T.temperature, top_p: T.topP, top_k: T.topK, max_tokens: T.maxTokens, seed: T.seed };
  for (const [name, label] of Object.entries(names)) {
    if (sampling[name].trim() && !Number.isFinite(Number(sampling[name]))) throw new RangeError(T.badNumber(label));
  }
}
