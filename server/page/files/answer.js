// One answer as it streams: its tokens, parts, plan and state. Removing the element aborts the request.

import { events } from "./api.js";
import { button, el, failure, percent, short } from "./dom.js";
import { T } from "./strings.js";

const isStopped = (error) => error.name === "AbortError";

/** The tokens of a piece of text, if their bytes are the text; else the text as one piece without probabilities. */
class TokenReader {
  #waiting = [];

  read(text, entries) {
    this.#waiting.push(...entries);
    if (!text) return [];
    const whole = this.#waiting;
    this.#waiting = [];
    const decoder = new TextDecoder();
    const spelled = whole.map((entry) => (entry.bytes ? decoder.decode(new Uint8Array(entry.bytes), { stream: true }) : entry.token));
    const all = spelled.join("");
    const at = whole.length ? all.indexOf(text) : -1;
    if (at < 0) return [{ text }];
    const found = [];
    let place = 0;
    whole.forEach((entry, number) => {
      const [from, to] = [Math.max(place, at), Math.min(place + spelled[number].length, at + text.length)];
      place += spelled[number].length;
      if (to > from) found.push({ text: all.slice(from, to), logprob: entry.logprob, name: entry.token, top: entry.top_logprobs });
    });
    return found;
  }
}

/** The log-probabilities of a completion's chunk in the form of a chat's. */
function entriesOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) return logprobs.content;
  return (logprobs.tokens ?? []).map((token, number) => ({
    token, logprob: logprobs.token_logprobs[number],
    top_logprobs: Object.entries(logprobs.top_logprobs?.[number] ?? {}).map(([text, logprob]) => ({ token: text, logprob })),
  }));
}

/** What came of a request, filled as it arrives; `changed(tokens)` is called with the new tokens. */
export class Answer {
  reasoning = "";
  content = "";
  calls = [];
  plan = [];
  finish = "";
  error = null;
  request = null;
  usage = null;
  tokens = [];
  isRunning = false;
  #controller = new AbortController();
  #reader = new TokenReader();

  static restored(given) {
    const answer = new Answer();
    Object.assign(answer, given);
    for (const part of ["reasoning", "content"]) if (answer[part]) answer.tokens.push({ text: answer[part], part });
    answer.calls.forEach((call) => answer.tokens.push({ text: call, part: "call" }));
    return answer;
  }

  get text() {
    return this.tokens.map((token) => token.text).join("");
  }

  stop() {
    this.#controller.abort();
  }

