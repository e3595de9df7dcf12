// Runs the model beside the page, so that the page never waits: { id, action, value } -> { id, value } or { id, error }.

import * as ort from './ort/ort.wasm.bundle.min.mjs';
import { readArtefact } from './artefact.js';
import { decode } from './pixels.js';

ort.env.logLevel = 'error';
const actions = { load, predict, verify };
let model = null; // { session, card, golden, sealed }
let queue = Promise.resolve();

onmessage = ({ data: { id, action, value } }) => {
  queue = queue.then(async () => {
    try {
      postMessage({ id, value: await actions[action](value) });
    } catch (error) {
      postMessage({ id, error: String(error?.message ?? error).split('\n')[0] });
    }
  });
};

async function load(name) {
  await model?.session.release();
  model = null;
  const path = `models/${encodeURIComponent(name)}/picture.onnx`;
  const response = await fetch(path).catch(() => null);
  if (!response?.ok) throw new Error(`${path} cannot be read: ${response ? `HTTP ${response.status}` : 'no answer'}`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  try {
    const artefact = await readArtefact(bytes);
    model = { session: await ort.InferenceSession.create(bytes), ...artefact };
    await predict(fromBase64(artefact.golden.pictures[0])); // the first picture takes longer than all others
  } catch (error) {
    model = null;
    throw new Error(`${path} ${error.message}`);
  }
  const { card, golden, sealed } = model;
  return {
    classNames: card.class_names, threshold: card.calibration?.threshold ?? 0, precision: card.precision.name,
    accuracy: card.metrics?.test_accuracy, sizeBytes: bytes.length, pictures: golden.pictures.length, sealed,
    runtime: `ONNX Runtime Web ${ort.env.versions.web}`, threads: ort.env.wasm.numThreads,
  };
}

async function predict(blob) {
  const { session, card } = loaded();
  const start = performance.now();
  const { data, width, height, channels } = await decode(blob);
  const decoded = performance.now();
  const image = new ort.Tensor('uint8', data, [height, width, channels]);
  const { probabilities, known_score: score, x } = await session.run({ image });
  const index = probabilities.data.indexOf(Math.max(...probabilities.data));
  return {
    label: card.class_names[index], probabilities: probabilities.data, knownScore: score.data[0], x: x.data, shape: x.dims,
    width, height, channels, decodeMs: decoded - start, modelMs: performance.now() - decoded,
  };
}

// Replay the golden pictures: what the file was shipped with against what it gives here.
async function verify() {
  const { card, golden } = loaded();
  const outcomes = [];
  for (const [index, picture] of golden.pictures.entries()) {
    const png = fromBase64(picture);
    const result = await predict(png);
    const expected = [...golden.probabilities[index], golden.known_scores[index]];
    const given = [...result.probabilities, result.knownScore];
    const distances = expected.map((value, at) => Math.abs(value - given[at]));
    const isWithin = distances.every((distance, at) => distance <= card.tolerance.atol + card.tolerance.rtol * expected[at]);
    outcomes.push({
      png, label: result.label, expected: golden.labels[index], distance: Math.max(...distances),
      passed: isWithin && result.label === golden.labels[index],
    });
  }
  return outcomes;
}

function fromBase64(text) {
  return new Blob([Uint8Array.from(atob(text), (character) => character.charCodeAt(0))], { type: 'image/png' });
}

function loaded() {
  if (!model) throw new Error('no model is loaded');
  return model;
}
