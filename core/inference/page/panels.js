"use strict";
/* What panels are built from. Every name reaches the page as text (textContent), never as markup. */
const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
};
const SVG = "http://www.w3.org/2000/svg";
const svg = (tag, attributes = {}, ...children) => {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const byId = (id) => document.getElementById(id);
const show = (id, ...children) => byId(id).querySelector(".body").replaceChildren(...children.filter(Boolean));
const named = (text) => el("span", { className: "name", title: text, dir: "auto" }, text);
const fixed = (v, digits = 2) => (Math.abs(v) < 0.5 * 10 ** -digits ? 0 : v).toFixed(digits).replace("-", "−");
const signed = (v, digits = 2) => (v > 0 && fixed(v, digits) !== fixed(0, digits) ? "+" : "") + fixed(v, digits);
/* digits that leave about three to be read, by the largest of some numbers */
const digitsOf = (most) => Math.max(0, 2 - Math.floor(Math.log10(most || 1)));

/* Orange for, blue against, transparent where there is none: also to colour-blind eyes, and on grey. */
const FOR = "#e07b00", AGAINST = "#0063c7", COVER = 0.85;
const coverOf = (value, scale) => COVER * Math.min(1, Math.abs(value) / (scale || 1));
function drawMap(canvas, cells, [h, w], scale, smooth) {
  [canvas.width, canvas.height] = [w, h];
  canvas.style.imageRendering = smooth ? "auto" : "pixelated";
  const pen = canvas.getContext("2d");
  cells.forEach((value, r) => {
    pen.globalAlpha = coverOf(value, scale);
    pen.fillStyle = value < 0 ? AGAINST : FOR;
    pen.fillRect(r % w, Math.floor(r / w), 1, 1);
  });
}
function legend(scale) {
  const digits = digitsOf(scale), of = (v) => `${signed(v, digits)} points`;
  return el("div", { id: "legend", role: "img", ariaLabel: `Colours: blue ${of(-scale)} in a cell, against; orange ${of(scale)}, for` },
    el("div", { className: "strip" }), el("span", {}, `${of(-scale)}, against`), el("span", {}, "0"), el("span", {}, `for, ${of(scale)}`));
}
/* a horizontal bar from the middle: right and orange for, left and blue against; one-sided: from the left edge */
function bar(value, scale, oneSided) {
  const inner = el("span"), share = Math.min(1, Math.abs(value) / (scale || 1));
  inner.style.width = `${(oneSided ? 100 : 50) * share}%`;
  inner.style[value < 0 ? "right" : "left"] = oneSided ? "0" : "50%";
  if (value < 0) inner.className = "minus";
  return el("div", { className: oneSided ? "bar left" : "bar" }, inner);
}
/* What a photograph shows of an attribute, in words: "less red than usual" speaks for a class that has less of it. */
const reason = (image, i) => Model.D[image.g[i] < 0 ? "less" : "more"][i];
/* The attributes that add most and take most, and the others as one row, so that what is shown adds up. */
function rowsOf(image, values, most, least) {
  const order = Array.from(values.keys()).sort((a, b) => values[b] - values[a]);
  const up = order.filter((i) => values[i] > 0).slice(0, most), down = order.filter((i) => values[i] < 0).slice(-least);
  const taken = new Set([...up, ...down]), rest = order.filter((i) => !taken.has(i));
  const rows = (list) => list.map((i) => ({ i, name: reason(image, i), value: values[i] }));
  const others = { i: -1, name: `${rest.length} others`, value: rest.reduce((sum, i) => sum + values[i], 0) };
  return { up: rows(up), down: rows(down), others: rest.length ? [others] : [] };
}

/* One figure for saving: photograph and map on the left, bars on the right. */
function figure(title, lines, picture, size, crop, cells, scale, rows, total) {
  const side = 320, line = 18, width = 980, high = side * (size[1] / size[0]), height = Math.max(high + 100, 80 + line * (rows.length + 2));
  const root = svg("svg", { xmlns: SVG, viewBox: `0 0 ${width} ${height}`, width, height, "font-family": "sans-serif", "font-size": 12 });
  const write = (x, y, text, more = {}) => {
    const node = svg("text", { x, y, fill: "#1b1f24", ...more });
    node.textContent = text.length > 100 ? `${text.slice(0, 99)}…` : text;
    root.append(node);
  };
  root.append(svg("rect", { width, height, fill: "#fff" }));
  write(20, 26, title, { "font-size": 15, "font-weight": "bold" });
  root.append(svg("image", { x: 20, y: 45, width: side, height: high, href: picture }));
  const [x, y, w, h] = [20 + side * crop[0], 45 + high * crop[1], side * crop[2], high * crop[3]];
  if (cells) {
    const [down, across] = Model.D.grid;
    cells.forEach((value, r) => root.append(svg("rect", { x: x + (w / across) * (r % across), y: y + (h / down) * Math.floor(r / across),
      width: w / across, height: h / down, fill: value < 0 ? AGAINST : FOR, "fill-opacity": coverOf(value, scale) })));
  }
  root.append(svg("rect", { x, y, width: w, height: h, fill: "none", stroke: "#fff", "stroke-dasharray": "4 3" }));
  lines.forEach((text, n) => write(20, high + 64 + 16 * n, text.slice(0, 55)));
  const longest = Math.max(...rows.map((r) => Math.abs(r.value)), 1e-12), middle = 800, half = 110;
  rows.forEach((r, n) => {
    const top = 52 + line * n, length = (half * Math.abs(r.value)) / longest;
    write(middle - half - 10, top + 11, r.name.slice(0, 50), { "text-anchor": "end" });
    root.append(svg("rect", { x: r.value < 0 ? middle - length : middle, y: top, width: length, height: line - 5, fill: r.value < 0 ? AGAINST : FOR }));
    write(width - 10, top + 11, signed(r.value, 2), { "text-anchor": "end" });
  });
  write(width - 10, 70 + line * rows.length, `sum ${fixed(total, 2)}`, { "text-anchor": "end", "font-weight": "bold" });
  return new XMLSerializer().serializeToString(root);
}
function save(name, blob) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
/* a spreadsheet takes = + - @ at the beginning of a name for a formula */
const cell = (v) => (typeof v === "number" ? String(v) : `"${(/^[=+\-@\t]/.test(v) ? "'" : "") + v.replace(/"/g, '""')}"`);
const csv = (rows) => "\ufeff" + rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