  /** Send the request and read the answer to its end. Never throws: what fails is in `error`. */
  async run(request, changed) {
    this.request = request;
    this.isRunning = true;
    const began = performance.now();
    try {
      for await (const chunk of events(request.path, request.json, this.#controller.signal)) changed(this.#take(chunk));
    } catch (error) {
      if (isStopped(error)) this.finish ||= "stopped";
      else this.error = error;
    }
    this.seconds = (performance.now() - began) / 1000;
    this.isRunning = false;
    changed([]);
  }

  #take(chunk) {
    if (chunk.steering) this.plan = chunk.steering;
    if (chunk.usage) this.usage = chunk.usage;
    const [choice] = chunk.choices;
    if (!choice) return [];
    this.finish = choice.finish_reason ?? this.finish;
    const delta = choice.delta ?? { content: choice.text };
    const calls = (delta.tool_calls ?? []).map((call) => this.#takeCall(call)).join("");
    const entries = entriesOf(choice.logprobs);
    const [part, text] = delta.reasoning_content ? ["reasoning", delta.reasoning_content]
      : calls ? ["call", calls] : ["content", delta.content ?? ""];
    if (part !== "call") this[part] += text;
    const found = this.#reader.read(text, entries).map((token) => ({ ...token, part }));
    this.tokens.push(...found);
    return found;
  }

  #takeCall({ index, function: called }) {
    const start = this.calls[index] === undefined ? `${called.name}(` : "";
    const text = start + (called.arguments ?? "");
    this.calls[index] = (this.calls[index] ?? "") + text;
    return text;
  }
}

/** What the server says it applied: one line for each vector. */
export function planList(plan) {
  if (!plan.length) return el("p", { class: "plan dim" }, T.noSteering);
  return el("ul", { class: "plan" }, plan.map((entry) => el("li", {},
    el("strong", {}, String(entry.vector)), ` × ${short(Number(entry.scale))} · `,
    el("span", { class: "dim" },
      [`${T.layers} ${[entry.layers].flat().join(", ")}`, entry.site, entry.operation, entry.positions,
        entry.preserve_norm ? T.keepsNorm : null].filter(Boolean).join(" · "), " · "),
    el("code", { title: `${T.revision} ${entry.revision}` }, String(entry.revision).slice(0, 8)))));
}

/** `<tiller-answer>`: a column's card. `again` and `carry` are called for its buttons, `pick` for a chosen token. */
export class AnswerCard extends HTMLElement {
  #answer = null;
  #body = el("div", { class: "tokens", tabindex: "0", role: "group", dir: "auto",
    on: { click: (event) => this.#pick(event.target.closest(".token")), keydown: (event) => this.#move(event) } });
  #foot = el("footer");
  #state = el("span", { class: "state dim" });
  #stop = button(T.stop, () => this.#answer?.stop(), { class: "small stop", hidden: true });
  #again = button("↻", () => this.again(), { class: "quiet", title: T.regenerate });
  #carry = button("{ }", () => this.carry(), { class: "quiet", title: T.asCode });
  #spans = [];
  #split = null;
  #common = 0;

  static of(name, properties) {
    const card = document.createElement("tiller-answer");
    Object.assign(card, properties);
    card.#body.setAttribute("aria-label", T.answerOf(name));
    card.#again.setAttribute("aria-label", `${T.regenerate}: ${name}`);
    card.#carry.setAttribute("aria-label", `${T.asCode}: ${name}`);
    card.#stop.setAttribute("aria-label", `${T.stop}: ${name}`);
    card.append(el("header", {}, el("h3", {}, el("bdi", {}, name)), card.#state, card.#stop, card.#again, card.#carry),
      card.#body, card.#foot);
    return card;
  }

  disconnectedCallback() {
    this.#answer?.stop();
  }

  get answer() {
    return this.#answer;
  }

  /** Show an answer that is over, or the beginning of one that will be fed by `add`. */
  show(answer) {
    this.#answer = answer;
    this.#spans = [];
    this.#split = null;
    this.#common = 0;
    this.#body.replaceChildren();
    this.add(answer?.tokens ?? []);
  }

  add(tokens) {
    for (const token of tokens) this.#append(token);
    this.#refresh();
  }

  #append(token) {
    const surprise = token.logprob === undefined ? 0 : Math.min(1, -token.logprob / 5);
    const span = el("span", { class: `token ${token.part}`, vars: token.logprob === undefined ? {} : { surprise } }, token.text);
    span.token = token;
    const last = this.#spans.at(-1);
    span.from = last ? last.from + last.token.text.length : 0;
    this.#spans.push(span);
    let group = this.#body.lastElementChild;
    if (group?.kind !== token.part) {
      group = el("div", { class: `part ${token.part}`, "data-part": T.parts[token.part] });
      group.kind = token.part;
      this.#body.append(group);
    }
    if (this.#split !== null) span.classList.add("differs");
    group.append(span);
  }

  #refresh() {
    const answer = this.#answer;
    this.classList.toggle("running", Boolean(answer?.isRunning));
    this.#stop.hidden = !answer?.isRunning;
    this.#again.hidden = this.#carry.hidden = !answer || answer.isRunning;
    if (!answer) {
      this.#state.textContent = "";
      this.#foot.replaceChildren();
      return;
    }
    this.#state.textContent = answer.isRunning ? T.running : stateOf(answer);
    if (answer.error) this.#foot.replaceChildren(failure(answer.error));
    else if (answer.tokens.length || answer.finish || !answer.isRunning) {
      if (this.#foot.plan !== answer.plan) this.#foot.replaceChildren(planList(answer.plan));
      this.#foot.plan = answer.plan;
    }
  }

  /** Mark from the first token that is not in `reference`, as far as both are there. */
  compare(reference) {
    if (!reference || !this.#answer || this.#split !== null) return;
    const [own, other] = [this.#answer.text, reference.text];
    const most = Math.min(own.length, other.length);
    while (this.#common < most && own[this.#common] === other[this.#common]) this.#common++;
    const isOver = this.#common < most || (own.length > most && !reference.isRunning && reference.finish);
    if (!isOver) return;
    let first = this.#spans.findIndex((span) => span.from + span.token.text.length > this.#common);
    if (first < 0) return;
    if (this.#spans[first].token.logprob === undefined && this.#spans[first].from < this.#common) first = this.#cut(first);
    this.#split = first;
    this.#spans.slice(first).forEach((span) => span.classList.add("differs"));
    this.#spans[first].before(el("span", { class: "split", title: T.differsHere }, el("span", { class: "for-readers" }, T.differsHere)));
  }

  /** Cut a span that is no token in two where the texts part, at a space if there is one. */
  #cut(number) {
    const span = this.#spans[number];
    const { text } = span.token;
    const at = Math.max(text.lastIndexOf(" ", this.#common - span.from), 0);
    if (at === 0) return number;
    const rest = el("span", { class: span.className }, text.slice(at));
    rest.token = { ...span.token, text: text.slice(at) };
    rest.from = span.from + at;
    span.token = { ...span.token, text: text.slice(0, at) };
    span.textContent = span.token.text;
    span.after(rest);
    this.#spans.splice(number + 1, 0, rest);
    return number + 1;
  }

  #pick(span) {
    if (!span) return;
    this.querySelector(".picked")?.classList.remove("picked");
    span.classList.add("picked");
    this.pick(span.token, this.#spans.indexOf(span));
  }

  #move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !this.#spans.length) return;
    event.preventDefault();
    const now = this.#spans.indexOf(this.querySelector(".picked"));
    this.#pick(this.#spans[Math.max(0, Math.min(this.#spans.length - 1, now + step))]);
  }
}
customElements.define("tiller-answer", AnswerCard);

function stateOf(answer) {
  if (answer.error) return T.failed;
  const tokens = answer.usage ? T.tokens(answer.usage.completion_tokens) : "";
  return [T.finish[answer.finish] ?? answer.finish, tokens].filter(Boolean).join(" · ");
}

/** What is known of a token: its probability, and what else was likely there. */
export function tokenDetails(token) {
  const text = (each) => el("code", { class: "token-name" }, JSON.stringify(each).slice(1, -1));
  if (token.logprob === undefined) return [el("p", {}, text(token.text)), el("p", { class: "dim" }, T.noProbability)];
  const row = (each, isChosen) => el("li", { class: isChosen ? "chosen" : "", vars: { share: Math.exp(each.logprob) } },
    text(each.token), el("span", {}, percent(Math.exp(each.logprob))));
  const others = token.top ?? [];
  const rows = others.map((each) => row(each, each.token === token.name));
  if (!others.some((each) => each.token === token.name)) rows.push(row({ token: token.name, logprob: token.logprob }, true));
  return [
    el("p", {}, text(token.text), " ", el("span", { class: "dim" }, `${T.logprob} ${token.logprob.toFixed(3)}`)),
    el("ol", { class: "alternatives" }, rows),
  ];
}
