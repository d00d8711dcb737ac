"use strict";
/* A class of one's own, described in the units of the sheet; it competes in no ranking of this page until it is added. */
const mine = { name: "my class", row: null, attribute: 0 };
function renderDescribed() {
  byId("described").hidden = !(M.splits && M.E);
  if (!M.splits || !M.E) return;
  if (!mine.row) mine.row = M.row(M.classes[0]);
  const i = mine.attribute, values = M.classes.map((c) => M.row(c)[i]), answer = el("p", { id: "mine" });
  const tell = () => {
    const code = M.encode(mine.row), own = M.described(state.image, code), better = M.ranking(state.image, state.among).filter((r) => r.score > own).length;
    const taken = M.images.filter((image) => M.described(image, code) > M.ranking(image, state.among)[0].score).length;
    answer.replaceChildren(el("output", { "data-score": own }, fixed(own)), ` points, number ${better + 1} for this photograph; it would be the answer to ${taken} of ${M.images.length}.`);
  };
  const amount = el("input", { id: "amount", type: "number", step: "any", value: mine.row[i], ariaLabel: `Amount of ${D.attributes[i]}`,
    oninput: (e) => { if (Number.isFinite(e.target.valueAsNumber)) { mine.row[i] = e.target.valueAsNumber; tell(); } } });
  show("described", el("div", { className: "row" }, el("label", {}, "Name ", el("input", { id: "mine-name", value: mine.name, oninput: (e) => { mine.name = e.target.value; } })),
      choice("begin with", "like", M.classes.map((c) => c.name), -1, (n) => { mine.row = M.row(M.classes[n]); keeping(renderDescribed); })),
    el("div", { className: "row" }, choice("Attribute", "of", D.attributes, i, (n) => { mine.attribute = n; keeping(renderDescribed); }), amount,
      el("span", { className: "note" }, `in the sheet: ${+Math.min(...values).toPrecision(3)} to ${+Math.max(...values).toPrecision(3)}`)),
    answer, el("button", { id: "row", onclick: () => { save("my-class.csv", new Blob([csv([["class", ...D.attributes], [mine.name, ...mine.row]])], { type: "text/csv" })); say("saved my-class.csv"); } }, "Save as a row"),
    el("p", { className: "note" }, "predict.py RUN photographs --add-classes my-class.csv"));
  tell();
}
