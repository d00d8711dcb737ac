"use strict";
const M = Model, D = M.D, R = D.grid ? D.grid[0] * D.grid[1] : 0;
const state = { image: M.images[0], among: "all", chosen: null, attribute: 0, smooth: false, map: true, all: false,
  a: null, b: null, edited: null, changing: 0, value: null };
const loaded = new Map(), waiting = new Map();
window.pageImage = (number, content) => {
  const raw = atob(content.maps);
  loaded.set(number, { maps: Uint8Array.from(raw, (c) => c.charCodeAt(0)), picture: `data:image/jpeg;base64,${content.picture}` });
};
const fileOf = (image, kind) => `images/${String(image.number).padStart(4, "0")}.${kind}`;
function withMaps(image, then) {
  if (loaded.has(image.number)) return then(loaded.get(image.number));
  if (waiting.has(image.number)) return waiting.get(image.number).push(then);
  waiting.set(image.number, [then]);
  const done = () => {
    const list = waiting.get(image.number);
    waiting.delete(image.number);
    for (const call of list) call(loaded.get(image.number) || null);
  };
  document.head.append(el("script", { src: fileOf(image, "js"), onload: done, onerror: done }));
}
const say = (text) => {
  byId("status").textContent = text;
  setTimeout(() => byId("status").textContent === text && (byId("status").textContent = ""), 4000);
};
const nameOf = (image) => image.name || `image ${image.number + 1}`;
const predicted = (image, among = state.among) => (M.ranking(image, among)[0] || { c: M.classes[0] }).c;
const sideOf = (c) => (c.added ? "added" : c.side);
const options = (classes, selected) => classes.map((c) => el("option", { value: String(c.number), selected: c === selected }, c.name.slice(0, 60) + (c.added ? " (added)" : "")));
const classOf = (text) => M.classes.find((c) => String(c.number) === text);

function choose(image) {
  state.image = image;
  const ranks = M.ranking(image, state.among), first = ranks[0].c, truth = image.truth === null ? null : M.classes[image.truth];
  state.chosen = first;
  state.a = first;
  state.b = truth && truth !== first ? truth : (ranks[1] || ranks[0]).c;
  state.edited = M.splits ? (ranks.find((r) => r.c.side !== "seen") || { c: M.classes.find((c) => c.side !== "seen") }).c || null : null;
  state.value = null;
  state.attribute = strongest(first);
  state.changing = state.edited ? strongest(state.edited) : 0;
  render();
}
function strongest(c) {
  if (!M.splits) return state.attribute;
  const parts = M.parts(state.image, c).attributes;
  return parts.indexOf(parts.reduce((a, b) => Math.max(a, b)));
}
function select(c) {
  state.chosen = c;
  if (c.side !== "seen" && M.splits) [state.edited, state.value] = [c, null];
  render();
}
function point(i) {
  state.attribute = i;
  drawPhoto();
  for (const button of document.querySelectorAll("[data-attribute]")) {
    const on = Number(button.dataset.attribute) === i;
    button.setAttribute("aria-pressed", String(on));
    button.closest("tr").classList.toggle("chosen", on);
  }
}
function render() {
  for (const panel of [renderPhoto, renderPrediction, renderReasons, renderVersus, renderWhatIf, renderSaving]) panel();
  for (const button of byId("gallery").querySelectorAll("button")) button.setAttribute("aria-current", String(Number(button.dataset.image) === state.image.number));
}
/* redraws a panel without losing the place of the keyboard */
function keeping(draw) {
  const id = document.activeElement && document.activeElement.id;
  draw();
  if (id && byId(id)) byId(id).focus();
}

