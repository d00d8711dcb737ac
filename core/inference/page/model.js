"use strict";
/* The arithmetic of core/inference/explain.py, on the arrays of data.js. Nothing here touches the page.
   score of class c = sum over attributes of g_i y_ci + corrections (+ gamma for classes without training images). */
const Model = (function () {
  function floats(text) {
    const raw = atob(text);
    return new Float32Array(Uint8Array.from(raw, (letter) => letter.charCodeAt(0)).buffer);
  }
  const D = window.DATA, K = D.attributes.length, splits = D.y !== null, y = splits ? floats(D.y) : null;
  const seen = new Set(D.seen);
  const images = D.images.map((image, number) => ({
    ...image, number, scores: floats(image.scores), g: splits ? floats(image.g) : null,
    corrections: image.corrections.map(floats),
  }));
  const classes = D.shown.map((name, number) => ({
    name, number, known: D.classes[number], side: seen.has(number) ? "seen" : "unseen",
    y: splits ? y.subarray(number * K, (number + 1) * K) : null,
  }));

  const margin = (c) => D.gamma * D.shares[c.number];
  const score = (image, c) => image.scores[c.number] + margin(c);
  /* what each part adds to the calibrated score of a class */
  function parts(image, c) {
    return {
      attributes: Float64Array.from(c.y, (v, i) => v * image.g[i]),
      corrections: image.corrections.map((values) => values[c.number]),
      gamma: margin(c),
    };
  }
  const offered = (among) => classes.filter((c) => among === "all" || c.side === among);
  function ranking(image, among) {
    return offered(among).map((c) => ({ c, score: score(image, c) })).sort((a, b) => b.score - a.score);
  }
  /* What if the photograph showed `more` of attribute i than it does? Every score is linear in that. */
  const changed = (image, c, i, more) => score(image, c) + more * c.y[i];
  function decision(image, among, i, more) {
    return offered(among).reduce((a, b) => (changed(image, b, i, more) > changed(image, a, i, more) ? b : a));
  }
  /* the least change of attribute i upwards, and downwards, at which another class overtakes the first, and which */
  function flips(image, among, i) {
    const [first, ...others] = ranking(image, among), found = [];
    for (const side of [1, -1]) {
      let best = null;
      for (const other of others) {
        const more = (first.score - other.score) / (other.c.y[i] - first.c.y[i]);
        if (Number.isFinite(more) && more * side > 0 && (!best || Math.abs(more) < Math.abs(best.more))) best = { i, more, c: other.c };
      }
      if (best) found.push(best);
    }
    return found;
  }
  /* the smallest change of one attribute that flips the decision; null: there is one class */
  function smallest(image, among) {
    const all = D.attributes.flatMap((_, i) => flips(image, among, i));
    return all.reduce((a, b) => (!a || Math.abs(b.more) < Math.abs(a.more) ? b : a), null);
  }
  /* core/training/certainty.py: probabilities of a ranking, best first, and whether the answer is none of these */
  const least = (xs, ys, x) => {
    const n = xs.findIndex((v) => v > x);
    if (n === 0 || x <= xs[0]) return ys[0];
    if (n < 0) return ys[ys.length - 1];
    return ys[n - 1] + ((ys[n] - ys[n - 1]) * (x - xs[n - 1])) / (xs[n] - xs[n - 1]);
  };
  const levels = Array.from({ length: 51 }, (_, n) => n / 50);
  function sure(image, ranks) {
    const said = D.certainty;
    if (!said || !ranks.length) return null;
    const top = ranks[0].c, side = top.side === "seen" ? 0 : 1, powers = ranks.map((r) => Math.exp((r.score - ranks[0].score) / said.temperature[side]));
    const sum = powers.reduce((a, b) => a + b, 0), raw = image.scores[top.number];
    const found = [raw, raw - image.rival].slice(0, image.rival === null ? 1 : 2);
    const rank = Math.min(...found.map((v, n) => (said.ranks[n] ? least(said.ranks[n][side], levels, v) : 1)));
    return { p: powers.map((v) => v / sum), none: D.none_rate > 0 && rank < least(levels, said.lowest[side], D.none_rate) };
  }
  /* both accuracies of validation at the γ of the page */
  const traded = () => ["S", "U"].map((side) => least(D.certainty.gammas, D.certainty[side], D.gamma));

  /* core/preparation.py, ClassEncoder: what a description in the units of the sheet adds to the scores of an image */
  const E = D.encoder && { ...D.encoder, att: floats(D.encoder.att), centre: floats(D.encoder.centre),
    gram: D.encoder.gram && floats(D.encoder.gram), near: D.encoder.near && floats(D.encoder.near) };
  const unit = (a) => { const length = Math.hypot(...a) || 1; return a.map((v) => v / length); };
  function shares(a) {
    if (!E.questions) return a;
    const sums = {}, size = a.map(Math.abs), alone = Math.max(...size.map((v, i) => (E.questions[i] < 0 ? v : 0)));
    size.forEach((v, i) => (sums[E.questions[i]] = (sums[E.questions[i]] || 0) + v));
    return a.map((v, i) => v / (E.questions[i] < 0 ? alone || 1 : sums[E.questions[i]])); // NaN: not answered
  }
  function encode(row) {
    const a = shares(unit(row)), z = unit(a.map((v, i) => (E.root ? Math.sign(v) * Math.sqrt(Math.abs(v)) : v) - E.centre[i] || 0));
    if (!E.gram) return { y: z, correction: 0 };
    const times = (matrix, width) => Array.from({ length: width }, (_, j) => z.reduce((sum, v, i) => sum + v * matrix[i * width + j], 0));
    const length = Math.sqrt(times(E.gram, K).reduce((sum, v, i) => sum + v * z[i], 0)) || 1e-12;
    return { y: z.map((v) => v / length), correction: (-E.hubness * Math.max(...times(E.near, D.seen.length))) / length };
  }
  const described = (image, { y: own, correction }) => own.reduce((sum, v, i) => sum + v * image.g[i], correction + D.gamma);
  const row = (c) => Array.from(E.att.subarray(c.number * K, (c.number + 1) * K), (v) => +v.toPrecision(7));
  return { D, K, E, images, classes, splits, parts, score, ranking, changed, decision, flips, smallest, sure, traded, encode, described, row };
})();
