// Reads what the server calls npz: a zip whose members are stored (not deflated) .npy arrays.

const TYPES = { "|u1": Uint8Array, "<f4": Float32Array, "<u2": Uint16Array };

/** The arrays of an npz file by name: {data: typed array, shape: [H, W, ...]}. */
export function readNpz(buffer) {
  const view = new DataView(buffer);
  const arrays = {};
  for (const { name, start, size } of members(view)) arrays[name.replace(/\.npy$/, "")] = readNpy(buffer, start, size);
  return arrays;
}

function* members(view) {
  let end = view.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("the answer is not a zip file");
  const count = view.getUint16(end + 10, true);
  let at = view.getUint32(end + 16, true);
  for (let i = 0; i < count; i++) {
    if (view.getUint16(at + 10, true) !== 0) throw new Error("the answer is compressed");
    const size = view.getUint32(at + 24, true);
    const nameLength = view.getUint16(at + 28, true);
    const local = view.getUint32(at + 42, true);
    const name = new TextDecoder().decode(new Uint8Array(view.buffer, at + 46, nameLength));
    yield { name, size, start: local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true) };
    at += 46 + nameLength + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
}

function readNpy(buffer, start, size) {
  const view = new DataView(buffer, start);
  const long = view.getUint8(6) > 1;
  const head = long ? 12 : 10;
  const length = long ? view.getUint32(8, true) : view.getUint16(8, true);
  const header = new TextDecoder().decode(new Uint8Array(buffer, start + head, length));
  const type = TYPES[/'descr':\s*'([^']+)'/.exec(header)[1]];
  const shape = /'shape':\s*\(([^)]*)\)/.exec(header)[1].split(",").filter((s) => s.trim()).map(Number);
  if (!type) throw new Error("the answer has an array type that this page does not know");
  // A copy, because the data need not lie at an address that the type wants.
  return { data: new type(buffer.slice(start + head + length, start + size)), shape };
}
