"use strict";
const M = Model, D = M.D, R = D.grid ? D.grid[0] * D.grid[1] : 0;
/* attribute -1: all together; a and b: the two classes compared */
const state = { image: M.images[0], among: "all", chosen: null, attribute: 0, map: true, smooth: false, all: false,
  a: null, b: null, changing: 0, more: 0 };
const loaded = new Map();
let waiting = [];
window.pageImage = (number, content) => {
  const raw = atob(content.ev || "");
  loaded.set(number, { ev: Int8Array.from(raw, (letter) => letter.charCodeAt(0)), step: content.step,
    picture: `data:image/jpeg;base64,${content.picture}` });
};
const fileOf = (image, kind) => `images/${String(image.number).padStart(4, "0")}.${kind}`;
/* calls back with what the image's own file holds, or null where that cannot be read */
function withContent(image, then) {
  if (loaded.has(image.number)) return then(loaded.get(image.number));
  waiting.push([image, then]);
  const done = () => {
    const ready = waiting.filter(([other]) => other === image);
    waiting = waiting.filter(([other]) => other !== image);
    for (const [, call] of ready) call(loaded.get(image.number) || null);
  };
  document.head.append(el("script", { src: fileOf(image, "js"), onload: done, onerror: done }));
}
const say = (text) => {
  byId("status").textContent = text;
  setTimeout(() => byId("status").textContent === text && (byId("status").textContent = ""), 4000);
};
const nameOf = (image) => image.name || `image ${image.number + 1}`;
const predicted = (image) => (M.ranking(image, state.among)[0] || { c: M.classes[0] }).c;
const truthOf = (image) => (image.truth === null ? null : M.classes[image.truth]);
const options = (names, selected) => names.map((name, n) => el("option", { value: String(n), selected: n === selected }, name.slice(0, 60)));
const choice = (label, id, names, selected, then) => el("label", {}, `${label} `,
  el("select", { id, onchange: (e) => { then(Number(e.target.value)); } }, ...options(names, selected)));

function choose(image) {
  const ranks = M.ranking(image, state.among), first = ranks[0].c, truth = truthOf(image);
  state.image = image;
  state.chosen = state.a = first;
  state.b = truth && truth !== first ? truth : (ranks[1] || ranks[0]).c;
  state.attribute = state.changing = M.splits ? strongest(first) : 0;
  state.more = 0;
  render();
}
function strongest(c) {
  const parts = M.parts(state.image, c).attributes;
  return parts.indexOf(Math.max(...parts));
}
function point(i) {
  state.attribute = i;
  drawEvidence();
  for (const button of document.querySelectorAll("[data-attribute]")) {
    const on = Number(button.dataset.attribute) === i;
    button.setAttribute("aria-pressed", String(on));
    button.closest("tr").classList.toggle("chosen", on);
  }
}
function render() {
  for (const panel of [renderPhoto, renderPrediction, renderReasons, renderVersus, renderWhatIf, renderDescribed, renderSaving]) panel();
  for (const button of byId("gallery").querySelectorAll("button")) button.setAttribute("aria-current", String(Number(button.dataset.image) === state.image.number));
}
/* redraws a panel without losing the place of the keyboard */
function keeping(draw) {
  const id = document.activeElement && document.activeElement.id;
  draw();
  if (id && byId(id)) byId(id).focus();
}

