// A training's report: the verdict first, then what it rests on.

import { el, percent, short, svg } from "./dom.js";
import { T } from "./strings.js";

const points = (share) => `${share < 0 ? "−" : "+"}${Math.abs(100 * share).toFixed(1)}`;
const range = (accuracy) => `${percent(accuracy.value)} (${percent(accuracy.low)} – ${percent(accuracy.high)})`;

/** What a calibration found. */
function doseView(report) {
  const { calibration } = report;
  const scales = calibration.kl_scale.filter((scale) => scale !== null).map(short);
  return el("section", { class: "panel" }, el("h2", {}, T.safeRange), el("p", { class: "big" }, calibration.safe_scale.map(short).join(" … ")),
    scales.length ? el("p", {}, T.moves(short(calibration.kl), scales.join(", "))) : "", el("p", {}, T.fluent(...calibration.fluent_scale.map(short))));
}

const verdictOf = ({ recommended, reason }, yes, no) => el("section", { class: recommended ? "verdict good" : "verdict bad" },
  el("h2", {}, recommended ? yes : no), el("p", { dir: "auto" }, reason ?? ""));

const rulesOf = (rules) => (rules?.length
  ? el("section", { class: "panel" }, el("h2", {}, T.rules), el("ul", { class: "rules" }, rules.map((rule) => {
    const isPassed = rule.passed ?? rule.passes;
    return el("li", { class: isPassed ? "pass" : "fail" }, el("b", {}, isPassed ? T.passes : T.fails), " ", el("span", { dir: "auto" }, rule.says));
  }))) : "");

const notesOf = (notes) => (notes?.length
  ? el("section", { class: "panel" }, el("h2", {}, T.notes), el("ul", {}, notes.map((note) => el("li", { dir: "auto" }, String(note))))) : "");

/** What was read of the file. */
const dataOf = ({ data }) => (data
  ? el("p", {}, el("strong", {}, `${T.itemsRead}: `), T.items(data.items, Object.entries(data.split ?? {}).map(([part, count]) => `${count} ${part}`).join(", "))) : "");

/** The report of a probe. */
function probeView(report) {
  const { test, chosen, controls } = report;
  const number = (value) => value.toFixed(3);
  return el("div", { class: "report" }, verdictOf(report, T.works, T.worksNot),
    el("p", { class: "big" }, T.auc(...[test.auc.value, test.auc.low, test.auc.high].map(number))),
    el("p", {}, T.aucControls(...[controls.length, controls.random].map(number))),
    el("p", {}, el("strong", {}, `${T.chosen}: `), T.probeAt(chosen.fit, chosen.site, chosen.layer, number(chosen.threshold))), dataOf(report),
    el("p", {}, T.probeRight(...[test.accuracy, test.sensitivity, test.specificity].map((share) => percent(share)))),
    rulesOf(report.rules), notesOf(report.notes));
}

/** The report of a training or an evaluation as sections. */
export function reportView(report) {
  if (report.calibration) return doseView(report);
  if (report.task === "probe") return probeView(report);
  const { test, retention } = report;
  const verdict = report.verdict ?? report;
  const rows = [];
  if (report.baseline && test?.accuracy) {
    rows.push([T.test, range(report.baseline.test ?? report.baseline), range(test.accuracy), `${points(test.gain)} (${points(test.ci95[0])} … ${points(test.ci95[1])})`]);
    rows.push([T.inOneOrder, percent(test.presented.baseline), percent(test.presented.steered), points(test.presented.gain)]);
  }
  if (retention?.accuracy) rows.push([T.retentionRow, range(retention.accuracy.baseline), range(retention.accuracy.steered), points(retention.accuracy.change)]);
  return el("div", { class: "report" },
    verdictOf(verdict, T.helps, T.noHelp), dataOf(report),
    rows.length ? el("section", { class: "panel scroll", tabindex: "0", "aria-label": T.test, role: "region" }, el("table", { class: "figures-table" },
      el("thead", {}, el("tr", {}, ["", T.unsteeredColumn, T.steeredColumn, T.change].map((name) => (name ? el("th", { scope: "col" }, name) : el("td"))))),
      el("tbody", {}, rows.map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), cells.map((cell) => el("td", {}, cell))))))) : "",
    report.chosen ? el("p", {}, el("strong", {}, `${T.chosen}: `), T.chosenAt(report.chosen)) : "",
    typeof test?.letter_bias === "number" ? el("p", {}, el("strong", {}, `${T.letterBias}: `), T.letterBiasSays(points(test.letter_bias))) : "",
    report.grid?.length ? el("section", { class: "panel" }, el("h2", {}, T.grid), ...heatMaps(report)) : "",
    rulesOf(verdict.rules), report.dose ? doseView(report.dose) : "", notesOf(report.notes));
}

