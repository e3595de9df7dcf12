// Serve the page and the models beside it: npm start. PORT (8080) and HOST (localhost) may be set in the environment.

import { readFile, readdir, access } from 'node:fs/promises';
import { createServer } from 'node:http';
import { extname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { FILES, MODELS } from './site.js';

const TYPES = {
  '.css': 'text/css', '.html': 'text/html; charset=utf-8', '.js': 'text/javascript', '.json': 'application/json',
  '.mjs': 'text/javascript', '.onnx': 'application/octet-stream', '.svg': 'image/svg+xml', '.wasm': 'application/wasm',
};
const HEADERS = {
  'Cache-Control': 'no-cache',
  // Only a page that shares no process with other sites may use threads.
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
  // A worker has the policy of its own response, and the page that of its <meta> too.
  'Content-Security-Policy':
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; " +
    "img-src 'self' blob:; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'Referrer-Policy': 'no-referrer',
  'X-Content-Type-Options': 'nosniff',
};

const place = (name) => new URL(`${encodeURIComponent(name)}/picture.onnx`, MODELS);
const exists = (url) => access(url).then(() => true, () => false);

async function modelNames() {
  const entries = await readdir(MODELS, { withFileTypes: true });
  const names = entries.filter((entry) => entry.isDirectory()).map((entry) => entry.name).sort();
  const found = await Promise.all(names.map((name) => exists(place(name))));
  return names.filter((_, index) => found[index]);
}

async function contentOf(path) {
  if (path === 'models/names.json') return JSON.stringify(await modelNames());
  const name = /^models\/([^/]+)\/picture\.onnx$/.exec(path)?.[1];
  if (name !== undefined) return (await modelNames()).includes(name) ? readFile(place(name)) : null;
  return FILES.has(path) ? readFile(FILES.get(path)) : null;
}

async function answer(request, response) {
  try {
    const path = decodeURIComponent(request.url.split('?')[0]).slice(1) || 'index.html';
    const content = ['GET', 'HEAD'].includes(request.method) ? await contentOf(path) : null;
    response.writeHead(content === null ? 404 : 200, { ...HEADERS, 'Content-Type': TYPES[extname(path)] ?? 'text/plain' });
    response.end(request.method === 'HEAD' ? undefined : (content ?? 'There is no such file.'));
  } catch (error) {
    response.writeHead(error instanceof URIError ? 400 : 500, HEADERS).end(`${error.message}\n`);
  }
}

function stop(line) {
  console.error(line);
  process.exit(1);
}

const host = process.env.HOST || 'localhost';
const port = Number(process.env.PORT || 8080);
if (!Number.isInteger(port) || port < 0 || port > 65535) stop(`PORT (=${process.env.PORT}) must be an integer from 0 to 65535`);
for (const file of FILES.values()) if (!(await exists(file))) stop(`${fileURLToPath(file)} is missing: run npm ci first`);
if (!(await modelNames()).length) stop(`${fileURLToPath(MODELS)} has no NAME/picture.onnx: export a model first`);
createServer(answer)
  .on('error', (error) => stop(`cannot listen on ${host}:${port}: ${error.message}`))
  .listen(port, host, function () {
    console.log(`http://${host.includes(':') ? `[${host}]` : host}:${this.address().port}/ (Ctrl-C stops it)`);
  });