/* 1 ---------------------------------------------------------------------------------------------- the photograph */
/* evidence of the places for a class: of one attribute, or of all of them */
function cellsOf(content, c, attribute) {
  const cells = new Float64Array(R), of = attribute < 0 ? [...c.y.keys()] : [attribute];
  for (const i of of) for (let r = 0; r < R; r++) cells[r] += content.ev[i * R + r] * content.step[i] * c.y[i];
  return cells;
}
/* One scale for all attributes of a photograph, from the first class; all attributes together have their own. */
function scaleOf(content, attribute) {
  const c = predicted(state.image);
  if (attribute < 0) return Math.max(...cellsOf(content, c, -1).map(Math.abs));
  return Math.max(...D.attributes.map((_, i) => Math.max(...cellsOf(content, c, i).map(Math.abs))));
}
function renderPhoto() {
  const image = state.image, [left, top, width, height] = image.crop.map((v) => `${100 * v}%`);
  const check = (id, text) => el("label", {}, el("input", { id, type: "checkbox", checked: state[id], onchange: (e) => { state[id] = e.target.checked; drawEvidence(); } }), ` ${text}`);
  const canvas = el("canvas", { id: "cells", role: "img" });
  Object.assign(canvas.style, { left, top, width, height });
  show("photo", el("div", { id: "stage" }, el("img", { src: fileOf(image, "jpg"), alt: `Photograph ${nameOf(image)}, predicted: ${predicted(image).name}` }), canvas),
    el("p", { id: "caption" }), D.grid ? el("div", { id: "scale" }) : null,
    D.grid ? el("div", { className: "row" }, el("button", { id: "together", onclick: () => point(-1) }, "All attributes together"), check("map", "map"), check("smooth", "smooth")) : null,
    el("p", { className: "note" }, D.no_maps || "Orange: what is seen there speaks for the class; blue: against it; no colour: neither. All maps of single attributes of this photograph have one scale; their cells add up to the number beside the bar.",
      image.crop.every((v, n) => v === [0, 0, 1, 1][n]) ? "" : " The model sees what is inside the frame."));
  drawEvidence();
}
function drawEvidence() {
  const { image, attribute, chosen } = state;
  byId("stage").classList.toggle("grey", Boolean(D.grid && state.map));
  if (!D.grid) return;
  withContent(image, (content) => {
    if (image !== state.image || attribute !== state.attribute || chosen !== state.chosen) return;
    const canvas = byId("cells"), name = attribute < 0 ? "All attributes together" : reason(image, attribute);
    const parts = M.parts(image, chosen).attributes, sum = attribute < 0 ? parts.reduce((a, b) => a + b, 0) : parts[attribute];
    byId("caption").replaceChildren(el("b", {}, named(name)), ` ${signed(sum)} of ${fixed(M.score(image, chosen), 1)} points for `, named(chosen.name));
    if (!content) return byId("caption").append(": the map cannot be read; is the folder images/ beside this page?");
    const scale = scaleOf(content, attribute);
    drawMap(canvas, state.map ? cellsOf(content, chosen, attribute) : [], D.grid, scale, state.smooth);
    byId("scale").replaceChildren(legend(scale));
    canvas.setAttribute("aria-label", `Map of evidence: ${name}, ${sum < 0 ? "against" : "for"} ${chosen.name}`);
  });
}

/* 2 ---------------------------------------------------------------------------------------------- the prediction */
function renderPrediction() {
  const image = state.image, ranks = M.ranking(image, state.among), truth = truthOf(image);
  const radio = (value, text) => el("label", {}, el("input", { type: "radio", name: "among", id: `among-${value}`, checked: state.among === value, disabled: value !== "all" && !M.classes.some((c) => c.side === value), onchange: () => { state.among = value; keeping(() => choose(image)); list(); } }), ` ${text}`);
  const place = truth ? ranks.findIndex((r) => r.c === truth) : -1;
  const shown = ranks.slice(0, 5).concat(place >= 5 ? [ranks[place]] : []);
  const low = Math.min(...shown.map((r) => r.score)), high = shown[0].score;
  const sure = M.sure(image, ranks), percent = (n) => `${Math.round(100 * n)} %`;
  const verdict = place === 0 ? "right" : place < 0 ? "the true class is not offered" : `wrong: the true class is number ${place + 1}`;
  show("prediction", el("p", {}, named(nameOf(image)), truth ? el("span", {}, " shows ", named(truth.name)) : " (true class unknown)"),
    el("div", { className: "row", role: "radiogroup", ariaLabel: "Classes offered" }, "Among", radio("unseen", "unseen"), radio("seen", "seen"), radio("all", "all classes")),
    el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "Class"), el("th", { className: "n" }, "Points"),
      ...(sure ? [el("th", { className: "n" }, "Probability")] : []), el("th", { className: "bars" }, sure ? "" : "ahead of the last shown"))),
      el("tbody", {}, ...shown.map((r, n) => el("tr", { className: r.c === state.chosen ? "chosen" : "" },
        el("td", {}, el("button", { className: "link", id: `class-${r.c.number}`, ariaPressed: String(r.c === state.chosen), onclick: () => { state.chosen = r.c; keeping(render); } }, named(r.c.name)), " ",
          el("span", { className: "badge" }, r.c.side), " ", r.c === truth ? el("span", { className: "badge truth" }, "true class") : null),
        el("td", { className: "n", "data-score": r.score }, fixed(r.score)),
        ...(sure ? [el("td", { className: "n", "data-p": sure.p[n < 5 ? n : place] }, percent(sure.p[n < 5 ? n : place]))] : []),
        el("td", {}, sure ? bar(sure.p[n < 5 ? n : place], 1, true) : bar(r.score - low, high - low, true)))))),
    sure && sure.none ? el("p", { id: "none" }, el("span", { className: "badge wrong" }, "none of these"), ` The answer is worse than those to all but ${percent(D.none_rate)} of the validation photographs.`) : null,
    ranks.length < 2 ? null : el("p", {}, "Margin over the second: ", el("output", { id: "margin" }, fixed(ranks[0].score - ranks[1].score)), " ",
      truth ? el("span", { className: place === 0 ? "badge truth" : "badge wrong" }, verdict) : null),
    D.certainty ? gammaSlider(percent) : null,
    el("p", { className: "note" }, el("span", { id: "gamma-said" }, gammaSaid(percent)), M.splits ? " Choose a class to see what speaks for it." : ""));
}
const gammaSaid = (percent) => `γ = ${fixed(D.gamma)} is added to classes without training images (unseen)` + (D.certainty
  ? `: on validation ${M.traded().map(percent).join(" of photographs of classes with training images are named rightly, and ")} of those without.` : ".");
