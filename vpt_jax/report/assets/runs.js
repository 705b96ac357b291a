
// The sections of single runs.
if (data.searches.length) {
  const titles = data.searches.map((one) => [one.name, one.backbone, one.task,
    one.rest].filter(Boolean).join(" \u00b7 "));
  section("search", "Search of hyper-parameters", ...chosen([["search ",
    titles]], (i) => {
    const {cells, split, metric, unit} = data.searches[i];
    const axis = (k) => unique(cells.map((cell) => cell[k]))
      .filter((value) => value !== null).sort((a, b) => a - b);
    const [rates, decays] = [axis(0), axis(1)];
    const name = `${metric} on ${split}` + (unit ? `, ${unit}` : "");
    const state = ([rate, decay, score, , done, all]) =>
      `learning rate ${rate}, weight decay ${decay}\n` + (score === null ?
        `${all - done} of ${all} runs diverged` : `${name}: ${fixed(score)}`);
    const best = cells.find((cell) => cell[3]);
    const text = el("p", {}, best ? "Chosen: learning rate " +
      `${best[0] ?? "-"}, weight decay ${best[1] ?? "-"} (${fixed(best[2])}` +
      `${unit ? " " + unit : ""}), the highest score, of equals the smallest ` +
      "rate." :
      cells.some((cell) => cell[2] !== null) ?
        "The chosen cell is in another map of this search." :
        "All runs diverged.");
    if (!rates.length || !decays.length) return [text, ...table([
      {label: "learning rate", number: true}, {label: "weight decay",
        number: true}, {label: name, number: true}], cells.map((cell) =>
      [cell[0], cell[1], cell[2]]))];
    const values = cells.map((cell) => cell[2]).filter((v) => v !== null);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return [text, figure(name, grid_chart(rates.map(String), decays.map(
      (value) => short(value)), cells.filter((cell) => cell[0] !== null &&
      cell[1] !== null).map((cell) => ({column: rates.indexOf(cell[0]),
      row: decays.indexOf(cell[1]), lost: cell[2] === null, tip: state(cell),
      share: cell[2] === null ? 0 : (cell[2] - low) / (high - low || 1),
      chosen: cell[3], text: cell[2] === null ? "div." : fixed(cell[2], 1)})),
    {x: "learning rate (of the config)", y: "weight decay"},
    {left: 64, most: 84, bottom: 40}),
    "stronger colour: higher; outlined: chosen; dashed: diverged")];
  }));
}

