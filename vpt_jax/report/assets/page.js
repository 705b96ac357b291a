
// The sections of the page, each from its part of the data.
const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");

function section(id, title, ...content) {
  main.append(el("section", {id}, el("h2", {}, title), ...content));
  document.getElementById("nav").append(el("a", {href: "#" + id}, title));
}

const notes = (lines, kind = "") => lines.length ?
  el("ul", {class: "notes " + kind}, lines.map((line) => el("li", {}, line))) :
  null;
const fixed = (value, digits = 2) =>
  value === null || value === undefined ? "-" : value.toFixed(digits);
const signed = (value) => (value >= 0 ? "+" : "\u2212") +
  Math.abs(value).toFixed(2);
const difference = (value) => value === null ? "-" : el("span",
  {class: value >= 0 ? "up" : "down"}, signed(value));
const spread = (value, std) => [fixed(value),
  std === null || std === undefined ? null :
    el("small", {}, " \u00b1 " + fixed(std))];
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const unique = (values) => [...new Set(values)];

// columns: [{label, title, number, group, wrap}]; rows of {sort, show, class}
// or of plain values. A click on a heading sorts, what is missing comes last.
function table(columns, rows, {sticky = false, limit = 300, tall = false,
  pick = null} = {}) {
  const body = el("tbody"), more = el("button", {class: "more", type:
    "button"}, `show all ${rows.length} lines`);
  const key = (cell) => cell !== null && typeof cell === "object" ?
    cell.sort : cell;
  let order = rows, sorted = null, down = false;
  const show = () => {
    body.replaceChildren(...order.slice(0, limit).map((row) => {
      const line = el("tr", {}, row.map((cell, i) => el("td", {class: [
        columns[i].number ? "number" : "", columns[i].wrap ? "wrap" : "",
        i ? "" : "first", cell && cell.class || ""].join(" ").trim() || null,
      tip: cell && cell.tip || null}, cell !== null && typeof cell ===
        "object" ? cell.show : cell === null ? "-" : String(cell))));
      if (pick) line.addEventListener("click", () => pick(row));
      return line;
    }));
    more.hidden = order.length <= limit;
  };
  const heads = columns.map((column, i) => {
    const button = el("button", {type: "button"}, column.label);
    button.addEventListener("click", () => {
      down = sorted === i ? !down : Boolean(column.number);
      sorted = i;
      heads.forEach((head, j) => j === i ? head.setAttribute("aria-sort",
        down ? "descending" : "ascending") : head.removeAttribute("aria-sort"));
      const gone = (value) => value === null || value === undefined;
      order = [...rows].sort((one, other) => {
        const [a, b] = [key(one[i]), key(other[i])];
        if (gone(a) || gone(b)) return gone(a) - gone(b);
        const sign = typeof a === "number" && typeof b === "number" ? a - b :
          String(a).localeCompare(String(b), "en", {numeric: true});
        return down ? -sign : sign;
      });
      show();
    });
    return el("th", {scope: "col", tip: column.title, class: [
      column.number ? "number" : "", i ? "" : "first"].join(" ").trim() ||
      null}, button);
  });
  const groups = [];
  if (columns.some((column) => column.group)) for (const {group} of columns) {
    const last = groups.at(-1);
    if (last && last.group === (group || "")) last.count++;
    else groups.push({group: group || "", count: 1});
  }
  more.addEventListener("click", () => { limit = Infinity; show(); });
  show();
  return [el("div", {class: tall ? "scroll tall" : "scroll"}, el("table",
    {class: sticky ? "sticky" : null}, el("thead", {},
      groups.length ? el("tr", {}, groups.map(({group, count}) => el("th",
        {colspan: count, class: "group"}, group))) : null,
      el("tr", {}, heads)), body)), more];
}

// Selects above a place that `draw` fills anew: [[label, options], ...].
function chosen(choices, draw) {
  const place = el("div"), selects = choices.map(([label, options]) => {
    const select = el("select", {"aria-label": label}, options.map(
      (option, i) => el("option", {value: i}, option)));
    select.addEventListener("change", redraw);
    return [label, select, options];
  });
  function redraw() {
    place.replaceChildren(...[draw(...selects.map(([, select]) =>
      +select.value))].flat().filter(Boolean));
  }
  const controls = el("div", {class: "controls"}, selects.map(
    ([label, select, options]) => options.length > 1 ?
      el("label", {}, label, select) : null));
  redraw();
  return [controls, place];
}

const figure = (title, draw, under = "") => {
  const host = el("div");
  place(host, draw);
  return el("figure", {}, el("figcaption", {}, title, under ?
    el("small", {}, " \u2014 " + under) : null), host);
};

section("overview", "Overview", el("div", {class: "tiles"}, data.overview.map(
  ([number, what]) => el("div", {class: "tile"}, el("b", {}, number),
    el("span", {}, what)))), notes(data.notes));