/* 1 ---------------------------------------------------------------------------------------------- the photograph */
function renderPhoto() {
  const image = state.image, c = predicted(image);
  const picture = el("img", { src: fileOf(image, "jpg"), alt: `Photograph ${nameOf(image)}, predicted: ${c.name}` });
  const check = (id, text, key) => el("label", {}, el("input", { id, type: "checkbox", checked: state[key], onchange: (e) => { state[key] = e.target.checked; drawPhoto(); } }), ` ${text}`);
  show("photo", el("div", { id: "stage" }, picture, el("canvas", { id: "map", role: "img" })),
    D.grid ? legend(D.largest, 1 / R) : null, el("p", { id: "caption" }),
    D.grid ? el("div", { className: "row" }, check("showmap", "map", "map"), check("smooth", "smooth", "smooth")) : null,
    D.grid && !M.splits ? el("label", {}, "Attribute ", el("select", { id: "pointed", onchange: (e) => point(Number(e.target.value)) }, ...D.attributes.map((a, i) => el("option", { value: String(i), selected: i === state.attribute }, plain(a).slice(0, 60))))) : null,
    D.grid ? el("p", { className: "note" }, "A cell's colour is its share of this attribute's attention; one scale for all attributes and images. It says where was looked, not what the decision rests on.") : el("p", { className: "note" }, `${D.method} has no attention over regions to show.`));
  drawPhoto();
}
const cellsOf = (content) => content && content.maps.subarray(state.attribute * R, (state.attribute + 1) * R);
function drawPhoto() {
  if (!D.grid) return;
  const image = state.image, attribute = state.attribute;
  withMaps(image, (content) => {
    if (image !== state.image || attribute !== state.attribute) return;
    const canvas = byId("map"), cells = cellsOf(content), name = plain(D.attributes[attribute]);
    canvas.style.opacity = state.map && cells ? 0.6 : 0;
    if (cells) drawMap(canvas, cells, D.grid[0], D.grid[1], state.smooth);
    const most = cells ? percent((Math.max(...cells) / 255) * D.largest) : "";
    byId("caption").replaceChildren(el("b", {}, named(name)), cells ? `: most looked at cell ${most}, uniform ${percent(1 / R)}` : ": the map cannot be read; is the folder images/ beside this page?");
    canvas.setAttribute("aria-label", `Map of attention for ${name}`);
  });
}

/* 2 ---------------------------------------------------------------------------------------------- the prediction */
function renderPrediction() {
  const image = state.image, ranks = M.ranking(image, state.among), truth = image.truth === null ? null : M.classes[image.truth];
  const radio = (value, text) => el("label", {}, el("input", { type: "radio", name: "among", id: `among-${value}`, value, checked: state.among === value, onchange: () => { state.among = value; keeping(() => choose(image)); list(); } }), ` ${text}`);
  const place = truth ? ranks.findIndex((r) => r.c === truth) : -1;
  const shown = ranks.slice(0, 5).concat(place >= 5 ? [ranks[place]] : []);
  const badge = (c) => [el("span", { className: "badge" }, sideOf(c)), c === truth ? el("span", { className: "badge truth" }, "true class") : null];
  const low = Math.min(...shown.map((r) => r.score)), high = shown[0].score;
  const margin = ranks.length > 1 ? ranks[0].score - ranks[1].score : null;
  show("prediction", el("p", {}, named(nameOf(image)), truth ? el("span", {}, " shows ", named(truth.name)) : " (true class unknown)"),
    el("div", { className: "row", role: "radiogroup", ariaLabel: "Classes offered" }, "Among", radio("unseen", "unseen"), radio("seen", "seen"), radio("all", "all classes")),
    el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "Class"), el("th", { className: "n" }, "Score"), el("th", {}, "ahead of the last shown"))),
      el("tbody", {}, ...shown.map((r) => el("tr", { className: r.c === state.chosen ? "chosen" : "" },
        el("td", {}, el("button", { className: "link", id: `class-${r.c.number}`, ariaPressed: String(r.c === state.chosen), onclick: () => keeping(() => select(r.c)) }, named(r.c.name)), " ", ...badge(r.c).filter(Boolean)),
        el("td", { className: "n", "data-score": r.score }, fixed(r.score, 3)), el("td", {}, bar(r.score - low, high - low, true)))))),
    margin === null ? null : el("p", {}, "Margin over the second: ", el("output", { id: "margin" }, fixed(margin, 3)), " ",
      truth ? el("span", { className: place === 0 ? "badge truth" : "badge wrong" }, place === 0 ? "right" : place < 0 ? "the true class is not offered" : `wrong: the true class is number ${place + 1}`) : null),
    el("p", { className: "note" }, `Scores are calibrated: γ = ${fixed(D.gamma, 3)} is added to classes without training images. `, M.splits ? "Choose a class to see what speaks for it." : ""));
}

