// The page in a real Chromium: CHROMIUM names it, and /usr/bin/chromium is it otherwise. tests/test_web.py runs this with
// FMCAE_PICTURES, a folder of pictures and of what Pillow makes of them. FMCAE_SCREENSHOTS is a folder to draw the page into.

import assert from 'node:assert/strict';
import { execFile, spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { crc32, deflateSync } from 'node:zlib';
import { protobufFields, readArtefact, readMetadata } from '../../exports/web/artefact.js';

const EXPORTS = new URL('../../exports/', import.meta.url);
const WEB = new URL('web/', EXPORTS);
const { chromium } = createRequire(new URL('package.json', WEB))('playwright-core');
const MODEL = new URL('fashion-mnist/picture.onnx', EXPORTS);
const SAMPLE = new URL('samples/ankle-boot.png', EXPORTS).pathname;
const { FMCAE_PICTURES: PICTURES, FMCAE_SCREENSHOTS: SCREENSHOTS, CHROMIUM = '/usr/bin/chromium' } = process.env;
const skip = existsSync(MODEL) ? false : 'exports/fashion-mnist/picture.onnx is missing';

let server, url, browser;

before(async () => {
  if (skip) return;
  server = spawn('node', ['serve.js'], { cwd: WEB, env: { ...process.env, HOST: 'localhost', PORT: '0' }, stdio: ['ignore', 'pipe', 'inherit'] });
  url = await new Promise((resolve, reject) => {
    server.stdout.on('data', (line) => resolve(String(line).split(' ')[0]));
    server.on('exit', () => reject(new Error('serve.js ended')));
  });
  const fakeCamera = ['--use-fake-ui-for-media-stream', '--use-fake-device-for-media-stream'];
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', ...fakeCamera] });
});

after(async () => {
  await browser?.close();
  server?.kill();
});

async function open(address = url, options = {}) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, ...options });
  page.setDefaultTimeout(30_000);
  page.troubles = [];
  page.on('pageerror', (error) => page.troubles.push(error.message));
  page.on('console', (message) => ['error', 'warning'].includes(message.type()) && page.troubles.push(message.text()));
  await page.goto(address);
  await page.locator('#label:text-is("Ready")').waitFor();
  return page;
}

async function close(page) {
  const troubles = page.troubles.filter((text) => !text.includes('GPU stall due to ReadPixels'));
  await page.close();
  assert.deepEqual(troubles, []);
}

const answer = async (page) => [await page.textContent('#label'), await page.textContent('#note')];
const answered = (page) => page.locator('#details:visible').waitFor();

// Give the page a file as a drop or a paste would.
function give(page, kind, content, name, type) {
  return page.evaluate(([kind, base64, name, type]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))], name, { type }));
    const event = kind === 'drop' ? new DragEvent('drop', { dataTransfer: transfer, bubbles: true })
      : new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true });
    (kind === 'drop' ? document.getElementById('drop') : document).dispatchEvent(event);
  }, [kind, content.toString('base64'), name, type]);
}

// The sample on a light 1024 × 1024 picture, as a JPEG.
async function largeSample(page) {
  const base64 = await page.evaluate(async (base64) => {
    const image = await createImageBitmap(new Blob([Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))]));
    const canvas = document.createElement('canvas');
    const context = Object.assign(canvas, { width: 1024, height: 1024 }).getContext('2d');
    context.filter = 'invert(1)';
    context.drawImage(image, 112, 112, 800, 800);
    context.filter = 'none';
    context.globalCompositeOperation = 'destination-over';
    context.fillStyle = 'white';
    context.fillRect(0, 0, 1024, 1024);
    return canvas.toDataURL('image/jpeg', 0.9).split(',')[1];
  }, readFileSync(SAMPLE).toString('base64'));
  return Buffer.from(base64, 'base64');
}

