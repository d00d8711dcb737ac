"use strict";
/* What panels are built from. Every name reaches the page as text (textContent), never as markup. */
const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && key !== "list") node[key] = value;
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
const body = (id) => byId(id).querySelector(".body");
const show = (id, ...children) => body(id).replaceChildren(...children.filter(Boolean));
const plain = (text) => text.replace(/^has_/, "").replace(/::/g, ": ").replace(/_/g, " ");
const named = (text) => el("span", { className: "name", title: text, dir: "auto" }, text);
const fixed = (v, digits = 2) => (Object.is(v, -0) || Math.abs(v) < 0.5 * 10 ** -digits ? 0 : v).toFixed(digits).replace("-", "−");
const signed = (v, digits = 2) => (v > 0 && fixed(v, digits) !== fixed(0, digits) ? "+" : "") + fixed(v, digits);
const percent = (v) => `${v < 0.995 ? (100 * v).toPrecision(2) : Math.round(100 * v)} %`;

/* viridis: equal steps look equal, in grey and to colour-blind eyes too */
const STOPS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121],
  [110, 206, 88], [181, 222, 43], [253, 231, 37]];
function viridis(share) {
  const at = Math.max(0, Math.min(1, share)) * (STOPS.length - 1), low = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[low].map((v, i) => Math.round(v + (STOPS[low + 1][i] - v) * (at - low)));
}
/* cells of 0..255 onto a canvas of as many pixels; the style sheet stretches it, by squares or smoothed */
function drawMap(canvas, cells, h, w, smooth) {
  [canvas.width, canvas.height] = [w, h];
  canvas.style.imageRendering = smooth ? "auto" : "pixelated";
  const pixels = new ImageData(w, h);
  cells.forEach((v, i) => pixels.data.set([...viridis(v / 255), 255], 4 * i));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}
function legend(largest, uniform) {
  const at = 100 * Math.min(1, uniform / largest), strip = el("div", { className: "strip" }), mark = el("i"), label = el("span", {}, `uniform ${percent(uniform)}`);
  strip.style.background = `linear-gradient(90deg, ${STOPS.map((rgb) => `rgb(${rgb.join(",")})`).join(",")})`;
  mark.style.left = `${at}%`;
  label.style.left = `${Math.max(22, Math.min(75, at))}%`;
  return el("div", { id: "legend", role: "img", ariaLabel: `Colour scale from 0 to ${percent(largest)}; uniform attention is ${percent(uniform)}` },
    strip, mark, at > 12 ? el("span", { className: "first" }, "0") : null, label, el("span", { className: "last" }, percent(largest)));
}
/* a horizontal bar from the middle: right and blue for, left and orange against; one-sided: from the left edge */
function bar(value, scale, oneSided) {
  const inner = el("span"), share = Math.min(1, Math.abs(value) / (scale || 1));
  inner.style.width = `${(oneSided ? 100 : 50) * share}%`;
  inner.style[value < 0 ? "right" : "left"] = oneSided ? "0" : "50%";
  if (value < 0) inner.className = "minus";
  return el("div", { className: oneSided ? "bar left" : "bar" }, inner);
}
/* The largest parts by size, and the others as one, so that what is shown adds up. */
function largest(values, count, names) {
  const order = Array.from(values.keys()).sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]));
  const rows = order.slice(0, count).sort((a, b) => values[b] - values[a]).map((i) => ({ i, name: names[i], value: values[i] }));
  const rest = order.slice(count);
  if (rest.length) rows.push({ i: -1, name: `${rest.length} others`, value: rest.reduce((sum, i) => sum + values[i], 0) });
  return rows;
}
/* Rows of all that adds up to a score: attributes, seen classes, corrections, gamma. */
function rowsOf(parts, counts) {
  const M = Model, rows = largest(parts.attributes, counts[0], M.D.attributes.map(plain)).map((r) => ({ ...r, kind: "attribute" }));
  if (parts.mixed.length) rows.push(...largest(parts.mixed, counts[1], M.seenNames).map((r) => ({ ...r, kind: "class" })));
  if (M.images[0].own) rows.push({ i: -1, name: parts.ownName || "corrections: images of seen classes, and nearness to them", value: parts.own, kind: "own" });
  rows.push({ i: -1, name: parts.gammaName || "γ, added to classes without training images", value: parts.gamma, kind: "gamma" });
  return rows;
}
const GROUPS = { attribute: "Attributes", class: "Seen classes in the mixture", own: "Corrections", gamma: "γ" };

/* One figure for saving: photograph and map on the left, bars on the right. */
function figure(title, lines, picture, cells, grid, rows, total) {
  const side = 300, line = 18, width = 960, height = Math.max(side + 90, 70 + line * (rows.length + 2));
  const root = svg("svg", { xmlns: SVG, viewBox: `0 0 ${width} ${height}`, width, height, "font-family": "sans-serif", "font-size": 12 });
  const write = (x, y, text, more = {}) => {
    const cut = text.length > 46 && !more.whole ? `${text.slice(0, 45)}…` : text;
    const node = svg("text", { x, y, fill: "#1b1f24", ...more });
    node.textContent = cut;
    root.append(node);
  };
  root.append(svg("rect", { width, height, fill: "#fff" }));
  write(20, 26, title.slice(0, 120), { "font-size": 15, "font-weight": "bold", whole: 1 });
  if (picture) root.append(svg("image", { x: 20, y: 45, width: side, height: side, preserveAspectRatio: "none", href: picture }));
  if (cells) {
    const [h, w] = grid;
    cells.forEach((v, i) => root.append(svg("rect", { x: 20 + (side / w) * (i % w), y: 45 + (side / h) * Math.floor(i / w),
      width: side / w, height: side / h, fill: `rgb(${viridis(v / 255).join(",")})`, "fill-opacity": 0.55 })));
  }
  lines.forEach((text, i) => write(20, side + 64 + 16 * i, text));
  const scale = Math.max(...rows.map((r) => Math.abs(r.value)), 1e-12), middle = 760, half = 120;
  rows.forEach((r, n) => {
    const y = 52 + line * n, length = (half * Math.abs(r.value)) / scale;
    write(615, y + 11, r.name, { "text-anchor": "end" });
    root.append(svg("rect", { x: r.value < 0 ? middle - length : middle, y, width: length, height: line - 5, fill: r.value < 0 ? "#e69f00" : "#0072b2" }));
    write(width - 15, y + 11, signed(r.value, 3), { "text-anchor": "end" });
  });
  root.append(svg("line", { x1: middle, x2: middle, y1: 48, y2: 52 + line * rows.length, stroke: "#57606a" }));
  write(width - 15, 70 + line * rows.length, `sum ${fixed(total, 3)}`, { "text-anchor": "end", "font-weight": "bold" });
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
