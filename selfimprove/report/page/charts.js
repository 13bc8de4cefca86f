// Charts: one helper draws a figure when it comes into view. It adds the controls, and the numbers as a table.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const COLOURS = 8;
const DASHES = ["solid", "dash", "dot", "dashdot"];
const STATUSES = ["correct", "wrong", "unparseable", "timeout", "error"];
const PHASES = ["adapt", "generate", "verify", "filter", "train", "handover", "evaluate", "drift", "also"];
const style = (i) => ({ color: colour(`--c${i % COLOURS}`), dash: DASHES[Math.floor(i / COLOURS) % DASHES.length] });
const plain = (name) => String(name).replaceAll("&", "&amp;").replaceAll("<", "&lt;"); // Plotly reads some tags in labels
const faded = (hex, alpha) => `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},${alpha})`;

const redraws = new Set();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((redraw) => redraw()));
const nearby = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
    nearby.unobserve(entry.target);
    entry.target.dispatchEvent(new Event("near"));
  }),
  { rootMargin: "300px" },
);

const axis = (title, more = {}) => ({
  title: { text: title, standoff: 8, font: { size: 13 } }, gridcolor: colour("--grid"), zerolinecolor: colour("--line"), linecolor: colour("--line"),
  automargin: true, ...more,
});

const layout = (count, more) => ({
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
  font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("--ink") },
  margin: { l: 56, r: 14, t: 8, b: 44 }, hovermode: "closest",
  hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
  showlegend: count > 1,
  legend: count > 10 && innerWidth > 900
    ? { orientation: "v", x: 1.01, y: 1, font: { size: 11 } }
    : { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12 } },
  ...more,
});

// A figure. `draw()` gives {traces, layout, legend} or {message}. `controls(redraw)` gives the inputs above it.
// A trace's `figures`, rows [x, y, low, high], are the rows of its table.
const figure = (parent, { title, note, controls, draw, small, figures, first }) => {
  const plot = el("div", { class: small ? "plot small" : "plot", role: "img", "aria-label": title });
  const empty = el("p", { class: "empty", hidden: true });
  const save = () => Plotly.downloadImage(plot, { format: "svg", filename: title, width: plot.clientWidth, height: plot.clientHeight });
  const numbers = el("details", {}, el("summary", {}, "Figures"), el("button", { type: "button", class: "plain", onclick: save }, "Save the chart as SVG"));
  const made = el("figure", {}, el("figcaption", {}, title), note && el("p", { class: "note" }, note));
  let last = null;
  const fill = () => {
    numbers.querySelector(".scroll")?.remove();
    if (!numbers.open || !last) return;
    const shown = last.traces.filter((trace) => trace.figures);
    const bounds = shown.some((trace) => trace.figures.some((row) => row.length > 2));
    numbers.append(table({
      columns: [["series", "text"], [figures?.x ?? "x"], [figures?.y ?? "y"], ...(bounds ? [["low"], ["high"]] : [])].map(([label, kind]) => ({ label, kind: kind ?? "number" })),
      rows: shown.flatMap((trace) => trace.figures.map((row) => [trace.series, ...row, null, null].slice(0, bounds ? 5 : 3))),
      tall: true,
    }));
  };
  const redraw = () => {
    const drawn = draw();
    empty.hidden = !drawn.message;
    plot.hidden = numbers.hidden = Boolean(drawn.message);
    empty.textContent = drawn.message ?? "";
    if (drawn.message) return;
    last = drawn;
    if (innerWidth < 740 && drawn.legend > 2) plot.style.height = `${240 + 26 * drawn.legend}px`; // room for its lines
    plot.setAttribute("aria-label", `${title}: ${drawn.traces.filter((t) => t.figures).length} series; the figures stand below as a table`);
    Plotly.react(plot, drawn.traces, layout(drawn.legend ?? 0, drawn.layout), { displayModeBar: false, responsive: true });
    fill();
  };
  numbers.addEventListener("toggle", fill);
  const bar = controls ? controls(redraw).filter(Boolean) : [];
  if (bar.length) made.append(el("div", { class: "controls" }, bar));
  made.append(plot, empty, numbers);
  parent.append(made);
  plot.addEventListener("near", () => { redraws.add(redraw); redraw(); }, { once: true });
  if (first) plot.dispatchEvent(new Event("near"));
  else nearby.observe(plot);
  return made;
};