// A black PNG of 1 bit a pixel.
function blankPng(width, height) {
  const chunk = (name, content) => {
    const part = Buffer.concat([Buffer.from(name), content]);
    const ends = [Buffer.alloc(4), Buffer.alloc(4)];
    ends[0].writeUInt32BE(content.length);
    ends[1].writeUInt32BE(crc32(part));
    return Buffer.concat([ends[0], part, ends[1]]);
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header[8] = 1;
  const rows = deflateSync(Buffer.alloc(height * (1 + Math.ceil(width / 8))));
  const signature = Buffer.from([137, 80, 78, 71, 13, 10, 26, 10]);
  return Buffer.concat([signature, chunk('IHDR', header), chunk('IDAT', rows), chunk('IEND', Buffer.alloc(0))]);
}

test('a picture that is dropped, pasted or chosen gets its label', { skip }, async () => {
  const page = await open();
  const sample = readFileSync(SAMPLE);
  await give(page, 'drop', sample, 'ankle-boot.png', 'image/png');
  await answered(page);
  assert.equal((await answer(page))[0], 'Ankle boot');
  assert.match(await page.textContent('#size'), /28\s×\s28/);
  assert.match(await page.textContent('#time'), /^\d+\.\d ms .* \d+\.\d ms/);
  assert.equal(await page.locator('#bars li').count(), 10);
  const seen = await page.evaluate(() => [...document.getElementById('seen').getContext('2d').getImageData(0, 0, 28, 28).data]);
  const pixels = await page.evaluate(async (base64) => {
    const { decode } = await import('./pixels.js');
    return [...(await decode(new Blob([Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))]))).data];
  }, sample.toString('base64'));
  assert.deepEqual(seen.filter((_, at) => at % 4 === 0), pixels.filter((_, at) => at % 3 === 0)); // it is taken as it is
  await give(page, 'paste', await largeSample(page), 'large.jpg', 'image/jpeg');
  await page.locator('#size:has-text("1024\u00a0×\u00a01024")').waitFor();
  assert.equal((await answer(page))[0], 'Ankle boot');
  await page.setInputFiles('#file', new URL('samples/bag.png', EXPORTS).pathname);
  await page.locator('#label:text-is("Bag")').waitFor();
  assert.equal(await page.evaluate(() => crossOriginIsolated), true);
  await close(page);
});

test('every model passes Verify', { skip }, async () => {
  const page = await open();
  const names = await page.locator('#model option').allTextContents();
  assert.deepEqual(names, readdirSync(EXPORTS).filter((name) => existsSync(new URL(`${name}/picture.onnx`, EXPORTS))).sort());
  for (const name of names) {
    await page.selectOption('#model', name);
    await page.locator('#verify:enabled').waitFor();
    assert.match(await page.textContent('#about'), /The file is unchanged since it was exported\./);
    await page.click('#verify');
    await page.locator('#verdict:text-matches("^(Passed|Failed)")').waitFor();
    assert.match(await page.textContent('#verdict'), /^Passed: all \d+ pictures/);
    assert.equal(await page.locator('#golden .passed').count(), await page.locator('#golden li').count());
  }
  await close(page);
});

test('Verify fails where the browser decodes other pixels', { skip }, async () => {
  const page = await browser.newPage();
  await page.route('**/pixels.js', async (route) => {
    const response = await route.fetch();
    const body = (await response.text()).replace('return { width, height,', 'data.reverse(); return { width, height,');
    await route.fulfill({ response, body });
  });
  await page.goto(url);
  await page.locator('#verify:enabled').click();
  await page.locator('#verdict:has-text("Failed")').waitFor();
  assert.match(await page.textContent('#verdict'), /^Failed: \d+ of 10 pictures/);
  await page.close();
});

test('what is no picture, or too large, is one line, and the next picture works', { skip }, async () => {
  const page = await open();
  await give(page, 'drop', Buffer.from('words'), 'notes.txt', 'text/plain');
  await page.locator('#problem:text-is("notes.txt is not a picture that this browser reads")').waitFor();
  await give(page, 'drop', blankPng(8001, 8000), 'large.png', 'image/png');
  await page.locator('#problem:text-is("large.png has 8001 × 8000 pixels; at most 64,000,000 are read")').waitFor();
  await give(page, 'drop', readFileSync(SAMPLE).subarray(0, 60), 'half.png', 'image/png');
  await page.locator('#problem:text-is("half.png is not a picture that this browser reads")').waitFor();
  assert.equal(await page.isVisible('#details'), false);
  await give(page, 'drop', blankPng(30, 50), '<b>.png', 'image/png');
  await answered(page);
  assert.equal(await page.textContent('#label'), 'Unknown');
  assert.match(await page.textContent('#note'), /^no item; nearest: /);
  assert.equal(await page.textContent('#problem'), '');
  await close(page);
});

