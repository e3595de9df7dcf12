// What the page consists of, for serve.js and build.js: the path of each file on the site, and where it lies here.

const ORT = 'node_modules/onnxruntime-web/dist';

export const MODELS = new URL('../', import.meta.url); // the folder of NAME/picture.onnx

export const FILES = new Map(
  [
    ...['index.html', 'style.css', 'icon.svg', 'page.js', 'worker.js', 'artefact.js', 'pixels.js'].map((name) => [name, name]),
    ...['ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'].map((name) => [`ort/${name}`, `${ORT}/${name}`]),
  ].map(([path, place]) => [path, new URL(place, import.meta.url)]),
);
