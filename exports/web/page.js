// The page: pictures in, answers out. The model runs in worker.js.

import { checkSize } from './pixels.js';

const MODELS = ['fashion-mnist', 'fashion-mnist-int8']; // where no models/names.json says what there is
const MAX_BYTES = 256 * 2 ** 20; // more than any format needs for the most pixels that are read
const MAX_BARS = 10;
const MAX_NAMES = 20;
const PEN = 24; // pixels of the paper's 336

const byId = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const { paper, video, preview } = Object.fromEntries(['paper', 'video', 'preview'].map((id) => [id, byId(id)]));
const source = () => document.querySelector('[name=source]:checked').value;

function element(tag, text = '', className = '') {
  return Object.assign(document.createElement(tag), { textContent: text, className });
}

// The worker

const worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });
const waiting = new Map();
let lastId = 0;

function ask(action, value) {
  return new Promise((resolve, reject) => {
    waiting.set(++lastId, { resolve, reject });
    worker.postMessage({ id: lastId, action, value });
  });
}

worker.onmessage = ({ data: { id, value, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  error === undefined ? resolve(value) : reject(new Error(error));
};

worker.onerror = (event) => {
  event.preventDefault();
  for (const { reject } of waiting.values()) reject(new Error('ONNX Runtime Web could not start in this browser'));
  waiting.clear();
};

// The model

let model = null; // what is loaded: its names, threshold and so on

async function loadModel() {
  const name = byId('model').value;
  model = null;
  complain('');
  byId('verify').disabled = true;
  byId('about').textContent = byId('verdict').textContent = '';
  byId('golden').replaceChildren();
  byId('bars').replaceChildren();
  byId('details').hidden = true;
  tell('Loading the model', 'This takes a moment.');
  try {
    const loaded = await ask('load', name);
    if (name !== byId('model').value) return; // another one has been chosen since
    model = loaded;
  } catch (error) {
    if (name !== byId('model').value) return;
    tell('No model', '');
    complain(error.message);
    return;
  }
  byId('verify').disabled = false;
  byId('about').textContent = aboutModel();
  if (current) await nameIt(current.blob, current.title);
  else tell('Ready', 'Choose a picture, use the camera, or draw.');
}

function aboutModel() {
  const { classNames, accuracy, precision, sizeBytes, pictures, sealed, runtime, threads } = model;
  const names = classNames.slice(0, MAX_NAMES).join(', ') + (classNames.length > MAX_NAMES ? ' …' : '');
  const facts = [
    `${classNames.length} classes (${names})`, precision, `${Math.round(sizeBytes / 1000).toLocaleString('en')} KB`,
    ...(typeof accuracy === 'number' ? [`${percent(accuracy)} of the test images right`] : []),
    runtime, `${threads} ${threads === 1 ? 'thread' : 'threads'}`,
  ];
  const seal = sealed ? 'The file is unchanged since it was exported.' : 'Only a page over HTTPS can tell whether the file has changed.';
  return `${facts.join(', ')}. ${seal} It carries ${pictures} pictures with the answers that it must give; Verify replays them here.`;
}

async function verify() {
  const button = byId('verify');
  button.disabled = true;
  say(byId('verdict'), 'Replaying the pictures …');
  try {
    const outcomes = await ask('verify');
    const failed = outcomes.filter(({ passed }) => !passed).length;
    byId('golden').replaceChildren(...outcomes.map(goldenItem));
    const count = outcomes.length;
    if (failed) say(byId('verdict'), `Failed: ${failed} of ${count} pictures give another answer here.`, 'failed');
    else say(byId('verdict'), `Passed: all ${count} pictures give the answers of the file.`, 'passed');
  } catch (error) {
    say(byId('verdict'), `Failed: ${error.message}`, 'failed');
  }
  button.disabled = false;
}

function goldenItem({ png, label, expected, distance, passed }) {
  const item = element('li');
  const image = element('img');
  image.src = URL.createObjectURL(png);
  image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
  image.alt = '';
  const text = element('span', expected);
  const reason = label === expected ? `differs by ${distance.toPrecision(2)}` : `given as ${label}`;
  text.append(element('span', passed ? 'pass' : `fail: ${reason}`, passed ? 'passed' : 'failed'));
  item.append(image, text);
  return item;
}

// Answers

let current = null; // the picture that the answer is for
let newest = 0;

async function nameIt(blob, title) {
  const turn = ++newest;
  current = { blob, title };
  if (!model) return; // it is named when a model is loaded
  complain('');
  try {
    const result = await ask('predict', blob);
    if (turn === newest && model) showResult(result);
  } catch (error) {
    if (turn !== newest) return;
    forget();
    complain(`${title} ${error.message}`);
  }
}

// Whether the pixels of each plane differ by at most 8 of 255, as `fmcae predict` has it.
function hasNoItem(x, planes) {
  const size = x.length / planes;
  return Array.from({ length: planes }, (_, plane) => x.slice(plane * size, (plane + 1) * size)).every((values) => {
    const [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [1, 0]);
    return Math.round(255 * high) - Math.round(255 * low) <= 8;
  });
}

function showResult({ label, probabilities, knownScore, x, shape, width, height, channels, decodeMs, modelMs }) {
  const known = knownScore >= model.threshold;
  const ranks = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a]);
  const share = percent(probabilities[ranks[0]]);
  const noItem = hasNoItem(x, shape[1]);
  tell(known ? label : 'Unknown', known ? share + (noItem ? ', no item' : '') : `${noItem ? 'no item; ' : ''}nearest: ${label}, ${share}`);
  byId('bars').className = known ? '' : 'unknown';
  byId('bars').replaceChildren(...ranks.slice(0, MAX_BARS).map((index) => bar(model.classNames[index], probabilities[index])));
  const [, planes, size] = shape; // x is (1, planes, size, size): grey, or red, green and blue
  const plane = (at) => (planes === 3 ? (at % 4) * size * size : 0);
  const pixels = Uint8ClampedArray.from({ length: 4 * size * size }, (_, at) => (at % 4 === 3 ? 255 : 255 * x[plane(at) + (at >> 2)]));
  byId('seen').width = byId('seen').height = size;
  byId('seen').getContext('2d').putImageData(new ImageData(pixels, size, size), 0, 0);
  byId('seen').setAttribute('aria-label', `The picture as the model sees it, ${size} by ${size} pixels`);
  byId('edges').textContent = `${size}\u00a0×\u00a0${size}`;
  byId('size').textContent = `of ${width}\u00a0×\u00a0${height}`;
  byId('known').textContent = `${knownScore.toFixed(3)}; below ${model.threshold.toFixed(3)} it is unknown`;
  byId('time').textContent = `${decodeMs.toFixed(1)} ms to read the picture, ${modelMs.toFixed(1)} ms for the answer`;
  byId('details').hidden = false;
  preview.className = `${channels === 4 ? 'transparent' : ''} ${Math.max(width, height) < 112 ? 'small' : ''}`;
}

