// Carry away: a request as a program, and anything copied.

import { button, choice, dialog, el, field } from "./dom.js";
import { PROGRAMS } from "./request.js";
import { T } from "./strings.js";

/** A button that copies what `text` gives, and says so. */
export function copyButton(label, text, properties = {}) {
  const shown = button(label, async () => {
    const content = await text();
    try {
      await navigator.clipboard.writeText(content);
    } catch {  // not over plain HTTP from another machine
      const area = el("textarea", { value: content, class: "for-readers" });
      (document.querySelector("dialog[open]") ?? document.body).append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    shown.textContent = T.copied;
    setTimeout(() => (shown.textContent = label), 1500);
  }, properties);
  return shown;
}

/** A dialog with one of several requests (`[name, request]`) in every language. */
export function showCode(requests, first = 0) {
  let [number, language] = [first, "python"];
  const code = el("pre", { class: "code", tabindex: "0", "aria-label": T.codeTitle });
  const redraw = () => (code.textContent = PROGRAMS[language](requests[number][1]));
  redraw();
  dialog(T.codeTitle,
    el("div", { class: "row" },
      field(T.column, choice(requests.map(([name], index) => [String(index), name]), String(number), (value) => {
        number = Number(value);
        redraw();
      })),
      field(T.language, choice(Object.entries(T.languages), language, (value) => {
        language = value;
        redraw();
      })),
      copyButton(T.copy, () => code.textContent, { class: "primary" })),
    code, el("p", { class: "hint" }, T.codeHint));
}