/* 3 ------------------------------------------------------------------------------------------------- the reasons */
function table(rows, columns, id) {
  /* the groups differ in size by far, so each has a scale of its own, and one row each on a common one */
  const kinds = [...new Set(rows.map((r) => r.kind))], of = (kind) => rows.filter((r) => r.kind === kind);
  const sums = kinds.map((kind) => of(kind).reduce((a, r) => a + r.value, 0)), common = Math.max(...sums.map(Math.abs), 1e-12);
  const empty = () => columns.map(() => el("td", {})), lines = [];
  kinds.forEach((kind, n) => {
    lines.push(el("tr", {}, el("td", {}, GROUPS[kind]), ...empty(), el("td", {}, bar(sums[n], common)), el("td", { className: "n" }, signed(sums[n], 3))));
  });
  const sum = sums.reduce((a, v) => a + v, 0);
  lines.push(el("tr", { className: "sum" }, el("td", {}, "Sum"), ...empty(), el("td", {}), el("td", { className: "n", "data-sum": sum }, fixed(sum, 3))));
  for (const kind of kinds) {
    const single = of(kind).filter((r) => r.i >= 0), scale = Math.max(...single.map((r) => Math.abs(r.value)), 1e-12);
    if (kind !== "gamma" && kind !== "own") lines.push(el("tr", { className: "group" }, el("th", { colSpan: columns.length + 3, scope: "rowgroup" }, `${GROUPS[kind]}, longest bar ${fixed(scale, 2)}`)));
    for (const r of of(kind)) {
      if (kind === "gamma" || kind === "own") {
        lines[kinds.indexOf(kind)].cells[0].replaceChildren(r.name);
        lines[kinds.indexOf(kind)].lastChild.dataset.part = r.value;
        continue;
      }
      const label = kind === "attribute" && r.i >= 0
        ? el("button", { className: "link", id: `${id}-${r.i}`, "data-attribute": r.i, ariaPressed: String(r.i === state.attribute), title: r.name, onclick: () => point(r.i), onfocus: () => point(r.i), onmouseenter: () => point(r.i) }, named(r.name)) : named(r.name);
      lines.push(el("tr", { className: kind === "attribute" && r.i === state.attribute ? "chosen" : "" }, el("td", {}, label),
        ...columns.map((column) => el("td", { className: "n" }, kind === "attribute" && r.i >= 0 ? column.value(r.i) : "")),
        el("td", {}, r.i < 0 ? "" : bar(r.value, scale)), el("td", { className: "n", "data-part": r.value }, signed(r.value, 3))));
    }
  }
  return el("table", { id }, el("thead", {}, el("tr", {}, el("th", {}, ""), ...columns.map((c) => el("th", { className: "n" }, c.name)), el("th", {}, ""), el("th", { className: "n" }, "adds"))), el("tbody", {}, ...lines));
}
function renderReasons() {
  const c = state.chosen, image = state.image;
  if (!M.splits) return show("reasons", el("p", {}, `The scores of ${D.method} do not split over attributes, so there is nothing exact to say here.`));
  const parts = M.parts(image, c), rows = rowsOf(parts, state.all ? [M.K, M.S] : [12, 8]);
  const length = Math.sqrt(image.g.reduce((sum, v) => sum + v * v, 0)) || 1, seen = (i) => image.g[i] / length;
  show("reasons", el("p", {}, "For ", named(c.name), ", score ", el("output", { id: "score", "data-score": M.score(image, c) }, fixed(M.score(image, c), 3)), " · what adds up to it:"),
    table(rows, [{ name: "described", value: (i) => signed(c.z[i]) }, { name: "seen", value: (i) => signed(seen(i)) }, { name: "difference", value: (i) => signed(seen(i) - c.z[i]) }], "why"),
    el("div", { className: "row" }, el("button", { id: "all", ariaPressed: String(state.all), onclick: () => { state.all = !state.all; keeping(renderReasons); } }, state.all ? "Show the largest" : "Show all attributes and classes")),
    el("p", { className: "note" }, "Described: the attribute in the class's row as the model takes it. Seen: weight × score in this photograph. Both as parts of a row of unit length, minus where there is less than in the mean seen class if the model takes that away: two minuses speak for a class. Each group of bars has its own scale. ",
      M.S ? "What seen classes add rests on the photograph as a whole; it does not split over regions." : ""));
}

