// Elements from data. Text only ever becomes a text node: nothing here, or anywhere in the page, parses HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
    else if (name === "vars") for (const [key, text] of Object.entries(value)) element.style.setProperty(`--${key}`, text);
    else if (name === "value" || name === "checked" || name === "selected") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element; `on` are listeners, `vars` are CSS variables, the rest are attributes. */
export const el = (tag, properties = {}, ...children) => fill(document.createElement(tag), properties, children);

/** An SVG element. */
export const svg = (tag, properties = {}, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

let numLabels = 0;

/** A field under its label: the control gets an id and, with `hint`, a description. */
export function field(label, control, hint) {
  control.id ||= `field-${++numLabels}`;
  const shown = hint ? el("small", { id: `${control.id}-hint`, class: "hint" }, hint) : null;
  if (shown) control.setAttribute("aria-describedby", shown.id);
  return el("div", { class: "field" }, el("label", { for: control.id }, label), control, shown);
}

/** A select of `[value, label]` pairs. */
export const choice = (pairs, value, change) =>
  el("select", { on: { change: (event) => change?.(event.target.value) } },
    pairs.map(([key, label]) => el("option", { value: key, selected: key === value }, label)));

export const button = (label, click, properties = {}) =>
  el("button", { type: "button", ...properties, on: { click } }, label);

/** A message about a failure, as the server words it. */
export const failure = (error) =>
  el("p", { class: "failure", role: "alert" },
    el("strong", {}, error.message),
    error.param || error.code ? el("small", {}, [error.param, error.code].filter(Boolean).join(" · ")) : null);

/** Let files be dropped on an element, or chosen with an input in it. */
export function droppable(element, take) {
  const mark = (is) => (event) => {
    event.preventDefault();
    element.classList.toggle("over", is);
  };
  element.addEventListener("dragenter", mark(true));
  element.addEventListener("dragover", mark(true));
  element.addEventListener("dragleave", mark(false));
  element.addEventListener("drop", (event) => {
    mark(false)(event);
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
  return element;
}

/** A place to drop or choose one file. */
export function dropZone(label, hint, take) {
  const input = el("input", { type: "file", class: "hidden-file",
    on: { change: () => input.files.length && take(input.files[0]) } });
  return droppable(el("label", { class: "drop" }, input, el("strong", {}, label), el("span", { class: "dim" }, hint)), take);
}

/** A modal dialog with a heading; it is removed when it closes. */
export function dialog(title, ...children) {
  const close = button("✕", () => shown.close(), { class: "quiet", "aria-label": "Close" });
  const shown = el("dialog", { "aria-label": title, on: { close: () => shown.remove() } },
    el("header", {}, el("h2", {}, title), close), ...children);
  document.body.append(shown);
  shown.showModal();
  return shown;
}

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

/** A number in few characters: 0.30000000000000004 is 0.3. */
export const short = (number) => String(Number(number.toPrecision(4))).replace("-", "−");

/** A value of the API in words: text as it is, anything else as JSON. */
export const said = (value) => (typeof value === "string" ? value : value === undefined ? "" : JSON.stringify(value));

export const day = (seconds) => new Date(1000 * seconds).toLocaleString();

/** Save bytes under a name. */
export function save(blob, name) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
