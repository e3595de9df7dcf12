// Decode a picture to the bytes that Pillow gives for it: upright, no colour conversion, transparency not premultiplied.
// A 2D canvas premultiplies, and loses colour where a picture is transparent; a WebGL texture keeps every byte.

export const MAX_PIXELS = 64_000_000;
const TILE = 2048; // pixels: the smallest texture size that WebGL 2 promises
const AS_STORED = { premultiplyAlpha: 'none', colorSpaceConversion: 'none', imageOrientation: 'from-image' };

export function checkSize(width, height) {
  if (width * height > MAX_PIXELS) {
    throw new Error(`has ${width} × ${height} pixels; at most ${MAX_PIXELS.toLocaleString('en')} are read`);
  }
}

// -> { data, width, height, channels }: uint8 (height, width, 3), or 4 channels if any pixel is transparent.
export async function decode(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, AS_STORED);
  } catch {
    throw new Error('is not a picture that this browser reads');
  }
  const { width, height } = bitmap;
  try {
    checkSize(width, height);
    const data = readTexture(bitmap) ?? readCanvas(bitmap);
    return { width, height, ...withoutOpaqueAlpha(data) };
  } finally {
    bitmap.close();
  }
}

let context = null;

function newContext() {
  const gl = new OffscreenCanvas(1, 1).getContext('webgl2');
  if (!gl) return null;
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  return gl;
}

// RGBA, or null where WebGL is missing or fails.
function readTexture(bitmap) {
  if (!context || context.isContextLost()) context = newContext();
  const gl = context;
  if (!gl) return null;
  const { width, height } = bitmap;
  const data = new Uint8Array(width * height * 4);
  gl.pixelStorei(gl.PACK_ROW_LENGTH, width);
  for (let y = 0; y < height; y += TILE) {
    for (let x = 0; x < width; x += TILE) {
      const [w, h] = [Math.min(TILE, width - x), Math.min(TILE, height - y)];
      gl.pixelStorei(gl.UNPACK_SKIP_PIXELS, x);
      gl.pixelStorei(gl.UNPACK_SKIP_ROWS, y);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, w, h, 0, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
      gl.readPixels(0, 0, w, h, gl.RGBA, gl.UNSIGNED_BYTE, data, (y * width + x) * 4);
    }
  }
  return gl.getError() === gl.NO_ERROR ? data : null;
}

function readCanvas(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d', { willReadFrequently: true });
  canvas.drawImage(bitmap, 0, 0);
  return new Uint8Array(canvas.getImageData(0, 0, bitmap.width, bitmap.height).data.buffer);
}

function withoutOpaqueAlpha(rgba) {
  for (let index = 3; index < rgba.length; index += 4) if (rgba[index] !== 255) return { data: rgba, channels: 4 };
  const count = rgba.length / 4;
  for (let pixel = 0; pixel < count; pixel++) {
    rgba[3 * pixel] = rgba[4 * pixel];
    rgba[3 * pixel + 1] = rgba[4 * pixel + 1];
    rgba[3 * pixel + 2] = rgba[4 * pixel + 2];
  }
  return { data: rgba.subarray(0, 3 * count), channels: 3 };
}
