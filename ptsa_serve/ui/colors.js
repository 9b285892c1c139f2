// Maps as pixels, in the colours of the server's render=color.

// The colour map magma at 17 even steps (dark to bright), interpolated between.
const MAGMA = "000004 0a0822 1d1147 36106b 51127c 6a1c81 832681 9c2e7f b73779 cf4070 e55064 f4695c fb8761 fea571 fec287 fde0a1 fcfdbf"
  .split(" ").map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));

/** Colour of t in 0...1, 1 is bright. */
export function magma(t) {
  const x = Math.min(Math.max(t, 0), 1) * (MAGMA.length - 1);
  const i = Math.min(Math.floor(x), MAGMA.length - 2);
  return MAGMA[i].map((from, channel) => from + (MAGMA[i + 1][channel] - from) * (x - i));
}

/** Smallest, largest and the 1st and 99th percentile of a depth map, in metres; of every fourth row and column. */
export function depthRange({ data, shape: [height, width] }) {
  const sample = [];
  for (let y = 0; y < height; y += 4) for (let x = 0; x < width; x += 4) sample.push(data[y * width + x]);
  sample.sort((a, b) => a - b);
  const at = (share) => {
    const place = share * (sample.length - 1);
    const below = sample[Math.floor(place)];
    return below + (sample[Math.ceil(place)] - below) * (place % 1);
  };
  return { low: at(0.01), high: at(0.99), least: at(0), most: at(1) };
}

/** Paints `map` of `task` on `canvas`, at the map's own size; `only` keeps one class index bright. */
export function paint(canvas, task, map, only = null) {
  const [height, width] = map.shape;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const color = painter(task, map, only);
  for (let i = 0, o = 0; i < width * height; i++, o += 4) {
    const [r, g, b] = color(i);
    image.data[o] = r;
    image.data[o + 1] = g;
    image.data[o + 2] = b;
    image.data[o + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

function painter(task, map, only) {
  const data = map.data;
  if (task.kind === "classes") {
    const faded = task.colors.map((c, i) => (only === null || i === only ? c : c.map((v) => 40 + v * 0.15)));
    return (i) => faded[data[i]] ?? [0, 0, 0];
  }
  if (task.kind === "metres") {
    const { low, high } = depthRange(map);
    const near = Math.log(Math.max(low, 1e-3));
    const scale = 1 / Math.max(Math.log(Math.max(high, 1e-3)) - near, 1e-6);
    return (i) => magma(1 - (Math.log(Math.max(data[i], 1e-3)) - near) * scale);
  }
  if (task.kind === "unit_vectors") return (i) => [0, 1, 2].map((k) => (data[3 * i + k] + 1) * 127.5);
  return (i) => Array(3).fill(data[i] * 255);
}