test('a drawing is named, undone and cleared', { skip }, async () => {
  const page = await open();
  await page.check('[value=drawing]');
  const { x, y, width, height } = await page.locator('#paper').boundingBox();
  const stroke = async (...points) => {
    await page.mouse.move(x + width * points[0][0], y + height * points[0][1]);
    await page.mouse.down();
    for (const [across, down] of points.slice(1)) await page.mouse.move(x + width * across, y + height * down, { steps: 5 });
    await page.mouse.up();
  };
  await stroke([0.2, 0.2], [0.8, 0.8]);
  await answered(page);
  const [first, nearest] = await answer(page);
  assert.equal(first, 'Unknown');
  assert.match(nearest, /^nearest: .+, \d+\.\d%$/);
  await stroke([0.8, 0.2], [0.2, 0.8]);
  await page.locator(`#note:not(:text-is("${nearest}"))`).waitFor();
  await page.click('#undo');
  await page.locator(`#note:text-is("${nearest}")`).waitFor();
  await page.click('#clear');
  await page.locator('#label:text-is("Ready")').waitFor();
  assert.equal(await page.isDisabled('#undo'), true);
  await close(page);
});

test('the camera takes a picture, and stops', { skip }, async () => {
  const page = await open();
  await page.check('[value=camera]');
  await page.locator('#shoot:enabled').click();
  await answered(page);
  assert.equal(await page.isChecked('[value=file]'), true);
  assert.equal(await page.evaluate(() => document.getElementById('video').srcObject), null);
  await close(page);
});

test('all controls are reached by keyboard', { skip }, async () => {
  const page = await open();
  const reached = [];
  for (let press = 0; press < 4; press++) {
    await page.keyboard.press('Tab');
    reached.push(await page.evaluate(() => document.activeElement.id || document.activeElement.value));
  }
  assert.deepEqual(reached, ['file', 'file', 'model', 'verify']); // the radio button of that value, then the drop area
  await page.keyboard.press('Enter');
  await page.locator('#verdict:has-text("Passed")').waitFor();
  await page.focus('[value=file]');
  await page.keyboard.press('ArrowLeft');
  assert.equal(await page.isVisible('#paper'), true);
  await close(page);
});

test('nothing scrolls sideways on a phone', { skip }, async () => {
  const page = await open();
  await give(page, 'drop', await largeSample(page), 'large.jpg', 'image/jpeg');
  await answered(page);
  await page.click('#verify');
  await page.locator('#verdict:has-text("Passed")').waitFor();
  for (const source of ['file', 'drawing', 'camera']) {
    await page.check(`[value=${source}]`);
    if (source === 'file') await answered(page);
    for (const [width, height] of [[1280, 900], [390, 844], [360, 640]]) {
      await page.setViewportSize({ width, height });
      assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= width, `${source} at ${width} pixels`);
      for (const colorScheme of SCREENSHOTS ? ['light', 'dark'] : []) {
        await page.emulateMedia({ colorScheme });
        await page.screenshot({ path: `${SCREENSHOTS}/${width}-${colorScheme}-${source}.png`, fullPage: true });
      }
    }
  }
  await close(page);
});

test('pictures decode to the bytes that Pillow gives', { skip: skip || (!PICTURES && 'FMCAE_PICTURES is not set') }, async () => {
  const page = await open();
  for (const [name, { width, height, transparent, tolerance }] of Object.entries(JSON.parse(readFileSync(`${PICTURES}/pictures.json`)))) {
    const decoded = await page.evaluate(async (base64) => {
      const { decode } = await import('./pixels.js');
      const { data, ...rest } = await decode(new Blob([Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))]));
      return { ...rest, data: [...data] };
    }, readFileSync(`${PICTURES}/${name}`).toString('base64'));
    const { data, ...rest } = decoded;
    assert.deepEqual(rest, { width, height, channels: transparent ? 4 : 3 }, name);
    const expected = readFileSync(`${PICTURES}/${name}.raw`);
    assert.equal(data.length, expected.length, name);
    const most = data.reduce((found, value, at) => Math.max(found, Math.abs(value - expected[at])), 0);
    assert.ok(most <= tolerance, `${name} differs by ${most}`);
  }
  await close(page);
});

