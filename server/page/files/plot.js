// Plots as SVG elements: bars by layer, and a line over time.

import { el, short, svg } from "./dom.js";
import { T } from "./strings.js";

/** Norms by layer as bars; `norms` maps layers to numbers. Those of `before`, if given, are outlines over them. */
export function normPlot(norms, before = {}) {
  const layers = [...new Set([...Object.keys(norms), ...Object.keys(before)].map(Number))].sort((one, other) => one - other);
  const most = Math.max(...Object.values(norms), ...Object.values(before)) || 1;
  const [first, last] = [Math.min(0, layers[0]), Math.max(layers.at(-1), 5)];
  const [width, height, left, bottom] = [640, 150, 48, 24];
  const step = (width - left) / (last - first + 1);
  const every = Math.ceil((last - first + 1) / 24);
  const shown = svg("svg", { viewBox: `0 0 ${width} ${height + bottom}`, class: "plot", role: "img",
    "aria-label": `${T.norms}. ${layers.map((layer) => T.normAt(layer, short(norms[layer] ?? before[layer]))).join("; ")}` });
  for (const share of [0, 0.5, 1]) {
    const y = height - share * (height - 12);
    shown.append(svg("line", { x1: left, x2: width, y1: y, y2: y, class: "rule" }),
      svg("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, short(share * most)));
  }
  for (let layer = first; layer <= last; layer++) {
    const x = left + (layer - first) * step;
    if (layer in norms) {
      const size = (height - 12) * (norms[layer] / most);
      shown.append(svg("rect", { x: x + step * 0.15, y: height - size, width: Math.max(1, step * 0.7), height: size, rx: 2, class: "bar" },
        svg("title", {}, T.normAt(layer, short(norms[layer])))));
    }
    if (layer in before) {
      const size = (height - 12) * (before[layer] / most);
      shown.append(svg("rect", { x: x + step * 0.08, y: height - size, width: Math.max(1, step * 0.84), height: size, rx: 2, class: "outline" },
        svg("title", {}, `${T.then}, ${T.normAt(layer, short(before[layer]))}`)));
    }
    if ((layer - first) % every === 0) shown.append(svg("text", { x: x + step / 2, y: height + 17, "text-anchor": "middle" }, String(layer)));
  }
  return el("figure", {}, shown);
}

/** A line through `values`, the newest last, in a box for `most` of them. */
export function sparkline(values, most, label) {
  const [width, height] = [240, 48];
  const top = Math.max(1e-9, ...values);
  const points = values.map((value, number) =>
    `${(width * (number + most - values.length)) / (most - 1)},${height - 2 - (height - 6) * (value / top)}`).join(" ");
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "spark", role: "img", "aria-label": label, preserveAspectRatio: "none" },
    svg("line", { x1: 0, x2: width, y1: height - 2, y2: height - 2, class: "rule" }),
    svg("polyline", { points, class: "line" }));
}