/** One heat map for each method and site: white where steering changes nothing, the chosen cell outlined. */
function heatMaps(report) {
  const groups = new Map();
  for (const cell of report.grid) {
    const name = `${cell.variant}, ${cell.site}`;
    groups.set(name, [...(groups.get(name) ?? []), cell]);
  }
  return [...groups].map(([name, cells]) => el("figure", {}, groups.size > 1 ? el("figcaption", {}, name) : "", heatMap(cells, report)));
}

function heatMap(cells, { chosen, baseline }) {
  const sorted = (values) => [...new Set(values)].sort((one, other) => one - other);
  const [layers, scales] = [sorted(cells.map((cell) => cell.layer)), sorted(cells.map((cell) => cell.scale))];
  const [left, wide, high, bottom] = [44, Math.max(34, Math.min(72, 560 / scales.length)), 28, 24];
  const plain = baseline.validation;
  const isKnown = (cell) => typeof cell.validation === "number";
  const reach = Math.max(0.01, ...cells.filter(isKnown).map((cell) => Math.abs(cell.validation - plain)));
  const height = layers.length * high;
  const shown = svg("svg", { viewBox: `0 0 ${left + wide * scales.length + 4} ${height + bottom}`, class: "plot heat", role: "img", "aria-label": T.grid,
    width: left + wide * scales.length + 4 });
  layers.forEach((layer, row) => {
    const y = (layers.length - 1 - row) * high;
    shown.append(svg("text", { x: left - 8, y: y + high / 2 + 4, "text-anchor": "end" }, String(layer)));
  });
  scales.forEach((scale, column) => shown.append(
    svg("text", { x: left + wide * (column + 0.5), y: height + 17, "text-anchor": "middle" }, short(scale))));
  const isChosen = (cell) => cell.variant === chosen.variant && cell.site === chosen.site && cell.layer === chosen.layers[0] && cell.scale === chosen.grid_scale;
  for (const cell of [...cells].sort((one, other) => isChosen(one) - isChosen(other))) {
    const change = isKnown(cell) ? (cell.validation - plain) / reach : 0;
    const most = isKnown(cell) ? 0 : cell.validation_bounds[1];
    const [x, y] = [left + wide * scales.indexOf(cell.scale), (layers.length - 1 - layers.indexOf(cell.layer)) * high];
    shown.append(svg("g", { class: isChosen(cell) ? "chosen" : "" },
      svg("rect", { x: x + 1, y: y + 1, width: wide - 2, height: high - 2, rx: 3, class: change < 0 ? "worse" : "better",
        vars: { strength: Math.abs(change) } }, svg("title", {}, T.gridCell(cell, isKnown(cell) ? percent(cell.validation) : T.leftOut(percent(most))))),
      svg("text", { x: x + wide / 2, y: y + high / 2 + 4, "text-anchor": "middle" }, isKnown(cell) ? (100 * cell.validation).toFixed(0) : `≤${(100 * most).toFixed(0)}`)));
  }
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": T.grid }, shown);
}