for (const [i, suite] of data.suites.entries()) {
  const best = suite.columns.map((_, j) => Math.max(...suite.rows.map((row) =>
    row.cells[j].value ?? -1)));
  const cell = (one, j) => ({sort: one.value, class: [
    suite.columns[j].mean > 1 ? "mean" : "", suite.rows.length > 1 &&
    one.value === best[j] ? "best" : ""].join(" "), tip: one.published ?
    `published: ${one.published}\n${suite.sources[one.source]}` : null,
  show: [el("span", {class: "value"}, one.value === undefined ?
    one.text || "-" : fixed(one.value)), one.std === null || one.std ===
    undefined ? null : el("small", {}, " \u00b1 " + fixed(one.std)),
  one.diverged ? "\u2020" : null, one.published ? el("span",
    {class: "beside"}, one.published, " ", difference(one.difference)) : null,
  ]});
  const compared = suite.rows.some((row) => row.cells.some(
    (one) => one.published));
  section("results-" + i, suite.title, ...table([
    {label: "method"}, {label: "backbone"}, {label: "seeds", number: true},
    {label: "tuned %", number: true, title:
      "trained parameters in percent of all, mean over tasks"},
    ...suite.params.map((label) => ({label, number: true})),
    ...suite.columns.map(({label, title, group}) => ({label, title, group,
      number: true}))], suite.rows.map((row) => [row.head[0], row.head[1],
    row.head[2], {sort: row.percent, show: row.head[3]},
    ...row.params.map((count, j) => ({sort: count, show: row.head[4 + j]})),
    ...row.cells.map(cell)]), {sticky: true}), notes([
    ...(compared ? ["Small below a number: the published one, and the " +
      "measured one minus it. Point at it for the source."] : []), ...suite.notes,
    ...suite.columns.filter((column) => column.mean > 1 &&
      column.group.endsWith("means")).map((column) =>
      `${column.label}: ${column.title}.`)]),
  notes(suite.sources.map((source) => "Published: " + source), "source"));
}

if (data.compared.length || data.known.length) {
  const content = data.compared.length ? table([
    {label: "method"}, {label: "task"}, {label: "measured", number: true},
    {label: "published", number: true}, {label: "difference", number: true,
      title: "measured minus published"},
    {label: "published as"}, {label: "source", wrap: true}],
  data.compared.map(([label, task, measured, std, value, text, off, name,
    source]) => [label, task, {sort: measured, show: spread(measured, std)},
    {sort: value, show: text}, {sort: off, show: difference(off)}, name,
    source]), {tall: true, sticky: true}) :
    [el("p", {}, "No row has a published one.")];
  content.push(notes(["In brackets and without difference: quoted by third " +
    "hands or from memory, not the paper's."]));
  const all = el("details", {}, el("summary", {},
    "All published numbers of these backbones"));
  all.addEventListener("toggle", () => all.children.length > 1 || all.append(
    ...table([{label: "method"}, {label: "backbone"}, {label: "task"},
      {label: "published", number: true}, {label: "tuned %", number: true},
      {label: "source", wrap: true}], data.known.map(([backbone, suite, name,
      column, value, text, tuned, source]) => [name, backbone,
      `${suite}: ${column}`, {sort: value, show: text}, tuned, source]),
    {tall: true, sticky: true})));
  section("published", "Beside published numbers", ...content,
    data.known.length ? all : null);
}

const plots = data.suites.flatMap((suite) => suite.columns.map((column, j) => {
  const points = suite.rows.map((row, i) => ({row, i, one: row.cells[j]}))
    .filter(({one}) => one.value !== undefined).map(({row, i, one}) => ({
      label: row.label, i, x: row.trained[j], y: one.value, std: one.std,
      tip: `${row.label}\n${fixed(one.value)}` + (one.std ?
        ` \u00b1 ${fixed(one.std)}` : "") + ` (${column.score})\n` +
        `${row.trained[j].toLocaleString("en")} trained parameters`}));
  return {title: `${suite.title}: ${column.title}`, mean: column.mean,
    score: column.score, points};
})).filter((plot) => new Set(plot.points.map((point) => point.x)).size > 1)
  .sort((one, other) => other.mean - one.mean);
if (plots.length) section("parameters", "Parameters and scores", ...chosen(
  [["task ", plots.map((plot) => plot.title)]], (i) => [
    figure(plots[i].title, scatter(plots[i].points, {
      x: "trained parameters", y: plots[i].score}),
    "bars: standard deviation over seeds"), legend(
      plots[i].points.map((point) => [point.label, point.i]))]));

if (data.curves.length) {
  const tasks = unique(data.curves.map((one) => one.task));
  const names = unique(data.curves.map((one) => one.label));
  const mean = (runs, part) => runs[0].epoch.map((epoch, i) => {
    const values = runs.map((run) => run[part][i]);
    return [epoch, values.some((value) => value === null || value === undefined)
      ? null : values.reduce((sum, value) => sum + value, 0) / values.length];
  });
  section("curves", "Learning curves", ...chosen([["task ", tasks],
    ["method ", ["all, mean over seeds", ...names]]], (i, j) => {
    const shown = data.curves.filter((one) => one.task === tasks[i] &&
      (!j || one.label === names[j - 1]));
    if (!shown.length) return el("p", {}, "Not run on this task.");
    const series = (part) => shown.flatMap((one) => {
      const n = names.indexOf(one.label);
      const done = one.runs.filter((run) => !run.diverged);
      const seeds = j ? one.runs.map((run) => ({i: n, thin: true,
        label: `${one.label}, seed ${run.seed}` + (run.diverged ?
          ", diverged" : ""),
        points: run.epoch.map((epoch, k) => [epoch, run[part][k]])})) : [];
      return done.length ? [...seeds, {label: one.label + ", mean", i: n,
        points: mean(done, part)}] : seeds;
    });
    const under = j ? "thin: seeds, thick: mean" : "";
    return [el("div", {class: "figures"},
      figure("Training loss", line_chart(series("loss"), {x: "epoch",
        y: "mean loss"}), under),
      figure("Training score", line_chart(series("score"), {x: "epoch",
        y: shown[0].score}), under)), j ? null : legend(shown.map(
        (one) => [one.label, names.indexOf(one.label)]), true)];
  }));
}