// A line with a band from low to high. Points are [x, y, low, high], and low and high may be missing.
const line = (name, points, { color, dash }, { band = true, thin = false, legend = true, shade = 0.14 } = {}) => {
  const drawn = [];
  const bounded = points.filter((p) => p[2] !== null && p[2] !== undefined);
  if (band && bounded.length > 1) {
    drawn.push({
      x: [...bounded.map((p) => p[0]), ...bounded.map((p) => p[0]).reverse()], y: [...bounded.map((p) => p[3]), ...bounded.map((p) => p[2]).reverse()],
      type: "scatter", mode: "none", fill: "toself", fillcolor: faded(color, shade), hoverinfo: "skip", showlegend: false, legendgroup: name,
    });
  }
  const single = bounded.length === 1 && band;
  drawn.push({
    x: points.map((p) => p[0]), y: points.map((p) => p[1]), name: plain(name), legendgroup: name, showlegend: legend, type: "scatter", mode: thin ? "lines" : "lines+markers",
    line: { color, dash, width: thin ? 1 : 2.2 }, marker: { size: 7, color }, opacity: thin ? 0.55 : 1,
    error_y: single ? { type: "data", symmetric: false, array: [bounded[0][3] - bounded[0][1]], arrayminus: [bounded[0][1] - bounded[0][2]], color, thickness: 1.3, width: 4 } : undefined,
    customdata: points.map((p) => (p[2] === null || p[2] === undefined ? "" : `<br>95 %: ${number(p[2])} … ${number(p[3])}`)),
    hovertemplate: `${plain(name)}<br>%{x}: %{y:.4g}%{customdata}<extra></extra>`, series: name, figures: points,
  });
  return drawn;
};

const known = (points) => points.filter((p) => p[1] !== null && p[1] !== undefined);
const share = (name) => /(^|\/)(accuracy|change|mean@|pass@|maj@|keep_rate|truncated)/.test(name);
const axisOf = (names) => (names.every(share) ? { tickformat: ".0%" } : { exponentformat: "power" });
const rounds = (title, last) => axis(title, last <= 24 ? { dtick: 1 } : {});
const series = (group, metric) => known(group.rounds.map((r) => [r.round, ...(r.m[metric] ?? [null])]));

// Metrics over rounds: all of them if there is one group, else the one that the reader picks.
const metricChart = (parent, report, { title, note, metrics, unit, small, apart }) => {
  const there = metrics.filter(([key]) => report.groups.some((group) => group.rounds.some((r) => key in r.m)));
  if (!there.length) return;
  let picked = there[0][0];
  const one = report.groups.length === 1 && !apart; // `apart`: figures of different scales
  figure(parent, {
    title, note, small, figures: { x: "round", y: unit ?? "value" },
    controls: (redraw) => [!one && there.length > 1 && choose("Figure", there, (key) => { picked = key; redraw(); })],
    draw: () => {
      const lines = one ? there.map(([key, name]) => [name, series(report.groups[0], key)]) : report.groups.map((group) => [group.name, series(group, picked)]);
      const drawn = lines.flatMap(([name, points], i) => (points.length ? line(name, points, style(i)) : []));
      const keys = one ? there.map(([key]) => key) : [picked];
      return { traces: drawn, legend: lines.length, layout: { xaxis: rounds("round", Math.max(...lines.map(([, p]) => p.at(-1)?.[0] ?? 0))), yaxis: axis(one ? unit ?? "" : there.find(([key]) => key === picked)[1], axisOf(keys)) } };
    },
  });
};

