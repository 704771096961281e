// Answers as they stream: their tokens, parts, plans and states. Removing an element ends its answer on the server.

import { events, post } from "./api.js";
import { button, el, failure, percent, said, short } from "./dom.js";
import { togetherOf } from "./request.js";
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
      if (to > from) found.push({ text: all.slice(from, to), logprob: entry.logprob, name: entry.token, top: entry.top_logprobs, scores: entry.scores });
    });
    return found;
  }
}

/** The log-probabilities of a completion's chunk in the form of a chat's. */
function logprobsOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) return logprobs.content;
  return (logprobs.tokens ?? []).map((token, number) => ({
    token, logprob: logprobs.token_logprobs[number],
    top_logprobs: Object.entries(logprobs.top_logprobs?.[number] ?? {}).map(([text, logprob]) => ({ token: text, logprob })),
  }));
}

/** What is known of each token of a chunk: its log-probabilities, and its scores by the probe's name. */
function entriesOf({ logprobs, probes }) {
  const told = Object.entries(probes ?? {});
  return logprobsOf(logprobs).map((entry, number) => ({
    ...entry, scores: new Map(told.map(([name, { layer, scores }]) => [name, { layer, score: scores[number] }])),
  }));
}

/** One answer, filled as it arrives. */
export class Answer {
  reasoning = "";
  content = "";
  calls = [];
  plan = [];
  finish = "";
  error = null;
  request = null;
  sent = null;
  probes = [];
  gates = [];
  numTokens = 0;
  tokens = [];
  isRunning = false;
  #end = null;
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
    if (!this.isRunning) return;
    this.finish ||= "stopped";
    this.end();
  }

  /** From here on it is what `request` asks for, which is sent as `sent`; `end` is called when it is over. */
  begin(request, sent, end) {
    Object.assign(this, { request, sent, isRunning: true });
    this.#end = end;
  }

  end(error = null) {
    this.error = error;
    this.isRunning = false;
    this.#end?.();
  }

  /** Take what a chunk says of this answer, and return its tokens. */
  take(choice) {
    if (choice.steering) this.plan = choice.steering;
    if (choice.gates) this.gates = choice.gates;
    this.finish = choice.finish_reason ?? this.finish;
    for (const [name, told] of Object.entries(choice.probes ?? {})) {
      if (told.above !== undefined) this.probes.push({ name, layer: told.layer, threshold: told.threshold, mean: told.mean, max: told.max, above: told.above });
    }
    const delta = choice.delta ?? { content: choice.text };
    const calls = (delta.tool_calls ?? []).map((call) => this.#takeCall(call)).join("");
    const entries = entriesOf(choice);
    this.numTokens += entries.length;
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

/** Ask for several answers, `[{ answer, request }]`, with one request. `changed(answer, tokens)` tells what came.
 *
 * An answer that is stopped ends on the server, and the others go on. Never throws: what fails is in `error`. */
export async function askTogether(asked, changed) {
  for (const { answer } of asked) answer.isRunning = true;
  for (let left = asked; left.length; ) {
    try {
      await stream(left, changed);
      return;
    } catch (error) {
      const refused = left.length > 1 ? /^variants\.(\d+)\./.exec(error.param ?? "") : null;
      if (error.status === 400 && left.length > 1 && !refused) {  // for a reason of some of them, which the server does not name
        await Promise.all(left.map((each) => askTogether([each], changed)));
        return;
      }
      const over = refused ? [left[Number(refused[1])]] : left;
      for (const { answer } of over) if (answer.isRunning) answer.end(error);
      left = left.filter(({ answer }) => answer.isRunning);
    }
  }
}

async function stream(asked, changed) {
  const controller = new AbortController();
  const sent = togetherOf(asked.map(({ request }) => request));
  let [id, isOver] = [null, false];
  const cancel = (choice) => post(`v1/streams/${encodeURIComponent(id)}/cancel`, { choices: [choice] }).catch(() => null);
  asked.forEach(({ answer, request }, number) => answer.begin(request, sent, () => {
    changed(answer, []);
    if (isOver || answer.finish !== "stopped") return;
    queueMicrotask(() => {  // when all that are stopped at once are
      if (!asked.some((each) => each.answer.isRunning)) controller.abort();
      else if (id) cancel(number);
    });
  }));
  try {
    for await (const { id: itsId, choices, steering } of events(sent.path, sent.json, controller.signal)) {
      if (!id) {
        id = itsId;
        asked.forEach(({ answer }, number) => answer.isRunning || cancel(number));
      }
      for (const choice of choices) {
        const { answer } = asked[choice.index];
        if (steering) choice.steering = steering;
        if (!answer.isRunning) continue;
        changed(answer, answer.take(choice));
        if (choice.finish_reason) answer.end();
      }
    }
  } catch (error) {
    if (!isStopped(error)) throw error;
  } finally {
    isOver = true;
  }
  for (const { answer } of asked) if (answer.isRunning) answer.end();
}

/** A gate in words, with the tokens that it let through where they are known. */
function gateText(when, count) {
  const side = when.above === undefined ? [T.below, when.below] : [T.above, when.above];
  return [T.gateText(when.probe, when.layer, side[0], short(Number(side[1]))), when.sharpness ? T.sharp(short(Number(when.sharpness))) : null,
    when.latch === "rest" ? T.latched : null, count ? T.letThrough(count.open, count.of) : null].filter(Boolean).join(" · ");
}

/** What the server says it applied: one line for each vector, and what its gate let through. */
export function planList(plan, gates = []) {
  if (!plan.length) return el("p", { class: "plan dim" }, T.noSteering);
  return el("ul", { class: "plan" }, plan.map((entry, number) => el("li", {},
    el("strong", {}, String(entry.vector)), ` × ${short(Number(entry.scale))} · `,
    el("span", { class: "dim" },
      [`${T.layers} ${[entry.layers].flat().join(", ")}`, entry.site, entry.operation, said(entry.positions),
        entry.preserve_norm ? T.keepsNorm : null].filter(Boolean).join(" · "), " · "),
    el("code", { title: `${T.revision} ${entry.revision}` }, String(entry.revision).slice(0, 8)),
    entry.warning ? el("p", { class: "warning" }, String(entry.warning)) : null,
    entry.when ? el("p", { class: "gate" }, gateText(entry.when, gates.find((each) => each.entry === number))) : null)));
}

/** What each probe read over the whole answer. */
function probeList(probes) {
  return el("ul", { class: "plan" }, probes.map((probe) => el("li", {}, el("strong", {}, probe.name), " ",
    el("span", { class: "dim" }, T.probeSummary(probe.layer, ...[probe.mean, probe.max].map((each) => (typeof each === "number" ? short(each) : "–")), probe.above, short(probe.threshold))))));
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
  #tint = { by: "" };

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

  /** Colour the tokens by `by`: nothing, "logprob", or the name of a probe, whose scores count from `threshold`. */
  tint(by, threshold = 0) {
    this.#tint = { by, threshold };
    this.#spans.forEach((span) => this.#paint(span));
  }

  /** The largest distance of a score from the threshold, among the tokens shown. */
  get reach() {
    return Math.max(0, ...this.#spans.map((span) => Math.abs(span.strength ?? 0)));
  }

  #paint(span) {
    const { by, threshold } = this.#tint;
    const { logprob, scores } = span.token;
    const score = scores?.get(by)?.score;
    span.strength = by === "logprob" && logprob !== undefined ? Math.min(1, -logprob / 5) : score === undefined ? null : score - threshold;
    span.style.setProperty("--strength", String(Math.abs(span.strength ?? 0)));
    span.classList.toggle("high", span.strength > 0);
    span.classList.toggle("low", span.strength < 0);
  }

  #append(token) {
    const span = el("span", { class: `token ${token.part}` }, token.text);
    span.token = token;
    this.#paint(span);
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
      const known = [answer.plan, answer.gates, answer.isRunning];
      if (known.some((each, number) => this.#foot.known?.[number] !== each)) {
        this.#foot.replaceChildren(planList(answer.plan, answer.gates), answer.probes.length ? probeList(answer.probes) : "");
      }
      this.#foot.known = known;
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
    this.#paint(rest);
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
  const tokens = answer.numTokens ? T.tokens(answer.numTokens) : "";
  return [T.finish[answer.finish] ?? answer.finish, tokens].filter(Boolean).join(" · ");
}

/** The scores of a token: each probe with a bar as long as the score is, beside the others. */
function scoreList(scores) {
  const known = [...scores].filter(([, { score }]) => score !== undefined);
  if (!known.length) return "";
  const most = Math.max(1e-9, ...known.map(([, { score }]) => Math.abs(score)));
  return el("ol", { class: "alternatives scores", "aria-label": T.scores }, known.map(([name, { layer, score }]) =>
    el("li", { class: score < 0 ? "low" : "", vars: { share: Math.abs(score) / most } },
      el("span", {}, el("bdi", {}, name), el("small", { class: "dim" }, ` ${T.atLayer(layer)}`)), el("span", {}, short(score)))));
}

/** What is known of a token: its probability, what else was likely there, and what probes read. */
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
    el("ol", { class: "alternatives", "aria-label": T.alternatives }, rows), scoreList(token.scores ?? new Map()),
  ];
}