function gammaSlider(percent) {
  const { gammas } = D.certainty, slide = (e) => { D.gamma = Number(e.target.value); byId("gamma-said").textContent = gammaSaid(percent); };
  return el("label", { className: "row" }, "prefer classes with photographs", el("input", { id: "gamma", type: "range", min: gammas[0], max: gammas[gammas.length - 1],
    step: "any", value: D.gamma, oninput: slide, onchange: (e) => { slide(e); keeping(() => choose(state.image)); list(); } }), "prefer described ones");
}

/* 3 ------------------------------------------------------------------------------------------------- the reasons */
function table(id, sums, rows) {
  const scale = Math.max(...sums.map((r) => Math.abs(r.value)), 1e-12), single = [...rows.up, ...rows.down];
  const own = Math.max(...single.map((r) => Math.abs(r.value)), 1e-12), total = sums.reduce((a, r) => a + r.value, 0);
  const label = (r) => (r.i < 0 ? r.name : el("button", { className: "link", id: `${id}-${r.i}`, "data-attribute": r.i, ariaPressed: String(r.i === state.attribute),
    onclick: () => point(r.i), onfocus: () => point(r.i), onmouseenter: () => point(r.i) }, named(r.name)));
  const line = (r, most, part) => el("tr", { className: r.i >= 0 && r.i === state.attribute ? "chosen" : "" }, el("td", {}, label(r)), el("td", {}, most ? bar(r.value, most) : ""),
    el("td", { className: "n", [part ? "data-part" : "data-of"]: r.value }, signed(r.value)));
  const group = (text) => el("tr", { className: "group" }, el("th", { colSpan: 3, scope: "rowgroup" }, text));
  return el("table", { id }, el("tbody", {},
    ...sums.map((r, n) => line({ i: -1, ...r }, scale, n > 0)),
    el("tr", { className: "sum" }, el("td", {}, "Sum"), el("td", {}), el("td", { className: "n", "data-sum": total }, fixed(total))),
    group("For it"), ...rows.up.map((r) => line(r, own, true)), ...rows.others.map((r) => line(r, 0, true)),
    ...(rows.down.length ? [group("Against it"), ...rows.down.map((r) => line(r, own, true))] : [])));
}
/* what adds up to a score, attributes as one */
function sumsOf(parts) {
  return [{ name: `${M.K} attributes`, value: parts.attributes.reduce((a, b) => a + b, 0) },
    ...D.corrections.map((name, n) => ({ name, value: parts.corrections[n] })), { name: "γ, for unseen classes", value: parts.gamma }];
}
function renderReasons() {
  const c = state.chosen, image = state.image;
  if (!M.splits) return show("reasons", el("p", {}, D.no_maps));
  const parts = M.parts(image, c), most = state.all ? [M.K, M.K] : [8, 4], score = M.score(image, c);
  show("reasons", el("p", {}, "What adds up to the ", el("output", { id: "score", "data-score": score }, fixed(score)), " points of ", named(c.name), ":"),
    table("why", sumsOf(parts), rowsOf(image, parts.attributes, ...most)),
    el("button", { id: "all", ariaPressed: String(state.all), onclick: () => { state.all = !state.all; keeping(renderReasons); } }, state.all ? "Show the largest" : "Show all attributes"),
    el("p", { className: "note" }, "Words say what the photograph shows. “Less … than usual” speaks for a class that is described with less of it than most, and against one with more. The single attributes have a scale of bars of their own.",
      D.corrections.includes("hubness") ? " Hubness: taken from classes that lie close to training images of any kind. Seen expert: what training images of seen classes say." : "",
      D.corrections.includes("like its photographs") ? " Like its photographs: how like those that its class was shown by; γ counts for it by the share of its description." : ""));
}