const scoreChart = (parent, report) => {
  const names = [...new Set(report.groups.flatMap((group) => group.evals.flatMap((e) => Object.keys(e.m))))];
  if (!names.length) {
    parent.append(el("p", { class: "empty" }, "No evaluation on the held-out problems is complete yet."));
    return;
  }
  const score = report.unit.name;
  let metric = names.includes(score) ? score : names[0];
  let over = report.axes[0][0], band = report.groups.length <= 6, each = false, base = true;
  const several = report.runs.length > report.groups.length;
  figure(parent, {
    title: `Held-out ${report.unit.label}`, first: true, figures: { x: "x", y: report.unit.label }, note: report.curves,
    controls: (redraw) => [
      choose("Figure", names.map((name) => [name, name === score ? report.unit.label : name]), (key) => { metric = key; redraw(); }, metric),
      choose("Over", report.axes, (key) => { over = key; redraw(); }),
      tick("95 % intervals", band, (on) => { band = on; redraw(); }),
      several && tick("each run", each, (on) => { each = on; redraw(); }),
      report.baselines.length > 0 && tick("base policy at equal tokens", base, (on) => { base = on; redraw(); }),
    ],
    draw: () => {
      const points = (evals) => known(evals.map((e) => [e.x[over], ...(e.m[metric] ?? [null])])).filter((p) => p[0] !== null && p[0] !== undefined);
      const traces = report.groups.flatMap((group, i) => [
        ...(each && group.runs.length > 1 ? group.runs.flatMap((run) => line(report.runs[run].name, points(report.runs[run].evals), style(i), { band: false, thin: true, legend: false })) : []),
        ...line(group.name, points(group.evals), style(i), { band, shade: report.groups.length > 2 ? 0.07 : 0.14 }),
      ]);
      const extra = base && over === "sampled" && metric === score ? report.baselines : [];
      extra.forEach((baseline, i) => traces.push(...line(baseline.name, baseline.points, { color: colour("--dim"), dash: DASHES[1 + (i % 3)] }, { band: false })));
      if (!traces.some((trace) => trace.figures?.length)) return { message: "No run has this figure." };
      const last = Math.max(...report.groups.map((group) => group.evals.length - 1));
      const label = report.axes.find(([key]) => key === over)[1];
      return {
        traces, legend: report.groups.length + extra.length,
        layout: { xaxis: over === "round" ? rounds("rounds of training (0: base policy)", last) : axis(label, { rangemode: "tozero" }), yaxis: axis(metric, axisOf([metric])) },
      };
    },
  });
};

// Figures of training over optimizer steps: one line a run, in its group's colour
const stepChart = (parent, report) => {
  const names = [...new Set(report.runs.flatMap((run) => Object.keys(run.steps)))];
  if (!names.length) return;
  let picked = names.includes("reward") ? "reward" : names[0];
  figure(parent, {
    title: "Training, by optimizer step", note: "What the trainer logged at each step, and figures of the attempts of each pass.", figures: { x: "step", y: "value" },
    controls: (redraw) => [names.length > 1 && choose("Figure", names.map((name) => [name, name]), (key) => { picked = key; redraw(); }, picked)],
    draw: () => {
      const traces = report.groups.flatMap((group, i) => group.runs.filter((run) => report.runs[run].steps[picked]).flatMap((run, nth) =>
        line(group.runs.length > 1 ? report.runs[run].name : group.name, report.runs[run].steps[picked], style(i), { band: false, thin: report.runs.length > 1, legend: !nth })));
      return traces.length
        ? { traces, legend: report.groups.length, layout: { xaxis: axis("optimizer step"), yaxis: axis(picked, axisOf([picked])) } }
        : { message: "No run has this figure." };
    },
  });
};

const trained = (group) => group.rounds.map((r) => [`round ${r.round}`, r.m]);
const held = (group) => group.evals.map((e, i) => [i ? `after round ${i - 1}` : "base policy", e.m]);

