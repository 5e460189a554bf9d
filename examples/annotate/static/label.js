// The page that shows an image, and takes what is read in it, by keys, clicks and touch.

import { Jobber } from "/jobber/jobber.js";

const SIDE = 8;
// Of paper around it, so that no stroke looks cut off.
const MARGIN = 1;
const BLACK = 16;
// After each answer it would tell whether somebody else had given the same.
const ANSWERS_BETWEEN_LOOKS = 10;

const $ = (id) => document.getElementById(id);
const canvas = $("image");

// The image

function draw(pixels) {
  const small = new OffscreenCanvas(SIDE + 2 * MARGIN, SIDE + 2 * MARGIN);
  small.getContext("2d").putImageData(new ImageData(ink(pixels), SIDE, SIDE), MARGIN, MARGIN);
  const context = canvas.getContext("2d");
  clear();
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

/** As much black as the image is dark: the paper is the canvas's own. */
function ink(pixels) {
  const bytes = new Uint8ClampedArray(4 * pixels.length);
  pixels.forEach((grey, place) => (bytes[4 * place + 3] = (255 * grey) / BLACK));
  return bytes;
}

function clear() {
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

// What is read in it

// Set while an image is shown: takes the key that is the answer.
let answer = null;
let shown = 0;
let answered = 0;
let last = "";

const buttons = new Map([...$("answers").children].map((button) => [button.dataset.key, button]));

/** Show an image until it is answered, or not this tab's any more. */
async function ask({ data }, signal) {
  const { promise, resolve, reject } = Promise.withResolvers();
  signal.addEventListener("abort", () => reject(signal.reason));
  draw(data.pixels);
  say(`${last}Image ${++shown}.`);
  answer = resolve;
  try {
    const key = await promise;
    last = key === "x" ? "You said that it cannot be read. " : `You said ${key}. `;
    return { digit: key === "x" ? null : Number(key) };
  } finally {
    answer = null;
    clear();
  }
}

function press(key) {
  if (!answer) return;
  buttons.get(key).animate({ scale: [0.9, 1] }, 150);
  answer(key);
}

for (const [key, button] of buttons) button.onclick = () => press(key);

addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase();
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || !buttons.has(key)) return;
  press(key);
});

// How far it is

function say(text) {
  $("status").textContent = text;
}

async function look() {
  const response = await fetch("/progress").catch(() => null);
  if (!response?.ok || response.redirected) return;
  const { done, total } = await response.json();
  [$("bar").max, $("bar").value] = [total, done];
  $("done").textContent = `${done} of ${total} images done`;
}

function count() {
  $("own").textContent = `${++answered} by you`;
  if (answered % ANSWERS_BETWEEN_LOOKS === 0) look();
}

function rest() {
  last = "";
  say("There is no image for you now. The next one will be shown as soon as it comes.");
  look();
}

// The next image, whenever this tab is looked at

const jobber = new Jobber({ url: "/jobber" }).on("digit", ask);

const hears = {
  delivered: count,
  idle: rest,
  lost: () => say("This image was taken back."),
  failed: ({ error }) => say(error.message),
  error: ({ error }) => say(error.message),
  unauthorized: () => location.assign("/"),
};
for (const [name, hear] of Object.entries(hears)) jobber.addEventListener(name, ({ detail }) => hear(detail));

// A tab that nobody sees keeps no image from others.
document.addEventListener("visibilitychange", () => (document.hidden ? jobber.stop({ now: true }) : jobber.start()));
if (!document.hidden) jobber.start();
look();