/* 4 --------------------------------------------------------------------------------------------------- two classes */
function renderVersus() {
  byId("versus").hidden = !M.splits;
  if (!M.splits) return;
  const { image, a, b } = state, names = M.classes.map((c) => c.name), one = M.parts(image, a), other = M.parts(image, b);
  const pick = (key, label) => choice(label, `versus-${key}`, names, state[key].number, (n) => { state[key] = M.classes[n]; keeping(renderVersus); });
  const difference = { attributes: one.attributes.map((v, i) => v - other.attributes[i]), corrections: one.corrections.map((v, n) => v - other.corrections[n]), gamma: one.gamma - other.gamma };
  const ahead = M.score(image, a) - M.score(image, b);
  show("versus", el("div", { className: "row" }, pick("a", "For"), pick("b", "against"), el("button", { id: "swap", onclick: () => { [state.a, state.b] = [b, a]; keeping(renderVersus); } }, "Swap")),
    el("p", {}, named(a.name), ` is ${ahead >= 0 ? "ahead" : "behind"} by `, el("output", { id: "ahead", "data-score": ahead }, fixed(Math.abs(ahead))), " points:"),
    table("against", sumsOf(difference), rowsOf(image, difference.attributes, 6, 6)));
}

/* 5 -------------------------------------------------------------------------------------------------------- what if */
function renderWhatIf() {
  byId("whatif").hidden = !M.splits;
  if (!M.splits) return;
  const { image, among, changing: i } = state, g = image.g[i], first = predicted(image), flips = M.flips(image, among, i);
  const reach = 1.5 * Math.max(...image.g.map(Math.abs), Math.abs(g + state.more)), digits = digitsOf(reach);
  const output = el("output", { id: "changed" }), answer = el("output", { id: "decision" });
  const tell = () => {
    const c = M.decision(image, among, i, state.more);
    output.textContent = `${signed(g + state.more, digits)} (it shows ${signed(g, digits)}; usual is 0)`;
    answer.replaceChildren(named(c.name), ` ${fixed(M.changed(image, c, i, state.more))}`);
    answer.dataset.flipped = String(c !== first);
  };
  const slider = el("input", { id: "slider", type: "range", min: -reach, max: reach, step: reach / 1000, value: g + state.more,
    ariaLabel: "How much of the attribute the photograph shows", oninput: (e) => { state.more = Number(e.target.value) - g; tell(); } });
  const near = flips.filter((flip) => Math.abs(g + flip.more) <= reach);
  const track = el("div", { id: "track" }, ...near.map((flip) => el("span", { style: `left: ${50 + (50 * (g + flip.more)) / reach}%` }, "▲")));
  const set = (attribute, more) => { [state.changing, state.more] = [attribute, more]; keeping(renderWhatIf); };
  show("whatif", choice("If the photograph showed another amount of", "changing", D.more, i, (n) => set(n, 0)), slider, track,
    el("p", {}, "Amount ", output, " → answer: ", answer),
    el("p", { id: "flip" }, near.length ? `The answer becomes ${near.map((flip) => `${flip.c.name} at ${signed(g + flip.more, digits)}`).join(", and ")}.` : "No amount within reach changes the answer."),
    el("div", { className: "row" }, el("button", { id: "smallest", onclick: () => {
      const found = M.smallest(image, among);
      if (!found) return say("There is no other class.");
      set(found.i, found.more * 1.001);
      byId("found").textContent = `The smallest change of one attribute that changes the answer: ${D[found.more < 0 ? "less" : "more"][found.i]}; then it is ${found.c.name}.`;
    } }, "Smallest change that changes the answer"), el("button", { id: "reset", onclick: () => set(i, 0) }, "As photographed")), el("p", { id: "found", ariaLive: "polite" }));
  tell();
}

