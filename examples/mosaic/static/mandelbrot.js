// The same as mandelbrot.py, operation by operation: the numbers are equal to the last bit.

const ESCAPED = 65536;

/** The count of every pixel of a rectangle, row by row. */
export function counts({ left, top, step, iterations, x, y, width, height }) {
  const all = [];
  for (let row = y; row < y + height; row++)
    for (let column = x; column < x + width; column++)
      all.push(count(left + column * step, top - row * step, iterations));
  return all;
}

/** How many iterations a point takes to escape, in 256ths; 0 when it does not. */
function count(real, imag, iterations) {
  let x = 0, y = 0, xx = 0, yy = 0;
  for (let n = 1; n <= iterations; n++) {
    y = 2 * x * y + imag;
    x = xx - yy + real;
    xx = x * x;
    yy = y * y;
    if (xx + yy > ESCAPED) return Math.floor(256 * (n + 1 - overshoot(xx + yy)));
  }
  return 0;
}

function overshoot(squared) {
  let exponent = 16, mantissa = squared / ESCAPED;
  while (mantissa >= 2) {
    mantissa /= 2;
    exponent += 1;
  }
  return (exponent + mantissa - 1) / 16 - 1;
}