/* 4 --------------------------------------------------------------------------------------------------- two classes */
function renderVersus() {
  const image = state.image;
  if (!M.splits) return (byId("versus").hidden = true);
  const pick = (key, label) => el("label", {}, `${label} `, el("select", { id: `versus-${key}`, onchange: (e) => { state[key] = classOf(e.target.value); keeping(renderVersus); } }, ...options(M.classes, state[key])));
  const a = M.parts(image, state.a), b = M.parts(image, state.b);
  const difference = { attributes: a.attributes.map((v, i) => v - b.attributes[i]), mixed: a.mixed.map((v, s) => v - b.mixed[s]), own: a.own - b.own, ownName: "difference of corrections", gamma: a.gamma - b.gamma, gammaName: "difference of γ" };
  const rows = rowsOf(difference, [10, 6]), ahead = M.score(image, state.a) - M.score(image, state.b);
  show("versus", el("div", { className: "row" }, pick("a", "For (blue)"), pick("b", "against (orange)"),
    el("button", { id: "swap", onclick: () => { [state.a, state.b] = [state.b, state.a]; keeping(renderVersus); } }, "Swap")),
    el("p", {}, named(state.a.name), ` is ${ahead >= 0 ? "ahead" : "behind"} by `, el("output", { id: "ahead", "data-score": ahead }, fixed(Math.abs(ahead), 3))),
    table(rows, [{ name: "first", value: (i) => signed(state.a.z[i]) }, { name: "second", value: (i) => signed(state.b.z[i]) }], "against"));
}

/* 5 ------------------------------------------------------------------------------------------------- what if, adding */
function renderWhatIf() {
  const unseen = M.classes.filter((c) => c.side !== "seen"), image = state.image, c = state.edited;
  byId("whatif").hidden = byId("adding").hidden = !M.splits;
  if (!M.splits) return;
  if (!c) return show("whatif", el("p", {}, "This model has no class without training images; only those can be changed."));
  const at = M.changed(image, c), i = state.changing, rival = M.rival(image, c, offeredWith(c));
  const now = c.att[i], value = state.value === null ? now : state.value, flips = rival ? M.flips(at, rival.score, i, 200) : [];
  const output = el("output", { id: "changed" }), decision = el("output", { id: "decision" });
  const tell = (v) => {
    const score = at(i, v), wins = !rival || score > rival.score;
    output.textContent = `${fixed(v, 1)} (described: ${fixed(now, 1)}), score ${fixed(score, 3)}`;
    output.dataset.score = score;
    decision.replaceChildren(named((wins ? c : rival.c).name));
    decision.dataset.flipped = String(wins !== (at(i, now) > (rival ? rival.score : -Infinity)));
  };
  const slider = el("input", { id: "slider", type: "range", min: M.lowest, max: 100, step: 0.1, ariaLabel: "Value of the attribute", oninput: (e) => { state.value = Number(e.target.value); tell(state.value); } });
  slider.value = value;
  const track = el("div", { id: "track" }, ...flips.map((flip) => {
    const mark = el("span", {}, `▲ ${fixed(flip.value, 1)}`);
    mark.style.left = `${(100 * (flip.value - M.lowest)) / (100 - M.lowest)}%`;
    return mark;
  }));
  show("whatif", el("div", { className: "row" },
    el("label", {}, "Class ", el("select", { id: "edited", onchange: (e) => { [state.edited, state.value] = [classOf(e.target.value), null]; keeping(renderWhatIf); } }, ...options(unseen, c))),
    el("label", {}, "attribute ", el("select", { id: "changing", onchange: (e) => { [state.changing, state.value] = [Number(e.target.value), null]; keeping(renderWhatIf); } }, ...D.attributes.map((a, n) => el("option", { value: String(n), selected: n === i }, plain(a).slice(0, 60)))))),
    slider, track, el("p", {}, "Value ", output, " → decision: ", el("span", {}, decision)),
    el("p", { id: "flip" }, flips.length ? `The decision flips at ${flips.map((flip) => `${fixed(flip.value, 1)} (from there on ${(flip.gains ? c : rival.c).name})`).join(" and ")}.` : "No value of this attribute flips the decision."),
    el("div", { className: "row" }, el("button", { id: "smallest", onclick: () => {
      const found = M.smallest(image, c, offeredWith(c));
      if (!found) return say("No change of a single attribute flips the decision.");
      [state.changing, state.value] = [found.i, found.value];
      keeping(renderWhatIf);
      byId("found").replaceChildren("Smallest single change: ", named(plain(D.attributes[found.i])), ` from ${fixed(c.att[found.i], 1)} to ${fixed(found.value, 1)} makes the decision `, named((found.wins ? c : found.rival).name), ".");
    } }, "Smallest single change that flips the decision"), el("button", { id: "reset", onclick: () => { state.value = null; keeping(renderWhatIf); } }, "As described")), el("p", { id: "found", ariaLive: "polite" }),
    el("p", { className: "note" }, "100 is the largest value that any class has. Only classes without training images can be changed: another description of a seen class would change what was learned. Nothing here changes the scores above."));
  tell(value);
}
const offeredWith = (c) => (state.among === "seen" && c.side !== "seen" ? "all" : state.among);
function renderAdding() {
  const start = el("select", { id: "start", onchange: () => fill(start.value) }, el("option", { value: "" }, "nothing"), ...options(M.classes, null));
  const inputs = D.attributes.map((a, i) => el("input", { type: "number", step: "any", value: "0", id: `value-${i}` }));
  const labels = inputs.map((input, i) => el("label", {}, named(plain(D.attributes[i])), input));
  const fill = (of) => inputs.forEach((input, i) => (input.value = of === "" ? "0" : String(Number(classOf(of).att[i].toPrecision(6)))));
  const name = el("input", { id: "newname", required: true, maxLength: 300 });
  const message = el("p", { id: "added", ariaLive: "polite" }), known = el("ul", { id: "known" });
  const listed = () => known.replaceChildren(...M.classes.filter((c) => c.added).map((c) => el("li", {}, named(c.name), " ", el("button", { ariaLabel: `Remove ${c.name}`, onclick: () => { M.remove(c); listed(); choose(state.image); list(); name.focus(); } }, "Remove"))));
  show("adding", el("form", { id: "form", onsubmit: (e) => {
    e.preventDefault();
    const values = inputs.map((input) => Number(input.value));
    if (!values.every(Number.isFinite) || !values.some((v) => v)) return (message.textContent = "Give at least one attribute a value other than 0.");
    const c = M.add(name.value, values), wins = M.images.filter((image) => predicted(image, "all") === c);
    message.replaceChildren(named(c.name), ` has the highest score among all classes in ${wins.length} of ${M.images.length} images; here its score is ${fixed(M.score(state.image, c), 3)} (place ${M.ranking(state.image, "all").findIndex((r) => r.c === c) + 1}). `,
      ...wins.slice(0, 12).map((image) => el("button", { className: "link", onclick: () => choose(image) }, named(nameOf(image)))).flatMap((b) => [b, " "]));
    message.dataset.score = M.score(state.image, c);
    listed();
    choose(state.image);
    list();
  } }, el("div", { className: "row" }, el("label", {}, "Name ", name), el("label", {}, "start from ", start),
    el("label", {}, "find attribute ", el("input", { id: "find", type: "search", oninput: (e) => labels.forEach((label) => (label.hidden = !label.textContent.toLowerCase().includes(e.target.value.toLowerCase()))) }))),
    el("div", { id: "values" }, ...labels), el("div", { className: "row" }, el("button", { type: "submit", id: "add" }, "Add the class and score every image"))), message, known,
  el("p", { className: "note" }, "The new class counts as one without training images, γ included. It stays until the page is closed."));
}