/* 6 -------------------------------------------------------------------------------------------------------- saving */
function renderSaving() {
  const stem = `why-${String(state.image.number).padStart(4, "0")}`, image = state.image, c = state.chosen;
  const keep = (kind, blob) => { save(`${stem}.${kind}`, blob); say(`saved ${stem}.${kind}`); };
  const drawn = (then) => withContent(image, (content) => {
    if (!content) return say("the photograph's own file cannot be read");
    const picture = byId("stage").querySelector("img"), map = D.grid && state.map, truth = truthOf(image);
    const parts = M.splits && M.parts(image, c), chosen = M.splits && rowsOf(image, parts.attributes, 10, 5);
    const rows = M.splits ? [...chosen.up, ...chosen.others, ...chosen.down, ...sumsOf(parts).slice(1)] : M.ranking(image, state.among).slice(0, 12).map((r) => ({ name: r.c.name, value: r.score }));
    const lines = [`image: ${nameOf(image)}`, `true class: ${truth ? truth.name : "unknown"}`].concat(map ? [`map: ${byId("caption").textContent}`] : []);
    then(figure(`${D.title}: why ${c.name}?`, lines, content.picture, [picture.naturalWidth, picture.naturalHeight], image.crop,
      map && cellsOf(content, c, state.attribute), map && scaleOf(content, state.attribute), rows, M.score(image, c)));
  });
  const png = () => drawn((text) => {
    const picture = new Image();
    picture.onload = () => {
      const canvas = el("canvas", { width: 2 * picture.width, height: 2 * picture.height });
      canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => keep("png", blob));
    };
    picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  });
  /* the names of the data, not those that are shown: a table may be joined with others */
  const sheet = () => {
    const parts = M.splits && M.parts(image, c), adds = (kind, name, value) => [nameOf(image), c.known, kind, name, value];
    keep("csv", new Blob([csv([["image", "class", "kind", "name", "adds"],
      ...(M.splits ? [...D.attributes.map((name, i) => adds("attribute", name, parts.attributes[i])), ...sumsOf(parts).slice(1).map((r) => adds("correction", r.name, r.value))] : []),
      ...M.ranking(image, state.among).map((r) => [nameOf(image), r.c.known, "score", "", r.score])])], { type: "text/csv" }));
  };
  show("saving", el("div", { className: "row" }, el("button", { id: "png", onclick: png }, "Figure as PNG"),
    el("button", { id: "svg", onclick: () => drawn((text) => keep("svg", new Blob([text], { type: "image/svg+xml" }))) }, "Figure as SVG"),
    el("button", { id: "csv", onclick: sheet }, "All numbers as CSV")));
}

/* --------------------------------------------------------------------------------------------------- the gallery */
/* named wrongly, where the right name was among those offered */
const wrongly = (i) => i.truth !== null && predicted(i).number !== i.truth && (state.among === "all" || truthOf(i).side === state.among);
const rightly = (i) => i.truth !== null && predicted(i).number === i.truth;
const FILTERS = { all: () => true, wrong: wrongly, right: rightly };
function list() {
  const chosen = FILTERS[byId("filter").value] || ((i) => `class ${i.truth}` === byId("filter").value);
  byId("gallery").replaceChildren(...M.images.filter(chosen).map((image) => {
    const ranks = M.ranking(image, state.among), sure = M.sure(image, ranks), c = predicted(image), verdict = wrongly(image) ? "wrong" : rightly(image) ? "right" : "";
    return el("li", {}, el("button", { "data-image": image.number, className: verdict, title: nameOf(image), ariaCurrent: String(image === state.image), onclick: () => choose(image) },
      el("img", { loading: "lazy", alt: `${nameOf(image)}, predicted ${c.name}${verdict && `, ${verdict}`}`, src: fileOf(image, "jpg") }),
      named(sure && sure.none ? "none of these" : c.name + (sure ? ` ${Math.round(100 * sure.p[0])} %` : ""))));
  }));
}
function begin() {
  byId("title").textContent = document.title = `Why this class? ${D.title}`;
  byId("about").textContent = `${D.total > M.images.length ? `The first ${M.images.length} of ${D.total}` : M.images.length} images, ${D.seen.length} classes with training images, ${M.classes.length - D.seen.length} without, ${M.K} attributes. Hover over an attribute, or move to it by keyboard, to see where it is seen.`;
  const known = [...new Set(M.images.map((i) => i.truth).filter((t) => t !== null))].sort((a, b) => a - b);
  const filters = [["all", "all"], ...(known.length ? [["wrong", "wrongly named"], ["right", "rightly named"], ...known.map((t) => [`class ${t}`, D.shown[t].slice(0, 60)])] : [])];
  byId("filter").append(...filters.map(([value, text]) => el("option", { value }, text)));
  byId("filter").addEventListener("change", list);
  byId("gallery").addEventListener("keydown", (e) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 2, ArrowUp: -2 }[e.key], all = [...byId("gallery").querySelectorAll("button")];
    const to = step && all[all.indexOf(document.activeElement) + step];
    if (!to) return;
    e.preventDefault();
    to.focus();
    to.click();
  });
  list();
  choose(M.images[0]);
  document.body.dataset.ready = "true";
}
begin();