function bar(name, share) {
  const item = element('li');
  const track = element('span', '', 'bar');
  track.append(element('span'));
  track.firstChild.style.width = percent(share);
  item.append(element('span', name), track, element('span', percent(share), 'share'));
  return item;
}

function tell(label, note) {
  say(byId('label'), label);
  say(byId('note'), note);
}

// A screen reader speaks of each change, so that nothing is written twice.
function say(where, text, className = where.className) {
  where.className = className;
  if (where.textContent !== text) where.textContent = text;
}

function complain(text) {
  say(byId('problem'), text);
}

function forget() {
  newest++;
  current = null;
  byId('bars').replaceChildren();
  byId('details').hidden = true;
  if (model) tell('Ready', 'Choose a picture, use the camera, or draw.');
}

// Pictures from files, the clipboard and other windows

let shown = null; // the picture in the drop area

async function show(blob, title) {
  forget();
  select('file');
  shown = null;
  preview.hidden = true;
  byId('hint').hidden = false;
  if (blob.size > MAX_BYTES) return complain(`${title} has more than ${MAX_BYTES.toLocaleString('en')} bytes`);
  const turn = newest;
  URL.revokeObjectURL(preview.src);
  preview.className = '';
  preview.src = URL.createObjectURL(blob);
  try {
    await new Promise((resolve, reject) => Object.assign(preview, { onload: resolve, onerror: reject }));
  } catch {
    if (turn === newest) complain(`${title} is not a picture that this browser reads`);
    return;
  }
  if (turn !== newest) return;
  try {
    checkSize(preview.naturalWidth, preview.naturalHeight); // before anything is decoded
  } catch (error) {
    return complain(`${title} ${error.message}`);
  }
  preview.hidden = false;
  byId('hint').hidden = true;
  shown = { blob, title };
  await nameIt(blob, title);
}

