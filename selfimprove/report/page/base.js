// Shared helpers: elements that hold text only, figures as words, and the compressed data of this file.

// An element. Its children are elements or text. Text never becomes markup, whatever a model wrote.
const el = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
};

// The text of a compressed block of this file. With `take` the block is removed, since it is not needed again.
const text = async (id, take = false) => {
  const holder = document.getElementById(id);
  const coded = holder.textContent;
  if (take) holder.remove();
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(coded) : Uint8Array.from(atob(coded), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};

const percent = (value, digits = 1) => (100 * value).toFixed(digits);
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

const number = (value) => {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e8) return value.toExponential(2);
  if (size >= 100 || Number.isInteger(value)) return grouped.format(value);
  return size >= 0.001 ? value.toPrecision(3) : value.toExponential(1);
};

const duration = (seconds) => {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
};

// A table's cell: a number, text, or [value, low, high]. Gives what is shown and what the column is sorted by.
const KINDS = {
  text: (value) => value,
  number,
  seconds: duration,
  percent: (value) => percent(value),
  points: (value) => (value > 0 ? "+" : "") + percent(value),
  gain: (value) => (value > 0 ? "+" : "") + number(value),
};
const sortable = (cell) => (Array.isArray(cell) ? cell[0] : cell);
const cell = (value, kind) => {
  if (value === null || value === undefined) return ["–"];
  const show = KINDS[kind] ?? number;
  if (!Array.isArray(value)) return [typeof value === "string" ? value : String(show(value))];
  const [middle, low, high] = value;
  const apart = (kind === "points" || kind === "gain") && (low > 0 || high < 0) ? "*" : "";
  return low === undefined ? [show(middle)] : [show(middle), el("small", {}, ` [${show(low)}, ${show(high)}]${apart}`)];
};

// A table. A click on a column's head sorts it, if there is anything to sort.
const UNITS = { percent: " %", points: ", points" };
const table = ({ caption, columns, rows, tall }) => {
  const body = el("tbody");
  const heads = columns.map((column, i) => {
    const label = column.label + (UNITS[column.kind] ?? "");
    const sort = rows.length > 1 && el("button", { type: "button", onclick: () => order(i) }, label);
    return el("th", { scope: "col", class: column.kind === "text" ? "text" : null }, sort || label);
  });
  const fill = (sorted) =>
    body.replaceChildren(
      ...sorted.map((row) =>
        el("tr", {}, row.map((value, i) => {
          const kind = columns[i].kind;
          const title = kind === "text" ? value : null;
          return i === 0 ? el("th", { scope: "row", title }, cell(value, kind)) : el("td", { class: kind === "text" ? "text" : null, title }, cell(value, kind));
        })),
      ),
    );
  const order = (i) => {
    const down = heads[i].getAttribute("aria-sort") === (columns[i].kind === "text" ? "ascending" : null);
    const ascending = columns[i].kind === "text" ? !down : heads[i].getAttribute("aria-sort") === "descending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[i].setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const key = (row) => sortable(row[i]);
    const missing = (value) => value === null || value === undefined;
    fill(
      [...rows].sort((a, b) => {
        const [one, other] = [key(a), key(b)];
        if (missing(one) || missing(other)) return missing(one) - missing(other);
        if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
        const difference = typeof one === "number" ? one - other : String(one).localeCompare(String(other), "en", { numeric: true });
        return ascending ? difference : -difference;
      }),
    );
  };
  fill(rows);
  return el("div", { class: tall ? "scroll tall" : "scroll", tabindex: "0", role: "region", "aria-label": caption ?? "table" },
    el("table", {}, caption ? el("caption", {}, caption) : null, el("thead", {}, el("tr", {}, heads)), body));
};

const choose = (label, options, onchange, value) => {
  const select = el("select", { onchange: () => onchange(select.value) }, options.map(([key, name]) => el("option", { value: key }, name)));
  if (value !== undefined) select.value = value;
  return el("label", {}, label, select);
};

const tick = (label, checked, onchange) => {
  const box = el("input", { type: "checkbox", checked, onchange: () => onchange(box.checked) });
  return el("label", {}, box, label);
};
