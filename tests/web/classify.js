// Classify pictures as the page does, in a real Chromium: CHROMIUM names it, and /usr/bin/chromium is it otherwise.
//
//     node classify.js exports/NAME/picture.onnx --json PICTURE...
//
// Arguments and output are those of examples/clients, and so is what it does first: it replays the golden pictures.

import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname } from 'node:path';

const WEB = new URL('../../exports/web/', import.meta.url);
const { chromium } = createRequire(new URL('package.json', WEB))('playwright-core');
const [model, ...rest] = process.argv.slice(2);

const server = spawn('node', ['serve.js'], { cwd: WEB, env: { ...process.env, HOST: 'localhost', PORT: '0' }, stdio: ['ignore', 'pipe', 'inherit'] });
const url = await new Promise((resolve) => server.stdout.on('data', (line) => resolve(String(line).split(' ')[0])));
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] });
try {
  const page = await browser.newPage();
  await page.goto(url);
  const ask = (action, value, isFile = false) => page.evaluate(async ([action, value, isFile]) => {
    globalThis.worker ??= new Worker('worker.js', { type: 'module' });
    const bytes = isFile && Uint8Array.from(atob(value), (character) => character.charCodeAt(0));
    const answer = new Promise((resolve) => { globalThis.worker.onmessage = ({ data }) => resolve(data); });
    globalThis.worker.postMessage({ id: 0, action, value: isFile ? new Blob([bytes]) : value });
    const { value: found, error } = await answer;
    if (error) throw new Error(error);
    return found.probabilities ? { ...found, probabilities: [...found.probabilities] } : found;
  }, [action, value, isFile]);
  const { threshold } = await ask('load', basename(dirname(model)));
  const outcomes = (await ask('verify')).filter(({ passed }) => passed);
  console.error(`${outcomes.length} golden pictures agree`);
  for (const path of rest.filter((argument) => argument !== '--json')) {
    const { label, probabilities, knownScore } = await ask('predict', readFileSync(path).toString('base64'), true);
    console.log(JSON.stringify({ path, label, known: knownScore >= threshold, known_score: knownScore, probabilities }));
  }
} finally {
  await browser.close();
  server.kill();
}
