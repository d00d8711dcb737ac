"use strict";
/* The arithmetic of core/inference/explain.py, on the arrays of data.js. Nothing here touches the page.
   score = sum of g_i z_ci over attributes + sum of h_s mix_cs over seen classes + own_c; calibrated: + gamma for
   classes without training images. */
const Model = (function () {
  function floats(text) {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Float32Array(bytes.buffer);
  }
  const D = window.DATA, K = D.attributes.length, C = D.classes.length;
  const att = floats(D.att), encoder = D.class_encoder;
  const root = encoder && encoder.root, power = root ? 0.5 : 1;
  const centre = encoder ? floats(encoder.centre) : null;
  const gram = encoder && encoder.gram ? floats(encoder.gram) : null;
  const landmarks = gram ? floats(encoder.landmarks) : null, A = gram ? floats(encoder.A) : null;
  const S = gram ? Math.round(Math.sqrt(gram.length)) : 0;
  const lengths = Float64Array.from({ length: S }, (_, s) => Math.max(Math.sqrt(gram[s * S + s]), 1e-12));
  const seen = new Set(D.seen);
  const images = D.images.map((image, number) => ({
    number, name: image.name, truth: image.truth,
    scores: floats(image.scores), g: image.g && floats(image.g), h: image.h && floats(image.h),
    own: image.own && floats(image.own),
  }));
  const splits = Boolean(encoder && images[0].g);
  const classes = D.shown.map((name, c) => ({
    name, known: D.classes[c], number: c, side: seen.has(c) ? "seen" : "unseen", att: Float64Array.from(att.subarray(c * K, (c + 1) * K)),
  }));
  const lowest = att.reduce((a, b) => Math.min(a, b), 0) < 0 ? -100 : 0;

  const f = (v) => (root ? Math.sign(v) * Math.sqrt(Math.abs(v)) : v);
  function dot(a, b) {
    let sum = 0;
    for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
    return sum;
  }
  /* M v for a matrix of v.length columns, row by row */
  function times(M, v) {
    const n = v.length, out = new Float64Array(M.length / n);
    for (let r = 0; r < out.length; r++) {
      let sum = 0;
      for (let i = 0, at = r * n; i < n; i++, at++) sum += M[at] * v[i];
      out[r] = sum;
    }
    return out;
  }
  /* Mᵀ v for a matrix of `width` columns */
  function back(M, v, width) {
    const out = new Float64Array(width);
    for (let r = 0; r < v.length; r++) for (let i = 0, at = r * width; i < width; i++, at++) out[i] += M[at] * v[r];
    return out;
  }
  function prepare(a) {
    const scale = Math.pow(Math.max(Math.sqrt(dot(a, a)), 1e-12), -power);
    const z = Float64Array.from(a, (v, i) => f(v) * scale - centre[i]);
    const length = Math.max(Math.sqrt(dot(z, z)), 1e-12);
    return z.map((v) => v / length);
  }
  const kernel = (product) => (encoder.width === null ? product : Math.exp((product - 1) / encoder.width));
  /* of products (m) of a prepared row with the landmarks: weights of the seen classes over the mixture's length, and
     what is taken away for its closeness to the nearest seen mean */
  function mixed(products) {
    const W = back(A, products.map(kernel), S), t = times(gram, W), n = Math.max(Math.sqrt(Math.max(dot(W, t), 0)), 1e-12);
    let nearest = -Infinity;
    for (let s = 0; s < S; s++) nearest = Math.max(nearest, t[s] / (n * lengths[s]));
    return { mix: W.map((v) => v / n), own: -encoder.hubness * nearest };
  }
  function ready(c) {
    if (!c.z) {
      c.z = prepare(c.att);
      Object.assign(c, gram ? mixed(times(landmarks, c.z)) : { mix: null, own: 0 });
    }
    return c;
  }
  const margin = (c) => (c.side === "seen" ? 0 : D.gamma);
  /* what each part adds to the calibrated score of a class */
  function parts(image, c) {
    ready(c);
    const attributes = c.z.map((v, i) => v * image.g[i]);
    const own = image.own && c.number < C ? image.own[c.number] : c.own;
    const mixed = c.mix ? c.mix.map((v, s) => v * image.h[s]) : new Float64Array(0);
    const gamma = margin(c), total = (list) => list.reduce((a, b) => a + b, 0);
    return { attributes, mixed, own, gamma, sum: total(attributes) + total(mixed) + own + gamma };
  }
  /* as the model gave it where the model knew the class, else from its description */
  function score(image, c) {
    return c.number < C ? image.scores[c.number] + margin(c) : parts(image, c).sum;
  }
  const offered = (among) => classes.filter((c) => among === "all" || (c.side === "seen") === (among === "seen"));
  function ranking(image, among) {
    return offered(among).map((c) => ({ c, score: score(image, c) })).sort((a, b) => b.score - a.score);
  }

  /* calibrated score of a class without training images as a function of (attribute, its value) */
  const changed = (image, c) => (i, v) => parts(image, { number: C, side: c.side, att: c.att.with(i, v) }).sum;
  /* the best class among those offered but c */
  function rival(image, c, among) {
    return ranking(image, among).find((r) => r.c !== c) || null;
  }
  /* values of attribute i at which class c begins or ceases to be ahead of the others */
  function flips(at, other, i, steps) {
    const found = [], ahead = (v) => at(i, v) > other;
    let low = lowest, was = ahead(low);
    for (let n = 1; n <= steps; n++) {
      const high = lowest + ((100 - lowest) * n) / steps, is = ahead(high);
      if (is !== was) {
        let a = low, b = high;
        for (let turn = 0; turn < 40; turn++) {
          const middle = (a + b) / 2;
          if (ahead(middle) === was) a = middle; else b = middle;
        }
        found.push({ value: b, other: a, gains: is });
      }
      low = high;
      was = is;
    }
    return found;
  }
  /* the smallest change of one attribute that flips the decision for or against class c */
  function smallest(image, c, among) {
    const against = rival(image, c, among);
    if (!against) return null;
    const at = changed(image, c), now = at(0, c.att[0]) > against.score;
    let best = null;
    for (let i = 0; i < K; i++) {
      for (const flip of flips(at, against.score, i, 50)) {
        /* the side of the crossing on which the decision is the other one */
        const value = flip.gains === now ? flip.other : flip.value;
        const size = Math.abs(value - c.att[i]);
        if (!best || size < best.size) best = { i, value, size, wins: !now, rival: against.c };
      }
    }
    return best;
  }
  function add(name, values) {
    const c = { name, known: name, number: nextNumber++, side: "unseen", added: true, att: Float64Array.from(values) };
    classes.push(c);
    return c;
  }
  let nextNumber = C;
  function remove(c) {
    classes.splice(classes.indexOf(c), 1);
  }
  return { D, K, C, S, images, classes, splits, lowest, parts, score, ranking, rival, changed, flips, smallest, add,
    remove, margin, ready, seenNames: D.seen.map((c) => D.shown[c]) };
})();
