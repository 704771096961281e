// Training: a labelled file becomes a job; its progress, its report, and the vector to try.

import { get, post, send } from "./api.js";
import { button, choice, day, dropZone, el, failure, field, save } from "./dom.js";
import { reportView } from "./report.js";
import { layersIn, numbersIn } from "./state.js";
import { T } from "./strings.js";

const JOBS = "v1/fine_tuning/jobs";
const FINAL = ["succeeded", "failed", "cancelled"];
const SECONDS = 1;
const HEAD_BYTES = 2000;
const HEAD_LINES = 4;

/** `<tiller-train>`: made with `TrainView.of(job, model, tryIt)`; `tryIt` gets the name of a published vector. */
export class TrainView extends HTMLElement {
  static of(job, model, tryIt) {
    const view = document.createElement("tiller-train");
    Object.assign(view, { job, model, tryIt });
    return view;
  }

  connectedCallback() {
    this.side = el("aside", { class: "side" });
    this.jobs = el("nav", { class: "names", "aria-label": T.jobs });
    this.detail = el("div", { class: "detail" });
    this.append(this.side, this.detail);
    this.drawSide();
    this.listJobs();
    this.show(this.job);
  }

  disconnectedCallback() {
    clearTimeout(this.timer);
    this.following = null;
  }

  drawSide(file) {
    this.side.replaceChildren(file ? this.form(file) : dropZone(T.trainDrop, T.trainHint, (chosen) => this.drawSide(chosen)),
      el("section", { class: "panel" }, el("h2", {}, T.jobs), this.jobs));
  }

  form(file) {
    const options = { variant: file.name.match(/pair|pref|dpo/i) ? "mean_difference" : "pas_full" };
    const set = (name, read = (text) => text) => (text) => {
      const value = text === "" ? undefined : read(text);
      if (value === undefined) delete options[name];
      else options[name] = value;
    };
    const input = (label, name, read, placeholder = T.auto) => field(label, el("input", { placeholder, spellcheck: "false",
      on: { input: (event) => set(name, read)(event.target.value.trim()) } }));
    const name = el("input", { value: file.name.replace(/\.[^.]*$/, "").replace(/[^A-Za-z0-9._-]+/g, "-").slice(0, 64) || "vector", spellcheck: "false" });
    const retention = el("input", { type: "file" });
    const anyway = el("input", { type: "checkbox", on: { change: () => set("allow_no_gain", () => true)(anyway.checked ? "yes" : "") } });
    const said = el("div");
    const head = el("pre", { class: "code head", tabindex: "0", "aria-label": T.rows });
    file.slice(0, HEAD_BYTES).text().then((text) => (head.textContent = text.split("\n").slice(0, HEAD_LINES).join("\n")));
    const start = async () => {
      go.disabled = true;
      said.replaceChildren();
      try {
        const given = { ...options };
        const training_file = await upload(file);
        if (retention.files.length) given.retention_file = await upload(retention.files[0]);
        const job = await post(JOBS, { model: this.model, training_file, suffix: name.value.trim(), metadata: { vector: name.value.trim() },
          method: { type: "steering", steering: given } }, { role: "manage" });
        this.drawSide();
        location.hash = `#train:${job.id}`;
        this.show(job.id);
      } catch (error) {
        said.replaceChildren(failure(error));
      }
      go.disabled = false;
    };
    const go = button(T.train, start, { class: "primary" });
    const variant = field(T.variant, choice(Object.entries(T.variants), options.variant, set("variant")));
    const wanted = field(T.positiveClass, el("input", { placeholder: T.auto, spellcheck: "false",
      on: { input: (event) => set("positive_class")(event.target.value.trim()) } }), T.positiveClassHint);
    wanted.hidden = true;
    const task = choice(Object.entries(T.tasks), "train", (kind) => {
      const isProbe = kind === "probe";
      variant.hidden = scales.hidden = isProbe;
      wanted.hidden = !isProbe;
      for (const gone of isProbe ? ["variant", "scales"] : ["positive_class"]) delete options[gone];
      if (isProbe) options.task = "probe";
      else {
        delete options.task;
        options.variant = variant.querySelector("select").value;
      }
    });
    const scales = input(T.trainScales, "scales", numbersIn);
    return el("section", { class: "panel" }, el("h2", { dir: "auto" }, file.name),
      el("p", { class: "hint" }, T.rows), head, field(T.name, name, T.nameHint),
      field(T.task, task), variant, wanted,
      el("div", { class: "grid2" }, field(T.promptKind, choice(Object.entries(T.promptKinds), "raw", set("prompt"))),
        input(T.maxItems, "max_items", Number, "4000"), input(T.trainLayers, "layers", layersIn), scales),
      el("details", {}, el("summary", {}, T.advanced), field(T.retention, retention),
        el("label", { class: "check" }, anyway, T.publishAnyway)),
      said, el("div", { class: "row end" }, button(T.otherFile, () => this.drawSide(), { class: "quiet" }), go));
  }

