// What an exported ONNX file says of itself: the card, the golden pictures and the seal in its metadata, which ONNX
// Runtime Web does not show. fmcae/card.py has the same in Python.

const GRAPH = 7, METADATA = 14; // fields of ModelProto in onnx.proto
const PARTS = new Map([
  ['graph', 'its graph or weights'], ['card', 'its card'], ['golden', 'its golden pictures'], ['names', 'its names'],
]);

// Split a message into its top-level fields; only length-delimited ones have content.
// Source: https://protobuf.dev/programming-guides/encoding/
export function* protobufFields(message) {
  let position = 0;
  const varint = () => {
    for (let value = 0, factor = 1; factor <= 2 ** 63; factor *= 128) {
      if (position >= message.length) break;
      const byte = message[position++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
    throw new Error('it has a number that does not end');
  };
  while (position < message.length) {
    const start = position;
    const tag = varint();
    const type = tag % 8;
    const size = { 0: () => (varint(), 0), 1: () => 8, 2: varint, 5: () => 4 }[type]?.();
    if (size === undefined) throw new Error(`byte ${position} starts no protobuf field`);
    const end = position + size;
    if (end > message.length) throw new Error('it ends inside a field');
    const content = type === 2 ? message.subarray(position, end) : new Uint8Array();
    yield { number: Math.floor(tag / 8), content, all: message.subarray(start, end) };
    position = end;
  }
}

export function readMetadata(model) {
  const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  const entries = new Map();
  let hasGraph = false;
  try {
    for (const { number, content } of protobufFields(model)) {
      hasGraph ||= number === GRAPH && content.length > 0;
      if (number !== METADATA) continue;
      const pair = new Map(); // of key (1) and value (2)
      for (const field of protobufFields(content)) pair.set(field.number, text.decode(field.content));
      entries.set(pair.get(1) ?? '', pair.get(2) ?? '');
    }
  } catch (error) {
    throw new Error(`is not an ONNX model: ${error.message}`);
  }
  if (!hasGraph) throw new Error('is not an ONNX model: it has no graph');
  return entries;
}

// Read and check an ONNX file's bytes: { card, golden, sealed }. sealed is null where the browser computes no digests,
// as on a page that came over plain HTTP.
export async function readArtefact(model) {
  const metadata = readMetadata(model);
  if (!metadata.has('fmcae.card')) throw new Error('is an ONNX model, but not one that fmcae exported: it carries no card');
  const sealed = globalThis.crypto?.subtle ? await checkSeal(model, metadata) : null;
  const card = parse(metadata, 'fmcae.card', 'card');
  const golden = parse(metadata, 'fmcae.golden', 'golden pictures');
  ensure(isCard(card), 'its card is damaged');
  ensure(isGolden(golden, card.class_names), 'its golden pictures are damaged');
  return { card, golden, sealed };
}

async function checkSeal(model, metadata) {
  const seal = parse(metadata, 'fmcae.seal', 'seal');
  const names = Object.keys(seal ?? {});
  const isSeal = ['graph', 'card', 'golden'].every((name) => names.includes(name)) && names.every((name) => PARTS.has(name));
  ensure(isSeal, 'its seal is damaged');
  const graph = [...protobufFields(model)].filter(({ number }) => number !== METADATA).map(({ all }) => all);
  const changed = [];
  for (const name of names) {
    const parts = name === 'graph' ? graph : [metadata.get(name === 'names' ? 'names' : `fmcae.${name}`) ?? ''];
    const digest = await crypto.subtle.digest('SHA-256', await new Blob(parts).arrayBuffer());
    const hex = Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('');
    if (hex !== seal[name]) changed.push(PARTS.get(name));
  }
  if (changed.length) throw new Error(`is not the file that was exported: ${changed.join(' and ')} changed since`);
  return true;
}

function parse(metadata, key, what) {
  try {
    return JSON.parse(metadata.get(key));
  } catch {
    throw new Error(`is damaged: its ${what} cannot be read`);
  }
}

function ensure(holds, what) {
  if (!holds) throw new Error(`is damaged: ${what}`);
}

const isShare = (value) => typeof value === 'number' && value >= 0 && value <= 1;
const isListOf = (list, count, holds) => Array.isArray(list) && list.length === count && list.every(holds);

function isCard(card) {
  const names = card?.class_names;
  return (
    isListOf(names, names?.length, (name) => typeof name === 'string' && name !== '') && names.length > 1 &&
    isShare(card.calibration?.threshold ?? 0) && isShare(card.tolerance?.atol) && isShare(card.tolerance?.rtol) &&
    typeof card.precision?.name === 'string'
  );
}

function isGolden(golden, names) {
  const count = golden?.pictures?.length;
  return (
    count > 0 && isListOf(golden.pictures, count, (picture) => /^[A-Za-z0-9+/]+={0,2}$/.test(picture)) &&
    isListOf(golden.labels, count, (label) => names.includes(label)) && isListOf(golden.known_scores, count, isShare) &&
    isListOf(golden.probabilities, count, (row) => isListOf(row, names.length, isShare))
  );
}