// A figure over the number in its name, with a line for each round of a group. A source is [name, group -> rounds, form].
const numberedChart = (parent, report, { title, note, x, y, sources, ticks }) => {
  const points = (m, form) => Object.entries(m).flatMap(([name, value]) => (form.test(name) ? [[Number(name.match(form)[1]), ...value]] : [])).sort((a, b) => a[0] - b[0]);
  const usable = sources.filter(([, read, form]) => report.groups.some((group) => read(group).some(([, m]) => points(m, form).length > 1)));
  if (!usable.length) return;
  let source = usable[0], group = 0;
  figure(parent, {
    title, note, small: true, figures: { x, y },
    controls: (redraw) => [
      usable.length > 1 && choose("Of", usable.map(([name]) => [name, name]), (key) => { source = usable.find(([name]) => name === key); redraw(); }),
      report.groups.length > 1 && choose("Group", report.groups.map((g, i) => [i, g.name]), (i) => { group = Number(i); redraw(); }),
    ],
    draw: () => {
      const lines = source[1](report.groups[group]).map(([name, m]) => [name, points(m, source[2])]).filter(([, p]) => p.length);
      if (!lines.length) return { message: "This group has no such figures." };
      const all = [...new Set(lines.flatMap(([, p]) => p.map((point) => point[0])))];
      return { traces: lines.flatMap(([name, p], i) => line(name, p, style(i), { band: lines.length <= 4 })), legend: lines.length, layout: { xaxis: axis(x, ticks(all)), yaxis: axis(y, { tickformat: ".0%" }) } };
    },
  });
};

const passChart = (parent, report) => numberedChart(parent, report, {
  title: "pass@k by k", note: "The chance that at least one of k samples is correct. What larger k add is exploration.", x: "k", y: "pass@k",
  sources: [["training samples", trained, /explore\/pass@(\d+)$/], ["held-out samples", held, /^pass@(\d+)$/]],
  ticks: (all) => ({ type: "log", tickvals: all, ticktext: all.map(String) }),
});

const layerChart = (parent, report) => numberedChart(parent, report, {
  title: "Answers by layer", note: "What each layer would say along the greedy answer to a held-out problem.", x: "layer", y: "share of problems",
  sources: [["the last layer's answer", held, /^consistency\/layer_(\d+)$/], ["a right answer", held, /^accuracy\/layer_(\d+)$/]],
  ticks: (all) => (all.length <= 12 ? { dtick: 1 } : {}),
});

// Stacked bars, averaged over a group's runs. `parts(run)` has one entry a bar: [label, {part: value}]
const barChart = (parent, report, { title, note, order, paint, parts, y, relative, show }) => {
  const bars = (group) => {
    const found = new Map();
    for (const run of group.runs) {
      for (const [label, values] of parts(report.runs[run])) {
        const entry = found.get(label) ?? found.set(label, { n: 0, sums: {} }).get(label);
        entry.n += 1;
        for (const [part, value] of Object.entries(values)) entry.sums[part] = (entry.sums[part] ?? 0) + value;
      }
    }
    return [...found].map(([label, { n, sums }]) => [label, Object.fromEntries(Object.entries(sums).map(([part, sum]) => [part, sum / n]))]);
  };
  if (!report.groups.some((group) => bars(group).length)) return;
  let group = 0;
  figure(parent, {
    title, note: [note, report.runs.length > report.groups.length ? "Means over a group's runs." : ""].filter(Boolean).join(" "), small: true, figures: { x: "of", y },
    controls: (redraw) => [report.groups.length > 1 && choose("Group", report.groups.map((g, i) => [i, g.name]), (i) => { group = Number(i); redraw(); })],
    draw: () => {
      const drawn = bars(report.groups[group]);
      if (!drawn.length) return { message: "This group has none." };
      const used = order.filter((part) => drawn.some(([, values]) => values[part]));
      const traces = used.map((part, i) => ({
        type: "bar", name: part, x: drawn.map(([label]) => label), y: drawn.map(([, values]) => values[part] ?? 0), marker: { color: paint ? paint(part) : style(i).color },
        hovertemplate: `${part}, %{x}: %{customdata}<extra></extra>`, customdata: drawn.map(([, values]) => (show ?? number)(Math.abs(values[part] ?? 0))),
        series: part, figures: drawn.map(([label, values]) => [label, values[part] ?? 0]),
      }));
      return { traces, legend: Math.max(2, used.length), layout: { barmode: relative ? "relative" : "stack", bargap: 0.35, xaxis: axis("", { type: "category" }), yaxis: axis(y) } };
    },
  });
};

