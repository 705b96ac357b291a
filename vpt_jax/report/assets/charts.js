"use strict";
// Elements, scales and the few kinds of figures of the page. Every text goes
// through textContent or setAttribute: records may come from strangers.

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined) continue;
    if (name === "tip") node.dataset.tip = value;
    else node.setAttribute(name, value);
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined) continue;
    node.append(child);
  }
  return node;
}

const el = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(
  document.createElementNS("http://www.w3.org/2000/svg", tag), attributes,
  children);

function short(value) {
  if (value === null || value === undefined) return "-";
  const size = Math.abs(value);
  if (size >= 1e9) return +(value / 1e9).toPrecision(3) + "G";
  if (size >= 1e6) return +(value / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return +(value / 1e3).toPrecision(3) + "k";
  if (size && size < 1e-3) return value.toExponential(0);
  return String(+value.toPrecision(4));
}

// Figures are drawn to the width of their place, so that text keeps its size;
// after the code that puts the place into the page.
let drawn = [];
function place(host, draw) {
  const redraw = () => host.clientWidth && host.replaceChildren(
    draw(Math.min(host.clientWidth, 720)));
  drawn.push([host, redraw]);
  setTimeout(redraw);
}
let resizing = 0;
window.addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => {
    drawn = drawn.filter(([host]) => host.isConnected);
    drawn.forEach(([, redraw]) => redraw());
  }, 60);
});

const tip = document.getElementById("tip");
document.addEventListener("pointermove", (event) => {
  const node = event.target.closest && event.target.closest("[data-tip]");
  tip.hidden = !node;
  if (!node) return;
  tip.textContent = node.dataset.tip;
  const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const above = event.clientY + tip.offsetHeight + 24 > innerHeight;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = event.clientY + (above ? -tip.offsetHeight - 12 : 16) + "px";
});

function ticks(low, high, log) {
  const out = [];
  if (log) {
    const factors = high / low > 100 ? [1] : [1, 2, 5];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++)
      for (const factor of factors) out.push(factor * 10 ** power);
    const inside = out.filter((value) => value >= low && value <= high);
    return inside.length > 1 ? inside : [low, high];
  }
  const rough = (high - low) / 6 || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((one) => one * unit >= rough) * unit;
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9); i++)
    out.push(+(i * step).toPrecision(12));
  return out;
}

function scale(values, from, to, {log = false, pad = 0.04, zero = false} = {}) {
  const known = values.filter(Number.isFinite);
  let low = Math.min(...known), high = Math.max(...known);
  if (!known.length) [low, high] = log ? [1, 10] : [0, 1];
  if (zero) low = Math.min(0, low);
  const to_log = log ? Math.log10 : (value) => value;
  let [a, b] = [to_log(low), to_log(high)];
  const room = (b - a || Math.abs(a) * 0.1 || 1) * pad;
  if (!zero || low < 0) a -= room;
  b += room;
  if (a === b) b = a + 1;
  const at = (value) => from + (to - from) * (to_log(value) - a) / (b - a);
  at.ticks = ticks(log ? 10 ** a : a, log ? 10 ** b : b, log);
  return at;
}

// Axes; `x` and `y` are scales, the name of `y` stands above its ticks.
function axes(width, height, box, x, y, names, x_format = short) {
  const root = svg("svg", {width, height, viewBox: `0 0 ${width} ${height}`,
    role: "img", "aria-label": `${names.y} against ${names.x}`});
  for (const value of y.ticks) {
    root.append(
      svg("line", {class: "grid", x1: box.left, x2: box.right, y1: y(value),
        y2: y(value)}),
      svg("text", {class: "tick", x: box.left - 6, y: y(value) + 4,
        "text-anchor": "end"}, short(value)));
  }
  for (const value of x.ticks) {
    root.append(
      svg("line", {class: "axis", x1: x(value), x2: x(value),
        y1: box.bottom, y2: box.bottom + 4}),
      svg("text", {class: "tick", x: x(value), y: box.bottom + 17,
        "text-anchor": "middle"}, x_format(value)));
  }
  root.append(
    svg("line", {class: "axis", x1: box.left, x2: box.right, y1: box.bottom,
      y2: box.bottom}),
    svg("text", {class: "tick", x: 0, y: 12}, names.y),
    svg("text", {class: "tick", x: box.right, y: box.bottom + 34,
      "text-anchor": "end"}, names.x));
  return root;
}

const box_of = (width, height) =>
  ({left: 44, right: width - 12, top: 26, bottom: height - 40});

// Colour, dash and marker number i; told apart without colours, too.
const SHAPES = [
  "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0", "M-4,-4h8v8h-8z",
  "M0,-5.5L5,4H-5z", "M0,-5.5L5,0L0,5.5L-5,0z", "M0,5.5L5,-4H-5z",
  "M-5,-1.6h3.4v-3.4h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4z"];
const colour = (i) => `var(--c${i % 8})`;
const dash = (i) => ["", "6 3", "2 3", "8 3 2 3"][Math.floor(i / 8) % 4] ||
  null;
const marker = (i, x, y, more = {}) => svg("path", {
  d: SHAPES[i % SHAPES.length], transform: `translate(${x},${y})`,
  fill: colour(i), ...more});

// entries: [[label, i], ...]
function legend(entries, lines = false) {
  return el("ul", {class: "legend"}, entries.map(([label, i]) => el("li", {},
    svg("svg", {width: 22, height: 12, "aria-hidden": "true"},
      lines ? svg("line", {x1: 1, x2: 21, y1: 6, y2: 6, stroke: colour(i),
        "stroke-width": 2.5, "stroke-dasharray": dash(i)}) : null,
      lines ? null : marker(i, 11, 6)), label)));
}

