// Put the page with all that it needs, except the models, into dist/: npm run build.

import { cp, mkdir, rename, rm } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { FILES } from './site.js';

const dist = new URL('dist/', import.meta.url);
const beside = new URL(`.dist-${process.pid}/`, import.meta.url); // so that dist/ is there whole or not at all
try {
  for (const [path, file] of FILES) {
    await mkdir(new URL('.', new URL(path, beside)), { recursive: true });
    await cp(file, new URL(path, beside));
  }
  await rm(dist, { recursive: true, force: true });
  await rename(beside, dist);
} catch (error) {
  await rm(beside, { recursive: true, force: true });
  console.error(error.code === 'ENOENT' ? `${error.path} is missing: run npm ci first` : error.message);
  process.exit(1);
}
console.log(fileURLToPath(dist));