test('the built page works at any path of a plain server, and shows labels as text', { skip }, async () => {
  await promisify(execFile)('node', ['build.js'], { cwd: WEB });
  const files = readdirSync(new URL('dist/', WEB), { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  assert.deepEqual(files.map(({ name }) => name).sort(), [
    'artefact.js', 'icon.svg', 'index.html', 'ort-wasm-simd-threaded.wasm', 'ort.wasm.bundle.min.mjs', 'page.js', 'pixels.js',
    'style.css', 'worker.js',
  ]);
  const types = { css: 'text/css', html: 'text/html', js: 'text/javascript', mjs: 'text/javascript', svg: 'image/svg+xml', wasm: 'application/wasm' };
  const hostile = resealed(readFileSync(MODEL), 'Ankle boot', '<b>oot</b>');
  const plain = createServer((request, response) => {
    const path = request.url.replace('/some/where/', '');
    const place = new URL(path || 'index.html', new URL('dist/', WEB));
    const content = path === 'models/fashion-mnist/picture.onnx' ? hostile : existsSync(place) ? readFileSync(place) : null;
    response.writeHead(content ? 200 : 404, { 'Content-Type': types[place.pathname.split('.').pop()] ?? 'application/octet-stream' });
    response.end(content);
  });
  await new Promise((resolve) => plain.listen(0, 'localhost', resolve));
  const page = await open(`http://localhost:${plain.address().port}/some/where/`);
  assert.match(await page.textContent('#about'), / 1 thread\. /);
  await give(page, 'drop', readFileSync(SAMPLE), 'ankle-boot.png', 'image/png');
  await page.locator('#label:text-is("<b>oot</b>")').waitFor();
  assert.equal(await page.locator('#label b, #bars b').count(), 0);
  await page.selectOption('#model', 'fashion-mnist-int8'); // which this server does not have
  await page.locator('#problem:text-is("models/fashion-mnist-int8/picture.onnx cannot be read: HTTP 404")').waitFor();
  page.troubles = page.troubles.filter((text) => !text.includes('404'));
  await close(page);
  plain.close();
});

// A model with a text of its card and golden pictures changed to one of the same length, and sealed again.
function resealed(model, before, after) {
  const swap = (content, from, to) => Buffer.from(content.toString('latin1').replaceAll(from, to), 'latin1');
  const sha256 = (text) => createHash('sha256').update(text).digest('hex');
  const old = readMetadata(model);
  let changed = swap(model, before, after);
  for (const key of ['fmcae.card', 'fmcae.golden', 'names']) {
    if (old.has(key)) changed = swap(changed, sha256(old.get(key)), sha256(readMetadata(changed).get(key)));
  }
  return changed;
}

test('a damaged model is refused', { skip }, async () => {
  const model = readFileSync(MODEL);
  assert.equal((await readArtefact(model)).sealed, true);
  const changed = Buffer.from(model);
  changed[Math.floor(model.length / 4)] ^= 1; // among the weights
  await assert.rejects(readArtefact(changed), /^Error: is not the file that was exported: its graph or weights changed since$/);
  const relabelled = Buffer.from(model.toString('latin1').replaceAll('Ankle boot', 'Ankle book'), 'latin1');
  await assert.rejects(readArtefact(relabelled), /its card and its golden pictures/);
  await assert.rejects(readArtefact(readFileSync(SAMPLE)), /is not an ONNX model/);
  for (let length = 0; length < model.length; length += 9973) {
    await assert.rejects(readArtefact(model.subarray(0, length)), /^Error: is /, `of ${length} bytes`);
  }
  assert.throws(() => [...protobufFields(new Uint8Array(20).fill(255))], /a number that does not end/);
});

test('the server gives the page and the models, and nothing else', { skip }, async () => {
  const status = async (path, method = 'GET') => (await fetch(url + path, { method })).status;
  assert.equal(await status('models/fashion-mnist/picture.onnx', 'HEAD'), 200);
  for (const path of ['package.json', 'serve.js', '..%2Ffashion-mnist%2Fconfig.json', 'models/..%2Fweb/picture.onnx', 'models/x/picture.onnx', '%00']) {
    assert.equal(await status(path), 404, path);
  }
  assert.equal(await status('%E0'), 400);
  assert.equal(await status('', 'POST'), 404);
  const { headers } = await fetch(`${url}worker.js`);
  assert.match(headers.get('content-security-policy'), /default-src 'none'/);
  assert.equal(headers.get('cross-origin-embedder-policy'), 'require-corp');
  const start = (port) => spawnSync('node', ['serve.js'], { cwd: WEB, env: { ...process.env, PORT: port }, encoding: 'utf8' });
  assert.match(start('http').stderr, /^PORT \(=http\) must be an integer from 0 to 65535\n$/);
  assert.match(start(new URL(url).port).stderr, /^cannot listen on localhost:\d+: .*EADDRINUSE.*\n$/);
});
