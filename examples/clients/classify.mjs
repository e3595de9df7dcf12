// Classify pictures with Node: onnxruntime-node, and sharp to decode.
//
//     npm ci --ignore-scripts
//     node classify.mjs picture.onnx PICTURE...
//
// prints a line for each picture; with --json, a line of JSON with the probabilities of all classes.

import { readFile } from 'node:fs/promises';
import ort from 'onnxruntime-node';
import sharp from 'sharp';
// ONNX Runtime shows no metadata in JavaScript; this file reads it, and has no dependencies.
import { readArtefact } from '../../exports/web/artefact.js';

// A picture's pixels, upright: uint8 (H, W, 3) or, with transparency, (H, W, 4).
async function decode(source) {
  const image = sharp(source, { ignoreIcc: true }).rotate().toColourspace('srgb');
  const { data, info } = await image.raw().toBuffer({ resolveWithObject: true });
  return new ort.Tensor('uint8', new Uint8Array(data), [info.height, info.width, info.channels]);
}

process.on('uncaughtException', (error) => {
  console.error(`error: ${error.message}`);
  process.exit(1);
});
const [path, ...rest] = process.argv.slice(2);
if (!path) throw new Error('usage: node classify.mjs picture.onnx [--json] PICTURE...');
const file = await readFile(path);
const { card, golden } = await readArtefact(file);
if (card.kind !== 'picture') throw new Error(`${path} takes no image: name the picture.onnx of an export`);
const { class_names: classNames, calibration, tolerance } = card;
const session = await ort.InferenceSession.create(file);

// Replay the golden pictures: this runtime and this decoder must give the numbers that the file was shipped with.
for (const [i, picture] of golden.pictures.entries()) {
  const { probabilities } = await session.run({ image: await decode(Buffer.from(picture, 'base64')) });
  golden.probabilities[i].forEach((expected, k) => {
    const found = probabilities.data[k];
    const agrees = Math.abs(found - expected) <= tolerance.atol + tolerance.rtol * expected;
    if (!agrees) throw new Error(`golden picture ${i}: ${classNames[k]} has probability ${found}, not ${expected}`);
  });
}
console.error(`${golden.pictures.length} golden pictures agree`);

for (const picture of rest.filter((argument) => argument !== '--json')) {
  const image = await decode(picture).catch((error) => {
    console.error(`error: ${picture}: ${error.message}`);
    process.exitCode = 1;
  });
  if (!image) continue;
  const outputs = await session.run({ image });
  const probabilities = Array.from(outputs.probabilities.data);
  const score = outputs.known_score.data[0];
  const probability = Math.max(...probabilities);
  const label = classNames[probabilities.indexOf(probability)];
  const known = score >= calibration.threshold;
  if (rest.includes('--json')) {
    console.log(JSON.stringify({ path: picture, label, known, known_score: score, probabilities }));
  } else {
    const text = known ? label : `unknown, nearest ${label}`;
    console.log(`${picture}: ${text}, probability ${probability.toFixed(4)}, known score ${score.toFixed(4)}`);
  }
}
