// Directions out of a vector's canonical file: safetensors with tensors named `{site}.{layer}`.

const HEADER = 8;

function float16(bits) {
  const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

const READERS = {
  F32: (view, at) => view.getFloat32(at, true),
  F16: (view, at) => float16(view.getUint16(at, true)),
  BF16: (view, at) => {
    const wide = new DataView(new ArrayBuffer(4));
    wide.setUint16(0, view.getUint16(at, true));
    return wide.getFloat32(0);
  },
};

/** The bytes of a file -> a map from layers to lists of numbers: what is added there, all directions of a layer in a row.
 * Tensors of another name, such as those that a vector reads along, are left out. */
export function directionsIn(buffer) {
  const view = new DataView(buffer);
  const size = Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, HEADER, size)));
  const found = new Map();
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header).filter(([name]) => /^[a-z_]+\.\d+$/.test(name))) {
    const length = shape.reduce((product, size) => product * size, 1);
    const width = (to - from) / length;
    const numbers = Float64Array.from({ length }, (_, place) => READERS[dtype](view, HEADER + size + from + width * place));
    found.set(Number(name.split(".").at(-1)), numbers);
  }
  return found;
}

const dot = (one, other) => one.reduce((sum, value, place) => sum + value * other[place], 0);
export const norm = (numbers) => Math.sqrt(dot(numbers, numbers));
export const cosine = (one, other) => (one.length === other.length ? dot(one, other) / (norm(one) * norm(other)) : NaN);