if (data.classes.length) {
  const titles = data.classes.map((one) => `${one.task} \u00b7 ${one.label}`);
  section("classes", "Classes", ...chosen([["task and method ", titles]],
    (i) => {
      const {titles: named, measure, scores, wrong, matrix, totals, count,
        seeds, left_out, table: lines, overall} = data.classes[i];
      const bars = (width) => {
        const left = Math.min(150, width * 0.4), high = 18;
        const gap = left_out ? 16 : 0, half = scores.length / 2;
        const height = scores.length * high + 22 + gap;
        const x = (value) => left + (width - left - 46) * value / 100;
        const root = svg("svg", {width, height, role: "img", viewBox:
          `0 0 ${width} ${height}`, "aria-label": `${measure} of each class`});
        scores.forEach(([value, label, images], k) => {
          const y = k * high + (k < half ? 0 : gap);
          const most = Math.floor(left / 6.6);
          const text = named[label].length > most ?
            named[label].slice(0, most - 1) + "\u2026" : named[label];
          const about = `${named[label]}\n${fixed(value, 1)} %` +
            (images === null ? ` ${measure}` : ` of ${images} images`) +
            (seeds > 1 ? ` (${seeds} seeds)` : "");
          root.append(svg("text", {class: "tick", x: left - 8, y: y + 13,
            "text-anchor": "end"}, text),
          svg("rect", {class: "bar", x: x(0), y: y + 3, height: high - 6,
            rx: 2, width: Math.max(1, x(value) - x(0)),
            fill: "var(--accent)"}),
          svg("text", {class: "tick", x: x(value) + 6, y: y + 13},
            fixed(value, 1)),
          svg("rect", {x: 0, y, width, height: high, fill: "transparent",
            tip: about}));
        });
        if (gap) root.append(svg("text", {class: "tick", x: left - 8,
          y: half * high + 11, "text-anchor": "end"}, "\u22ee"));
        root.append(svg("text", {class: "tick", x: x(0), y: height - 2},
          measure + ", %" +
          (measure === "accuracy" ? " of the class's images" : "")));
        return root;
      };
      const small = count <= 25, cells = matrix.map(([label, guess, images]) =>
        ({column: guess, row: label, share: Math.sqrt(images / totals[label]),
          text: small ? String(images) : "", tip: `is ${named[label]}\n` +
          `taken for ${named[guess]}\n${images} of ${totals[label]} images`}));
      const room = Math.min(76, 5 * Math.max(...Object.values(named).map(
        (name) => name.length)));
      const heads = [...Array(count).keys()].map((k) => small ? named[k] : "");
      const map = matrix.length ? figure("Confusion matrix", grid_chart(heads,
        heads, cells, {x: "taken for", y: "is"}, {square: true, turned: true,
          most: 44, left: small ? room + 30 : 24, bottom: small ? room + 30 :
            24}),
      "shade: share of the class, square root") : null;
      const pairs = figure("Most confused", () => el("div", {}, ...table([
        {label: "is"}, {label: "taken for"}, {label: "images", number: true},
        {label: "% of the class", number: true}], wrong.map(([label, guess,
        images, all]) => [named[label], named[guess], images, {
        sort: images / all, show: fixed(100 * images / all, 1)}]))));
      const absent = (value) => ({sort: value, show: value === null ?
        "absent" : fixed(value)});
      const listed = lines ? figure(`${count} classes`, () => el("div", {},
        ...table([{label: "class"}, {label: measure + ", %", number: true,
          title: "absent: in neither labels nor predictions"}, {label:
          "\u00b1", number: true, title: "over seeds"}, {label: "accuracy, %",
          number: true, title: "absent: in no label"}], lines.map(([name,
          value, std, accuracy]) => [name, absent(value), std === null ?
          null : {sort: std, show: fixed(std)}, absent(accuracy)]),
        {tall: true, sticky: true})), overall.map(([title, value]) =>
        `${title} ${fixed(value)} %`).join(", ")) : null;
      const under = left_out ? `the lowest and highest; ${left_out} classes ` +
        "between them are left out" : seeds > 1 ? `${seeds} seeds together` : "";
      return el("div", {class: "figures"},
        figure(`${capital(measure)} of each class`, bars, under),
        el("div", {}, map, listed, wrong.length ? [el("p"), pairs] : null));
    }));
}

if (data.galleries.runs.length) {
  const {runs, left_out} = data.galleries;
  const titles = runs.map(({task, label, seed}) =>
    `${task} \u00b7 ${label} \u00b7 seed ${seed}`);
  const panel = ({title, text, src}) => el("figure", {}, el("figcaption", {},
    capital(title), text ? el("small", {}, " \u2014 " + text) : null),
  el("img", {src, alt: `${title}: image, labels and prediction`}));
  section("gallery", "Gallery", el("p", {}, "Each picture: image | labels | " +
    "prediction, in the colours of the classes; the scores are of this image " +
    "alone."), ...chosen([["run ", titles]], (i) => [
    ...unique(runs[i].pictures.map((one) => one.kind)).flatMap((kind) => [
      el("h3", {}, capital(kind)), el("div", {class: "panels"},
        runs[i].pictures.filter((one) => one.kind === kind).map(panel))]),
    notes(runs[i].damaged.map((what) => "Not shown: " + what))]),
  left_out ? notes([`${left_out} more runs have pictures.`]) : null);
}