// series: [{label, i, thin, points: [[x, y], ...]}]
function line_chart(series, names, options = {}) {
  return (width) => {
    const height = options.height || 250, box = box_of(width, height);
    const points = series.flatMap((one) => one.points)
      .filter((point) => point[1] !== null);
    const x = scale(points.map((point) => point[0]), box.left, box.right,
      {pad: 0.02, log: options.log});
    const y = scale(points.map((point) => point[1]), box.bottom, box.top,
      {zero: options.zero});
    const root = axes(width, height, box, x, y, names, options.format);
    const hits = [];
    for (const one of series) {
      const path = [];
      let pen = "M";
      for (const [a, b] of one.points) {
        if (b === null) { pen = "M"; continue; }
        path.push(`${pen}${x(a).toFixed(1)},${y(b).toFixed(1)}`);
        pen = "L";
        if (options.markers) root.append(marker(one.i, x(a), y(b)));
        hits.push(svg("circle", {class: "hit", cx: x(a), cy: y(b), r: 6,
          style: `color:${colour(one.i)}`, tip: `${one.label}\n${names.x}: ` +
          `${(options.format || short)(a)}\n${names.y}: ${short(b)}`}));
      }
      root.append(svg("path", {d: path.join(""), fill: "none",
        stroke: colour(one.i), "stroke-width": one.thin ? 1 : 2.2,
        "stroke-opacity": one.thin ? 0.55 : 1, "stroke-linejoin": "round",
        "stroke-dasharray": dash(one.i)}));
    }
    root.append(...hits);
    return root;
  };
}

// points: [{label, i, x, y, std, tip}]
function scatter(points, names) {
  return (width) => {
    const height = 340, box = box_of(width, height);
    const x = scale(points.map((point) => point.x), box.left, box.right,
      {log: true, pad: 0.06});
    const y = scale(points.flatMap((point) => [point.y - (point.std || 0),
      point.y + (point.std || 0)]), box.bottom, box.top);
    const root = axes(width, height, box, x, y, names);
    for (const point of points) {
      if (point.std) root.append(svg("line", {x1: x(point.x), x2: x(point.x),
        y1: y(point.y - point.std), y2: y(point.y + point.std),
        stroke: colour(point.i), "stroke-width": 1.4}));
      root.append(marker(point.i, x(point.x), y(point.y), {tip: point.tip}));
    }
    return root;
  };
}

// cells: [{column, row, share, text, tip, chosen, lost}]; share in 0..1 shades.
function grid_chart(columns, lines, cells, names, size) {
  return (width) => {
    const left = Math.min(size.left, width / 3), top = 20;
    const side = Math.min(size.most, (width - left - 4) / columns.length);
    const high = size.square ? side : Math.min(34, size.most);
    const bottom = top + high * lines.length;
    const height = bottom + size.bottom;
    const root = svg("svg", {width, height, role: "img",
      viewBox: `0 0 ${width} ${height}`,
      "aria-label": `${names.y} against ${names.x}`});
    root.append(svg("text", {class: "tick", x: 0, y: 12}, names.y),
      svg("text", {class: "tick", "text-anchor": "end", y: height - 4,
        x: Math.max(left + side * columns.length, 170)}, names.x));
    root.append(svg("rect", {class: "frame", x: left, y: top,
      width: side * columns.length, height: high * lines.length}));
    const cut = (text, room) => {
      const most = Math.max(3, Math.floor(room / 6.2));
      return text.length > most ? text.slice(0, most - 1) + "\u2026" : text;
    };
    lines.forEach((label, i) => root.append(svg("text", {class: "tick",
      x: left - 6, y: top + high * (i + 0.5) + 4, "text-anchor": "end"},
      cut(label, left - 8))));
    columns.forEach((label, i) => {
      const at = left + side * (i + 0.5), turned = size.turned;
      root.append(svg("text", {class: "tick", x: at, y: bottom + 14,
        "text-anchor": turned ? "end" : "middle", transform: turned ?
          `rotate(-50 ${at} ${bottom + 10})` : null},
        cut(label, turned ? 84 : side)));
    });
    for (const cell of cells) {
      const at = {x: left + side * cell.column, y: top + high * cell.row};
      root.append(svg("rect", {x: at.x + 0.5, y: at.y + 0.5, tip: cell.tip,
        width: Math.max(1, side - 1), height: Math.max(1, high - 1),
        fill: cell.lost ? "var(--soft)" : "var(--accent)",
        "fill-opacity": cell.lost ? 1 : 0.06 + 0.94 * cell.share,
        stroke: cell.lost ? "var(--bad)" : null,
        "stroke-dasharray": cell.lost ? "3 3" : null,
        class: cell.lost ? "lost" : "cell"}));
      if (cell.text && side > 26) root.append(svg("text", {
        x: at.x + side / 2, y: at.y + high / 2 + 4, "text-anchor": "middle",
        class: cell.share > 0.5 ? "on" : null, "pointer-events": "none"},
        cell.text));
    }
    for (const cell of cells.filter((one) => one.chosen)) root.append(
      svg("rect", {x: left + side * cell.column - 0.5, fill: "none",
        y: top + high * cell.row - 0.5, width: side + 1, height: high + 1,
        stroke: "var(--c1)", "stroke-width": 3, class: "chosen",
        "pointer-events": "none"}));
    return root;
  };
}