/* 6 -------------------------------------------------------------------------------------------------------- saving */
function renderSaving() {
  const stem = `why-${String(state.image.number).padStart(4, "0")}`;
  const drawn = (then) => withMaps(state.image, (content) => {
    const c = state.chosen, rows = M.splits ? rowsOf(M.parts(state.image, c), [12, 8]) : M.ranking(state.image, state.among).slice(0, 12).map((r) => ({ name: r.c.name, value: r.score }));
    const truth = state.image.truth === null ? "unknown" : D.shown[state.image.truth];
    then(figure(`${D.title}: why ${c.name}?`, [`map: ${plain(D.attributes[state.attribute] || "")}`, `image: ${nameOf(state.image)}`, `true class: ${truth}`],
      content && content.picture, D.grid && content && state.map ? cellsOf(content) : null, D.grid, rows, M.splits ? M.score(state.image, c) : rows[0].value));
  });
  const png = () => drawn((text) => {
    const picture = new Image();
    picture.onload = () => {
      const canvas = el("canvas", { width: 2 * picture.width, height: 2 * picture.height });
      canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => { save(`${stem}.png`, blob); say(`saved ${stem}.png`); });
    };
    picture.onerror = () => say("this browser cannot draw the figure");
    picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  });
  const sheet = () => {
    const image = state.image, rows = [["image", "class", "kind", "name", "adds"]];
    const shown = M.splits ? rowsOf(M.parts(image, state.chosen), [M.K, M.S]) : [];
    /* the names of the data, not those that are shown: a table may be joined with others */
    const known = (r) => (r.i < 0 ? r.name : r.kind === "attribute" ? D.attributes[r.i] : D.classes[D.seen[r.i]]);
    for (const r of shown) rows.push([nameOf(image), state.chosen.known, r.kind, known(r), r.value]);
    for (const r of M.ranking(image, state.among)) rows.push([nameOf(image), r.c.known, "score", "", r.score]);
    save(`${stem}.csv`, new Blob([csv(rows)], { type: "text/csv" }));
    say(`saved ${stem}.csv`);
  };
  show("saving", el("div", { className: "row" }, el("button", { id: "png", onclick: png }, "Figure as PNG"),
    el("button", { id: "svg", onclick: () => drawn((text) => { save(`${stem}.svg`, new Blob([text], { type: "image/svg+xml" })); say(`saved ${stem}.svg`); }) }, "Figure as SVG"),
    el("button", { id: "csv", onclick: sheet }, "All numbers as CSV")));
}