  async listJobs() {
    try {
      const { data } = await get(`${JOBS}?limit=20`);
      this.jobs.replaceChildren(...data.map((job) => el("a", { href: `#train:${job.id}`, "aria-current": job.id === this.job ? "true" : null },
        el("bdi", {}, nameOf(job)), el("small", { class: "dim" }, `${T.statuses[job.status]} · ${day(job.created_at)}`))));
      if (!data.length) this.jobs.append(el("p", { class: "dim" }, T.noJobs));
    } catch (error) {
      this.jobs.replaceChildren(failure(error));
    }
  }

  choose(job) {
    this.listJobs();
    this.show(job);
  }

  show(job) {
    clearTimeout(this.timer);
    this.job = job;
    this.seen = [];
    const following = (this.following = {});
    if (!job) {
      this.detail.replaceChildren(el("p", { class: "welcome dim" }, T.trainHint));
      return;
    }
    this.head = el("div", { class: "title" });
    this.bar = el("progress", { max: 1, "aria-label": T.views.train });
    this.says = el("p", { role: "status", class: "progress-text" });
    this.log = el("ol", { class: "log" });
    this.result = el("div", { class: "report" });
    this.detail.replaceChildren(this.head, this.bar, this.says, this.result, el("details", { class: "panel" }, el("summary", {}, T.log), this.log));
    this.follow(following);
  }

  async follow(following) {
    let job;
    try {
      job = await get(`${JOBS}/${this.job}`);
      const events = (await get(`${JOBS}/${this.job}/events?limit=100`)).data;
      if (this.following !== following) return;
      this.drawProgress(job, events);
    } catch (error) {
      if (this.following === following) this.result.replaceChildren(failure(error));
      return;
    }
    if (FINAL.includes(job.status)) this.drawResult(job, following);
    else this.timer = setTimeout(() => this.follow(following), 1000 * SECONDS);
  }

  drawProgress(job, events) {
    const isOver = FINAL.includes(job.status);
    this.head.replaceChildren(el("h1", {}, el("bdi", {}, nameOf(job))),
      el("span", { class: `badge ${job.status}` }, T.statuses[job.status]), el("code", { class: "dim" }, job.id), el("span", { class: "grow" }),
      isOver ? "" : button(T.cancelJob, () => post(`${JOBS}/${job.id}/cancel`, {}, { role: "manage" })
        .catch((error) => this.result.replaceChildren(failure(error))), { class: "danger" }));
    const data = events.find((event) => event.data)?.data;
    this.bar.hidden = isOver;
    this.says.hidden = job.status === "succeeded";
    if (!isOver && data?.num_total) {
      this.bar.value = data.num_done / data.num_total;
      this.says.textContent = [T.progress(data.num_done, data.num_total, data.phase),
        data.best === null ? null : T.best(`${(100 * data.best).toFixed(1)} %`),
        data.seconds_left === null ? null : T.left(T.seconds(data.seconds_left))].filter(Boolean).join(" · ");
    } else {
      this.bar.removeAttribute("value");
      this.says.textContent = events[0]?.message ?? "";
    }
    this.log.replaceChildren(...events.filter((event) => event.type === "message").toReversed().map((event) =>
      el("li", { class: event.level, dir: "auto" }, event.message)));
  }

  async drawResult(job, following) {
    this.listJobs();
    if (job.error) return this.result.replaceChildren(failure(job.error));
    if (job.status !== "succeeded") return null;
    try {
      const files = await Promise.all(job.result_files.map((id) => get(`v1/files/${id}`)));
      const found = files.find((file) => file.filename.endsWith("report.json"));
      const report = await get(`v1/files/${found.id}/content`);
      if (this.following !== following) return null;
      const name = job.fine_tuned_model?.split("+").at(-1);
      this.result.replaceChildren(
        el("p", { class: "row wrap" }, name ? [T.published(name), button(T.tryIt, () => this.tryIt(name), { class: "primary" })] : T.notPublished),
        reportView(report),
        el("section", { class: "panel" }, el("h2", {}, T.resultFiles), el("ul", { class: "files" }, files.map((file) => el("li", {},
          button(file.filename, async () => save(await (await send("GET", `v1/files/${file.id}/content`)).blob(), file.filename), { class: "quiet" }))))));
    } catch (error) {
      this.result.replaceChildren(failure(error));
    }
    return null;
  }
}
customElements.define("tiller-train", TrainView);

const nameOf = (job) => job.fine_tuned_model?.split("+").at(-1) ?? job.metadata?.vector ?? job.id;

async function upload(file) {
  const form = new FormData();
  form.append("purpose", "fine-tune");
  form.append("file", file);
  return (await (await send("POST", "v1/files", { body: form, role: "manage" })).json()).id;
}