if (data.condensed.length) section("condensation", "Prompt condensation",
  ...chosen([["run ", data.condensed.map((one) => one.label)]], (i) => {
    const {rows, statistic, score, split, batch, device} = data.condensed[i];
    const line = (field, label, n) => ({label, i: n, points: [...rows].sort(
      (a, b) => a.share - b.share).map((row) => [100 * row.share,
      row[field]])});
    const x = "prompts kept, %", options = {markers: true,
      format: (value) => short(value)};
    const cost = data.cost;
    return [el("p", {}, `Kept by ${statistic}; ${device}.`),
      el("div", {class: "figures"},
        el("div", {}, figure(`Score on ${split}`, line_chart([
          line("as_is", "as it is", 0),
          line("tuned", "fine-tuned", 1)], {x, y: score}, options)),
        legend([["as it is", 0], ["fine-tuned", 1]])),
        figure("Multiply-adds", line_chart([line("gmacs", "GMACs", 2)],
          {x, y: "GMACs (10\u2079 multiply-adds) per image; " +
            "GFLOPs = 2 \u00d7"}, options)),
        figure("Latency", line_chart([line("milliseconds", "latency", 3)],
          {x, y: `milliseconds per batch${batch ? " of " + batch : ""}`},
          options))),
      el("p"), ...table([{label: "share", number: true}, {label: "prompts",
        number: true}, {label: "in each block"}, {label: "as it is",
        number: true}, {label: "fine-tuned", number: true}, {label: "GMACs",
        number: true}, {label: "GFLOPs", number: true}, {label: "ms per batch",
        number: true}], rows.map((row) => [{sort: row.share,
        show: short(100 * row.share) + " %"}, row.prompts,
      row.per_set.join(" "), {sort: row.as_is, show: fixed(row.as_is)},
      {sort: row.tuned, show: fixed(row.tuned)}, {sort: row.gmacs, show:
        row.gmacs.toPrecision(4)}, {sort: 2 * row.gmacs, show:
        (2 * row.gmacs).toPrecision(4)}, {sort: row.milliseconds, show:
        fixed(row.milliseconds, 1)}])),
      cost ? notes([`Published cost of the published form on ${cost.backbone}` +
        `, GMACs at ${cost.prompts.join(", ")} prompts: ` +
        `${cost.gmacs.join(", ")} (${cost.source}).`]) : null];
  }));

if (data.runs.rows.length) {
  const all = data.runs, place = el("pre", {hidden: ""});
  const columns = ["id", "stage", "name", "backbone", "task", "split", "seed",
    "state", "score", "seconds", "images/s", "group"];
  const numbers = ["seed", "score", "seconds", "images/s", "group"];
  const show = (row) => {
    const run = row.run, config = {...all.common, ...run[14]};
    place.hidden = false;
    place.textContent = `${run[2]}, ${run[0]}\n${all.devices[run[12]]}; ` +
      `${all.versions[run[13]]}\n\n` + Object.keys(config).sort().map((field) =>
      `${field} = ${config[field]}`).join("\n");
  };
  const fold = el("details", {}, el("summary", {},
    `${all.rows.length} runs: device, versions, seconds, config`));
  fold.addEventListener("toggle", () => {
    if (fold.children.length > 1) return;
    const rows = all.rows.map((run) => {
      const row = [...run.slice(0, 12).map((value, i) => i === 8 &&
        value !== null ? {sort: value, show: fixed(value)} : value ===
        undefined ? null : typeof value === "number" && i > 8 ? {sort: value,
          show: short(value)} : value), all.devices[run[12]],
      {sort: all.versions[run[13]], show: all.versions[run[13]]}];
      row.run = run;
      return row;
    });
    fold.append(el("p", {}, "Click a line for the whole config."), ...table([
      ...columns.map((label) => ({label, number: numbers.includes(label)})),
      {label: "device"}, {label: "versions", wrap: true}], rows,
    {tall: true, limit: 100, pick: show, sticky: true}), place);
  });
  section("runs", "Runs", el("p", {}, [...new Set(all.devices)].join("; ")),
    fold);
}