// A reliability diagram: for each score, the share of answers with it that are right, and how many there are
const wilson = (hits, n) => {
  const z = 1.96, p = hits / n, middle = p + (z * z) / (2 * n), spread = z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n));
  return [(middle - spread) / (1 + (z * z) / n), (middle + spread) / (1 + (z * z) / n)];
};
const calibrationChart = (parent, report, signal) => {
  const found = [...new Set(signal.rows.map((row) => row[1]))].sort((a, b) => a - b);
  const probability = signal.low === 0 && signal.high === 1;
  let picked = "all";
  const pooled = (group) => {
    const bins = new Map();
    for (const [run, round, rows] of signal.rows) {
      if (!report.groups[group].runs.includes(run) || (picked !== "all" && round !== Number(picked))) continue;
      for (const [bin, scores, right, n] of rows) {
        const sums = bins.get(bin) ?? bins.set(bin, [0, 0, 0]).get(bin);
        [scores, right, n].forEach((value, i) => { sums[i] += value; });
      }
    }
    return [...bins].sort((a, b) => a[0] - b[0]).map(([, sums]) => sums);
  };
  figure(parent, {
    title: `Calibration: ${signal.name}`, note: signal.note, figures: { x: "mean score", y: "share correct" },
    controls: (redraw) => [found.length > 1 && choose("Rounds", [["all", "all"], ...found.map((r) => [r, `round ${r}`])], (key) => { picked = key; redraw(); })],
    draw: () => {
      const traces = [];
      if (probability) traces.push({ x: [0, 1], y: [0, 1], mode: "lines", line: { color: colour("--dim"), dash: "dot", width: 1 }, hoverinfo: "skip", showlegend: false });
      let shown = 0;
      report.groups.forEach((group, i) => {
        const sums = pooled(i);
        if (!sums.length) return;
        shown += 1;
        const points = sums.map(([scores, right, n]) => [scores / n, right / n, ...wilson(right, n)]);
        const total = sums.reduce((all, [, , n]) => all + n, 0);
        const gap = sums.reduce((all, [scores, right]) => all + Math.abs(scores - right), 0) / total;
        const label = `n = ${grouped.format(total)}${probability ? `, ECE ${gap.toFixed(3)}` : ""}`;
        const { color } = style(i);
        traces.push({
          x: points.map((p) => p[0]), y: points.map((p) => p[1]), name: `${plain(group.name)}<br>${label}`, mode: "lines+markers", line: { color, width: 1.5 }, marker: { size: 8, color },
          error_y: { type: "data", symmetric: false, array: points.map((p) => p[3] - p[1]), arrayminus: points.map((p) => p[1] - p[2]), color, thickness: 1.2, width: 3 },
          customdata: sums.map((s) => s[2]), hovertemplate: `${plain(group.name)}<br>score %{x:.3f}: %{y:.0%} of %{customdata} correct<extra></extra>`, series: `${group.name}: ${label}`, figures: points,
        });
        traces.push({ type: "bar", x: points.map((p) => p[0]), y: sums.map((s) => s[2]), width: (signal.high - signal.low) / 24, yaxis: "y2", marker: { color: faded(color, 0.55) }, showlegend: false, hovertemplate: "%{y} answers<extra></extra>", series: `${group.name}: count`, figures: points.map((p, j) => [p[0], sums[j][2]]) });
      });
      if (!shown) return { message: "No such scores in this round." };
      const pad = (signal.high - signal.low) * 0.03;
      return { traces, legend: 2, layout: { barmode: "overlay", xaxis: axis(signal.name, { anchor: "y2", range: [signal.low - pad, signal.high + pad] }), yaxis: axis("share correct", { domain: [0.32, 1], range: [-0.03, 1.03], tickformat: ".0%" }), yaxis2: axis("count", { domain: [0, 0.22], rangemode: "tozero", nticks: 3 }) } };
    },
  });
};
