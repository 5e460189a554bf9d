// What the apps of Node have in common: `node APP fill FIRST END SINGLES` and `node APP work …`, as filler.py has it.
import { openSync, writeSync } from "node:fs";
import { createRequire } from "node:module";

// Packages are looked for in the environment of the app, not beside its file.
export const require = createRequire(`${process.env.BENCH_HOME}/`);

const file = openSync(process.env.BENCH_TICKS, "r+");
const instant = new Float64Array(1);
const bytes = new Uint8Array(instant.buffer);

// Note when a job was executed, by the clock of ticks.py and in its file.
export function tick(number) {
  const [seconds, nanoseconds] = process.hrtime();
  instant[0] = seconds + nanoseconds / 1e9;
  writeSync(file, bytes, 0, 8, number * 8);
}

async function fill({ setUp, one, many }, first, end, singles) {
  await setUp();
  const start = performance.now();
  for (let number = first; number < first + singles; number++) await one(number);
  const middle = performance.now();
  const length = Math.max(end - first - singles, 0);
  if (length) await many(Array.from({ length }, (_, place) => first + singles + place));
  console.log((middle - start) / 1000, (performance.now() - middle) / 1000);
}

// App: setUp(), one(number), many(numbers), work(...options).
export async function run(app) {
  const [verb, ...rest] = process.argv.slice(2);
  if (verb === "work") return app.work(...rest.map(Number));
  await fill(app, ...rest.map(Number));
  process.exit(0);
}