/* --------------------------------------------------------------------------------------------------- the gallery */
/* named wrongly, where the right name was among those offered */
const wrongly = (i) => i.truth !== null && predicted(i).number !== i.truth && (state.among === "all" || M.classes[i.truth].side === state.among);
const FILTERS = { all: () => true, wrong: wrongly, right: (i) => i.truth !== null && predicted(i).number === i.truth };
function list() {
  const chosen = FILTERS[byId("filter").value] || ((i) => `class ${i.truth}` === byId("filter").value);
  byId("gallery").replaceChildren(...M.images.filter(chosen).map((image) => {
    const c = predicted(image), wrong = wrongly(image);
    return el("li", {}, el("button", { "data-image": image.number, className: wrong ? "wrong" : "", title: nameOf(image), ariaCurrent: String(image === state.image), onclick: () => choose(image) },
      el("img", { loading: "lazy", alt: `${nameOf(image)}, predicted ${c.name}${wrong ? ", wrong" : ""}`, src: fileOf(image, "jpg") })));
  }));
  const counts = new Map();
  for (const image of M.images.filter(FILTERS.wrong)) {
    const c = predicted(image), key = `${image.truth} ${c.number}`, entry = counts.get(key) || { images: [], truth: M.classes[image.truth], c };
    entry.images.push(image);
    counts.set(key, entry);
  }
  const worst = [...counts.values()].sort((a, b) => b.images.length - a.images.length).slice(0, 8);
  byId("confusions").hidden = !worst.length;
  byId("confusions").querySelector("ol").replaceChildren(...worst.map((entry) => el("li", {}, el("button", { className: "link", onclick: () => {
    choose(entry.images[0]);
    [state.a, state.b] = [entry.c, entry.truth];
    renderVersus();
    byId("versus").scrollIntoView();
  } }, `${entry.images.length} × `, named(entry.truth.name), el("br"), "as ", named(entry.c.name)))));
}
function begin() {
  byId("title").textContent = document.title = `Why this class? ${D.title}`;
  byId("about").textContent = `${M.images.length} images, ${D.seen.length} classes with training images, ${D.unseen.length} without, ${M.K} attributes. Arrow keys in the list go from image to image; hover over an attribute, or move to it by keyboard, to see its map.`;
  const known = [...new Set(M.images.map((i) => i.truth).filter((t) => t !== null))].sort((a, b) => a - b);
  const filters = [["all", "all"], ...(known.length ? [["wrong", "wrongly named"], ["right", "rightly named"], ...known.map((t) => [`class ${t}`, D.shown[t].slice(0, 60)])] : [])];
  byId("filter").append(...filters.map(([value, text]) => el("option", { value }, text)));
  byId("filter").addEventListener("change", list);
  byId("gallery").addEventListener("keydown", (e) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 3, ArrowUp: -3 }[e.key], all = [...byId("gallery").querySelectorAll("button")];
    const to = step && all[all.indexOf(document.activeElement) + step];
    if (!to) return;
    e.preventDefault();
    to.focus();
    to.click();
  });
  list();
  if (M.splits) renderAdding();
  choose(M.images[0]);
  document.body.dataset.ready = "true";
}
begin();
