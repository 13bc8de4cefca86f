// The page from top to bottom: the runs, curves, exploration, calibration, changes, the explorer.

const main = document.getElementById("main");
const section = (id, title, note, short = title) => {
  const made = el("section", { id }, el("h2", {}, title), note && el("p", { class: "note" }, note));
  main.append(made);
  document.getElementById("nav").append(el("a", { href: `#${id}` }, short));
  return made;
};
const script = (code) => document.head.append(el("script", {}, code));

const overview = (report) => {
  const made = section("overview", "Overview");
  report.warnings.forEach((said) => made.append(el("p", { class: "warning" }, said)));
  report.said.forEach((said) => made.append(el("p", { class: "said" }, said)));
  if (report.cards.length) {
    made.append(el("dl", { class: "cards" }, report.cards.map(([name, value, more]) => el("div", {}, el("dt", {}, name), el("dd", {}, value, more && el("small", {}, more))))));
  }
  report.tables.forEach((one) => made.append(el("div", {}, el("h3", {}, one.title), one.note && el("p", { class: "note" }, one.note), table(one))));
};

const curves = (report) => {
  const made = section("curves", "Curves");
  scoreChart(made, report);
  stepChart(made, report);
  layerChart(made, report);
};

const exploration = (report) => {
  const made = section("exploration", "Exploration and exploitation", "How different each round's attempts at its training problems were, and what the filter kept of them.", "Exploration");
  const grid = el("div", { class: "two" });
  made.append(grid);
  passChart(grid, report);
  metricChart(grid, report, {
    title: "Distinct answers and solutions", note: "How many different ones a problem's attempts have, means over problems.", unit: "a problem", small: true,
    metrics: ["answers", "solutions", "correct"].map((name) => [`filter/explore/distinct_${name}`, name === "correct" ? "distinct correct solutions" : `distinct ${name}`]),
  });
  metricChart(grid, report, {
    title: "Reward: kept against available", note: "Mean reward of all attempts, of those that training imitates, and of each problem's best.", unit: "reward", small: true,
    metrics: [["filter/exploit/kept_reward", "kept"], ["filter/exploit/available_reward", "available"], ["filter/exploit/best_reward", "best of a problem"]],
  });
  metricChart(grid, report, { title: "Share kept for training", unit: "share kept", small: true, metrics: [["filter/exploit/keep_rate", "kept attempts / attempts"]] });
  if (!grid.childElementCount) made.append(el("p", { class: "empty" }, "No round has reached its filter yet."));
};

const calibration = (report) => {
  if (!report.calibration.length) return;
  const made = section("calibration", "Calibration of self-evaluation", "How much an answer or a step is worth by the method's own score, which reads no gold answer, and how often such answers are right. Bars: Wilson's 95 % interval. Answers to one problem are alike, so the interval is somewhat too narrow.", "Calibration");
  const grid = el("div", { class: "two" });
  made.append(grid);
  report.calibration.forEach((signal) => calibrationChart(grid, report, signal));
};

const changes = (report) => {
  const made = section("changes", "What changed");
  const grid = el("div", { class: "two" });
  made.append(grid);
  const held = ["wrong → right", "right → wrong"];
  barChart(grid, report, {
    title: "Transitions between evaluations", note: "Held-out problems whose score rose (above zero) or fell (below zero). For an accuracy: they became right or wrong.", order: held, relative: true, y: "problems",
    paint: (part) => colour(part === held[0] ? "--correct" : "--wrong"),
    parts: (run) => run.transitions.map(([gained, lost], i) => [i ? `round ${i - 1} → ${i}` : "base → 0", { [held[0]]: gained, [held[1]]: -lost }]),
  });
  barChart(grid, report, {
    title: "Verdicts on training answers", order: STATUSES, y: "answers", paint: (part) => colour(`--${part}`), parts: (run) => run.verdicts.map((counts, i) => [`round ${i}`, counts]),
  });
  barChart(grid, report, { title: "Seconds by phase", order: PHASES, y: "seconds", show: duration, parts: (run) => run.seconds.map((spent, i) => [`round ${i}`, spent]) });
  const names = [...new Set(report.groups.flatMap((group) => group.rounds.flatMap((r) => Object.keys(r.m))))].sort();
  metricChart(grid, report, {
    title: "Drift from the base policy", note: "Estimated KL(policy || base policy) in nats, on sampled answers to held-out problems.", small: true, apart: true,
    metrics: [["drift/kl_per_token", "KL per token"], ["drift/kl_per_answer", "KL per answer"]],
  });
  metricChart(grid, report, {
    title: "Forgetting: the second data set", note: "Greedy accuracy on the held-out problems of eval.also, and its paired change from the base policy.", small: true, apart: true,
    metrics: [["also/accuracy", "accuracy"], ["also/change", "change from base"]],
  });
  let picked = names.includes("train/loss") ? "train/loss" : names[0];
  if (names.length) {
    figure(grid, {
      title: "Any figure of a round", note: "What rounds/NNN/metrics.json holds.", small: true, figures: { x: "round", y: "value" },
      controls: (redraw) => [choose("Figure", names.map((name) => [name, name]), (key) => { picked = key; redraw(); }, picked)],
      draw: () => {
        const lines = report.groups.map((group) => [group.name, series(group, picked)]);
        return { traces: lines.flatMap(([name, points], i) => (points.length ? line(name, points, style(i)) : [])), legend: lines.length, layout: { xaxis: rounds("round", Math.max(...lines.map(([, p]) => p.at(-1)?.[0] ?? 0))), yaxis: axis("", axisOf([picked])) } };
      },
    });
  }
  if (!grid.childElementCount) made.append(el("p", { class: "empty" }, "No round is done yet."));
};

const provenance = (report) => {
  const made = section("provenance", "What was run", null, "Runs");
  report.runs.forEach((run) => made.append(el("details", { open: report.runs.length === 1 }, el("summary", {}, run.name), el("dl", { class: "facts" }, run.facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, name === "command" ? el("code", {}, value) : value)])))));
};

const trouble = (problem) => {
  const said = document.getElementById("trouble");
  said.hidden = false;
  said.textContent = `This page could not be built: ${problem.message}. It needs a browser of 2023 or newer.`;
};
try {
  const report = JSON.parse(await text("report", true));
  document.getElementById("foot").textContent = report.foot;
  overview(report);
  script(await text("plotly", true));
  curves(report);
  exploration(report);
  calibration(report);
  changes(report);
  const browse = section("explorer", "Explorer", "Problems with every round's answers, as they were sampled.");
  provenance(report);
  await explorer(browse, report);
  main.setAttribute("aria-busy", "false");
  performance.mark("ready");
} catch (problem) {
  trouble(problem);
  throw problem;
}
