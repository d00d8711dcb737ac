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
  return { D, K, images, classes, splits, parts, score, ranking, changed, decision, flips, smallest };
})();