function showFirst(files) {
  if (files.length) show(files[0], files[0].name || 'The picture');
  else complain('That is no picture file: save the picture first, then choose it');
}

byId('file').addEventListener('change', ({ target }) => {
  if (target.files.length) showFirst(target.files);
  target.value = ''; // so that the same file can be chosen again
});

document.addEventListener('paste', ({ clipboardData }) => {
  if (clipboardData.files.length) showFirst(clipboardData.files);
});

for (const type of ['dragenter', 'dragover', 'dragleave', 'drop']) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    byId('drop').classList.toggle('over', type === 'dragenter' || type === 'dragover');
    if (type === 'drop') showFirst(event.dataTransfer.files);
  });
}

// The sources

function select(value) {
  document.querySelector(`[name=source][value=${value}]`).checked = true;
  for (const panel of document.querySelectorAll('[data-source]')) panel.hidden = panel.dataset.source !== value;
  if (value !== 'camera') stopCamera();
}

byId('sources').addEventListener('change', () => {
  select(source());
  complain('');
  forget();
  if (source() === 'file' && shown) nameIt(shown.blob, shown.title);
  if (source() === 'camera') startCamera();
  if (source() === 'drawing') nameDrawing();
});

// The camera

async function startCamera() {
  try {
    if (!navigator.mediaDevices) throw new Error('only a page over HTTPS may use it');
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
    stopCamera(); // another one that was asked for meanwhile
    video.srcObject = stream;
    if (source() !== 'camera') return stopCamera();
    await video.play();
    byId('shoot').disabled = false;
  } catch (error) {
    if (source() === 'camera') complain(`The camera cannot be used: ${error.message}`);
  }
}

function stopCamera() {
  byId('shoot').disabled = true;
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}

byId('shoot').addEventListener('click', () => {
  const frame = element('canvas');
  [frame.width, frame.height] = [video.videoWidth, video.videoHeight];
  frame.getContext('2d').drawImage(video, 0, 0);
  frame.toBlob((blob) => show(blob, "The camera's picture"));
});

// The drawing

const strokes = []; // each a list of [x, y] in pixels of the paper
const pen = paper.getContext('2d');
Object.assign(pen, { lineWidth: PEN, lineCap: 'round', lineJoin: 'round' });

function drawStrokes() {
  pen.fillStyle = '#fff';
  pen.fillRect(0, 0, paper.width, paper.height);
  for (const stroke of strokes) {
    pen.beginPath();
    for (const [x, y] of [stroke[0], ...stroke]) pen.lineTo(x, y); // a single point is a dot
    pen.stroke();
  }
}

function nameDrawing() {
  drawStrokes();
  byId('undo').disabled = byId('clear').disabled = !strokes.length;
  if (!strokes.length) return forget();
  paper.toBlob((blob) => source() === 'drawing' && nameIt(blob, 'The drawing'));
}

function pointOf({ clientX, clientY }) {
  const { left, top, width, height } = paper.getBoundingClientRect();
  return [((clientX - left) / width) * paper.width, ((clientY - top) / height) * paper.height];
}

paper.addEventListener('pointerdown', (event) => {
  if (event.button !== 0 || !event.isPrimary) return;
  paper.setPointerCapture(event.pointerId);
  strokes.push([pointOf(event)]);
  drawStrokes();
});

paper.addEventListener('pointermove', (event) => {
  if (!paper.hasPointerCapture(event.pointerId)) return;
  strokes.at(-1).push(...[...event.getCoalescedEvents(), event].map(pointOf));
  drawStrokes();
});

paper.addEventListener('lostpointercapture', nameDrawing);

byId('undo').addEventListener('click', () => {
  strokes.pop();
  nameDrawing();
});

byId('clear').addEventListener('click', () => {
  strokes.length = 0;
  nameDrawing();
});

// Start

async function namesOfModels() {
  try {
    const names = await (await fetch('models/names.json')).json();
    return Array.isArray(names) && names.length ? names.map(String) : MODELS;
  } catch {
    return MODELS;
  }
}

byId('model').append(...(await namesOfModels()).map((name) => element('option', name)));
byId('model').disabled = false;
byId('model').addEventListener('change', loadModel);
byId('verify').addEventListener('click', verify);
drawStrokes();
await loadModel();
