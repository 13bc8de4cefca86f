// The explorer: a run's problems, and every round's answers to each with verdicts, turns and search trees.

const MARKS = { correct: "✓", wrong: "✗", unparseable: "?", timeout: "⌛", error: "!" };
const LISTED = 300; // problems drawn in the list at once

const badge = (status) => el("span", { class: `status ${STATUSES[status]}` }, `${MARKS[STATUSES[status]]} ${STATUSES[status]}`);

const explorer = (parent, report) => {
  const runs = report.runs.map((run, i) => [i, run]).filter(([, run]) => run.block);
  if (!runs.length) {
    parent.append(el("p", { class: "empty" }, "No answer has a verdict yet."));
    return;
  }
  const loaded = new Map(); // run -> its block; only the last one is kept, since they are large
  let data = null, chosen = -1, shown = [], limit = LISTED, found = null;
  const filter = { split: "", status: "", place: "", text: "" };

  const list = el("div", { class: "list", role: "listbox", "aria-label": "Problems", tabindex: "-1" });
  const detail = el("article", { class: "detail", "aria-live": "polite", "aria-label": "Problem" });
  const count = el("span", { class: "note", role: "status" });
  const search = el("input", { type: "search", placeholder: "text of problem or answer", size: 22, "aria-keyshortcuts": "/" });
  const left = el("p", { class: "note" });
  const places = el("select", { onchange: () => { filter.place = places.value; refresh(); } });
  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { filter.text = search.value.trim().toLowerCase(); refresh(); }, 150);
  });
  parent.append(
    el("div", { class: "controls" }, [
      runs.length > 1 && choose("Run", runs.map(([i, run]) => [i, run.name]), (i) => open(Number(i))),
      choose("Problems", [["", "train and held-out"], ["train", "train"], ["test", "held-out"]], (key) => { filter.split = key; refresh(); }),
      el("label", {}, "Answers of", places),
      choose("Verdict", [["", "any"], ...STATUSES.map((status, i) => [i, status])], (key) => { filter.status = key; refresh(); }),
      el("label", {}, "Search", search),
      count,
    ].filter(Boolean)),
    el("p", { class: "note" }, "Keys: / searches; j and k, or the arrow keys, go to the next and the previous problem."),
    left,
    el("div", { class: "explorer" }, list, detail),
  );

  // Rows of a problem that pass the filters: [problem, place, status, reward, extracted, reason, decoding, used, samples, metadata, step rewards]
  const passes = (row) => (filter.place === "" || row[1] === Number(filter.place)) && (filter.status === "" || row[2] === Number(filter.status));
  const says = (row) => found.has(row[4]) || found.has(row[5]) || row[8].some((sample) => found.has(sample[0]) || found.has(sample[6]));

  const load = async (run) => {
    if (!loaded.has(run)) {
      const block = JSON.parse(await text(report.runs[run].block));
      block.of = block.problems.map(() => []);
      block.rows.forEach((row, i) => block.of[row[0]].push(i));
      loaded.clear();
      loaded.set(run, block);
    }
    return loaded.get(run);
  };

  const open = async (run) => {
    const known = data?.problems[chosen]?.[0];
    data = await load(run);
    const { total } = data;
    const cut = data.problems.length < total.problems || data.rows.length < total.trajectories;
    left.textContent = `${grouped.format(data.problems.length)} of ${grouped.format(total.problems)} problems and ${grouped.format(data.rows.length)} of ${grouped.format(total.trajectories)} answers of this run are shown${cut ? "; the run folder has the rest" : ""}.`;
    places.replaceChildren(...[["", "any round"], ...data.places.map(([label], i) => [i, label])].map(([key, name]) => el("option", { value: key }, name)));
    filter.place = "";
    chosen = data.problems.findIndex((problem) => problem[0] === known); // the same problem in another run
    refresh();
  };

  const refresh = () => {
    limit = LISTED;
    found = filter.text ? new Set(data.texts.flatMap((said, i) => ((typeof said === "string" ? said : said[0]).toLowerCase().includes(filter.text) ? [i] : []))) : null;
    const rowwise = filter.place !== "" || filter.status !== "";
    shown = data.problems.flatMap((problem, i) => {
      if (filter.split && problem[1] !== filter.split) return [];
      const rows = data.of[i].filter((row) => passes(data.rows[row]));
      if (rowwise && !rows.length) return [];
      const asked = found && (problem[0].toLowerCase().includes(filter.text) || problem[2].some((turn) => found.has(turn[1])) || found.has(problem[3]));
      return !found || asked || rows.some((row) => says(data.rows[row])) ? [i] : [];
    });
    count.textContent = `${grouped.format(shown.length)} ${shown.length === 1 ? "problem" : "problems"}`;
    if (!shown.includes(chosen)) chosen = shown[0] ?? -1;
    names();
    show();
  };

  const words = (number) => {
    const said = number < 0 ? "" : data.texts[number];
    return typeof said === "string" ? said : said[0];
  };
  const full = (number) => {
    const said = data.texts[number];
    return typeof said === "string" ? [said] : [said[0], el("em", {}, ` … (the first ${grouped.format(said[0].length)} of ${grouped.format(said[1])} characters)`)];
  };

  // One mark for each evaluation's greedy answer, or the share of correct answers in each round
  const history = (problem) => {
    const rows = data.of[problem].map((i) => data.rows[i]);
    return data.places.flatMap(([, , heldout], place) => {
      const here = rows.filter((row) => row[1] === place);
      if (!here.length) return [];
      if (heldout) {
        const greedy = here.find((row) => words(row[6]) === "greedy") ?? here[0];
        return [el("span", { class: `status ${STATUSES[greedy[2]]}` }, MARKS[STATUSES[greedy[2]]])];
      }
      return [el("span", {}, `${here.filter((row) => row[2] === 0).length}/${here.length} `)];
    });
  };

  const names = () => {
    list.replaceChildren(
      ...shown.slice(0, limit).map((i) => {
        const [id, split, turns] = data.problems[i];
        return el("button", { type: "button", role: "option", tabindex: i === chosen ? "0" : "-1", "aria-selected": String(i === chosen), "data-problem": i, onclick: () => pick(i) },
          el("span", { class: "name" }, el("span", {}, `${id} · ${split === "test" ? "held-out" : split}`), el("span", { class: "dots" }, history(i))),
          el("span", { class: "ask" }, words(turns.at(-1)?.[1] ?? -1).trim().slice(0, 160)));
      }),
      ...(shown.length > limit ? [el("button", { type: "button", onclick: () => { limit += LISTED; names(); } }, `Show more (${grouped.format(shown.length - limit)} left)`)] : []),
    );
  };

  const pick = (problem, focus) => {
    const before = list.querySelector("[aria-selected=true]");
    before?.setAttribute("aria-selected", "false");
    before?.setAttribute("tabindex", "-1");
    chosen = problem;
    while (shown.indexOf(problem) >= limit) { limit += LISTED; names(); }
    const button = list.querySelector(`[data-problem="${problem}"]`);
    button?.setAttribute("aria-selected", "true");
    button?.setAttribute("tabindex", "0");
    if (focus) button?.focus({ preventScroll: true });
    if (button) list.scrollTop = Math.min(Math.max(list.scrollTop, button.offsetTop - list.offsetTop + button.offsetHeight - list.clientHeight), button.offsetTop - list.offsetTop);
    show();
  };
  const step = (by, focus) => {
    const next = shown[shown.indexOf(chosen) + by];
    if (next !== undefined) pick(next, focus);
  };
  list.addEventListener("keydown", (event) => {
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    const at = shown.indexOf(chosen);
    if (event.key in moves) step(Math.max(-at, Math.min(shown.length - 1 - at, moves[event.key])), true);
    else if (event.key === "Home") step(-at, true);
    else if (event.key === "End") step(shown.length - 1 - at, true);
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea")) return;
    if (event.key === "/") { event.preventDefault(); search.focus(); }
    else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
  });

  const turn = (who, body) => el("div", { class: "turn" }, who && el("div", { class: "who" }, who), el("pre", {}, body));

  const answer = (number, wide, where) => {
    const [, , status, reward, extracted, reason, decoding, used, samples, metadata, steps] = data.rows[number];
    const several = samples.length > 1;
    const tokens = samples.reduce((sum, sample) => sum + sample[1], 0);
    const facts = [`reward ${figure_(reward)}`, `${grouped.format(tokens)} tokens`];
    if (words(decoding)) facts.push(words(decoding));
    if (steps.length) facts.push(`step rewards ${steps.map(figure_).join(", ")}`);
    if (!several && samples[0]?.[2]) facts.push("ran into the token limit");
    return el("div", { class: wide ? "answer wide" : "answer" },
      where && el("div", { class: "where" }, where),
      el("div", {}, badge(status), " ", extracted >= 0 ? el("span", {}, "answer ", el("code", {}, words(extracted))) : el("span", { class: "note" }, "no answer extracted"),
        used === 1 ? [" ", el("span", { class: "tag" }, "trained on")] : used === 2 ? [" ", el("span", { class: "tag" }, "trained on as rejected")] : null),
      samples.map(([said, length, cut, role, version, temperature, asked = -1], i) => [
        asked >= 0 ? turn("asked", full(asked)) : null,
        turn(several ? `turn ${i + 1} · ${words(role)} v${version} · temperature ${temperature} · ${grouped.format(length)} tokens${cut ? " · ran into the limit" : ""}` : null, full(said)),
      ]),
      el("div", { class: "facts" }, facts.join(" · ")),
      reason >= 0 ? el("details", { class: "facts" }, el("summary", {}, "verifier's word"), el("pre", {}, full(reason))) : null,
      metadata >= 0 ? el("details", { class: "facts" }, el("summary", {}, "metadata"), el("pre", {}, full(metadata))) : null,
      data.trees[number] ? tree(data.trees[number]) : null);
  };
  const figure_ = (value) => (value === null ? "–" : number(value));

  // [parent, text, visits, prior, q, value, reward, terminal + 2 chosen, status, tokens, observed]; a branch is drawn
  // when the reader opens it
  const tree = (nodes) => {
    const below = nodes.map(() => []);
    nodes.forEach(([parent], i) => parent >= 0 && below[parent].push(i));
    const branch = (i) => {
      const [, said, visits, prior, q, value, , flags, status, , seen = -1] = nodes[i];
      const label = [
        el("span", { class: "step" }, flags & 2 ? "★ " : "", i === 0 ? "start" : words(said).trim() || "(blank)"),
        el("span", { class: "figures" }, i === 0 ? `  N ${visits}` : `  N ${visits} · Q ${figure_(q)} · v ${figure_(value)} · p ${figure_(prior)} `),
        flags & 1 ? (status >= 0 ? badge(status) : el("span", { class: "figures" }, "end")) : null,
        seen >= 0 ? el("div", { class: "figures" }, `→ ${words(seen).trim()}`) : null,
      ];
      const item = el("li");
      const kind = flags & 2 ? "chosen" : "";
      if (!below[i].length) {
        item.append(el("div", { class: `leaf ${kind}` }, label));
        return item;
      }
      const children = el("ul");
      const fill = () => { if (!children.childElementCount) children.append(...below[i].map(branch)); };
      const node = el("details", { class: kind, ontoggle: fill }, el("summary", {}, label), children);
      if (i === 0 || flags & 2) { node.open = true; fill(); }
      item.append(node);
      return item;
    };
    return el("div", { class: "tree" }, el("div", { class: "where" }, `search tree, ${grouped.format(nodes.length - 1)} steps; ★ and the marked text: the path that was chosen`), el("ul", {}, branch(0)));
  };

  const show = () => {
    if (chosen < 0) {
      detail.replaceChildren(el("p", { class: "empty" }, "No problem fits these filters."));
      return;
    }
    const [id, split, turns, gold] = data.problems[chosen];
    const at = shown.indexOf(chosen);
    const rows = data.of[chosen].filter((row) => passes(data.rows[row]));
    const greedy = rows.filter((row) => words(data.rows[row][6]) === "greedy");
    const others = rows.filter((row) => !greedy.includes(row));
    const left_out = data.of[chosen].length - rows.length;
    const budget = { rows: 32 };
    detail.replaceChildren(...[
      el("header", {}, el("h3", {}, id), el("span", { class: "tag" }, split === "test" ? "held-out" : split),
        el("span", { class: "go" },
          el("button", { type: "button", class: "plain", disabled: at <= 0, onclick: () => step(-1) }, "‹ Previous"),
          el("button", { type: "button", class: "plain", disabled: at >= shown.length - 1, onclick: () => step(1) }, "Next ›"))),
      ...turns.map(([role, said]) => turn(role, full(said))),
      gold >= 0 ? el("p", {}, "Gold answer: ", el("code", {}, full(gold))) : el("p", { class: "note" }, "No gold answer."),
      greedy.length ? el("h3", {}, "Greedy answers, round by round") : null,
      greedy.length ? el("div", { class: "sides", tabindex: "0", role: "region", "aria-label": "Greedy answers side by side" }, greedy.map((row) => answer(row, false, data.places[data.rows[row][1]][0].replace(": held-out", "")))) : null,
      ...data.places.map(([label], place) => {
        const here = others.filter((row) => data.rows[row][1] === place);
        if (!here.length) return null;
        const right = here.filter((row) => data.rows[row][2] === 0).length;
        const body = el("div", { class: "answers" });
        const fill = () => { if (!body.childElementCount) body.append(...here.map((row) => answer(row, Boolean(data.trees[row]) || data.rows[row][8].length > 1))); };
        const group = el("details", { class: "place", ontoggle: fill }, el("summary", {}, `${label} `, el("small", {}, `${here.length} ${here.length === 1 ? "answer" : "answers"}, ${right} correct`)), body);
        if (budget.rows > 0) { group.open = true; fill(); }
        budget.rows -= here.length;
        return group;
      }),
      left_out ? el("p", { class: "note" }, `${left_out} more answers to this problem do not fit the filters.`) : null,
    ].filter(Boolean));
  };

  return open(runs[0][0]);
};
