// The page of a picture: it grows, its painters are counted, and this tab may be one of them.

import { Jobber } from "/jobber/jobber.js";

const RECENT_SECONDS = 10;
// The angle that keeps any number of hues apart.
const GOLDEN_ANGLE = 137.5;

const $ = (id) => document.getElementById(id);
const mosaic = $("mosaic");
const { url, columns, rows } = mosaic.dataset;

// The picture

const cells = Array.from({ length: columns * rows }, () => {
  const cell = document.createElement("div");
  mosaic.append(cell);
  return cell;
});

let finished = false;

function show({ painted, held, ...batch }) {
  finished = batch.finished;
  const painters = summarize(painted);
  for (const cell of cells) cell.classList.remove("held");
  for (const place of held) cellAt(place).classList.add("held");
  for (const place of painted) fill(place, painters);
  list(painters);
  count(batch);
}

const cellAt = ([column, row]) => cells[row * columns + column];

function fill([column, row, painter], painters) {
  const cell = cellAt([column, row]);
  cell.dataset.painter = painter;
  cell.style.setProperty("--hue", painters.get(painter).hue);
  if (cell.firstChild) return;
  const tile = new Image();
  tile.src = `${url}/${column}-${row}.png`;
  tile.alt = "";
  cell.append(tile);
}

// Who painted what, and how fast

/** The painters by name, the first to come first. A finished picture's speed is that of all its time. */
function summarize(painted) {
  const tiles = painted.toSorted(([, , , age], [, , , other]) => other - age);
  const [eldest, youngest] = [tiles.at(0)?.[3], tiles.at(-1)?.[3]];
  const seconds = Math.max(1, finished ? eldest - youngest : Math.min(eldest, RECENT_SECONDS));
  const painters = new Map();
  for (const [, , name, age] of tiles) {
    const painter = painters.get(name) ?? { tiles: 0, speed: 0, hue: painters.size * GOLDEN_ANGLE };
    painter.tiles++;
    if (finished || age < RECENT_SECONDS) painter.speed += 1 / seconds;
    painters.set(name, painter);
  }
  return painters;
}

function count({ done, rate }) {
  $("tiles").textContent = `${done} / ${cells.length}`;
  $("speed").textContent = (rate ?? 0).toFixed(1);
  $("bar").value = done;
  $("download").hidden = !finished;
}

function list(painters) {
  const lines = [...painters].sort(([, one], [, other]) => other.tiles - one.tiles);
  $("painters").replaceChildren(...lines.map(([name, painter]) => line(name, painter)));
}

function line(name, { hue, tiles, speed }) {
  const row = document.createElement("tr");
  row.style.setProperty("--hue", hue);
  for (const text of [name, tiles, speed.toFixed(1)]) row.insertCell().textContent = text;
  row.onmouseenter = () => highlight(name);
  row.onmouseleave = () => highlight(null);
  return row;
}

function highlight(name) {
  for (const cell of cells) cell.classList.toggle("dim", name !== null && cell.dataset.painter !== name);
}

$("signed").onchange = ({ target }) => mosaic.classList.toggle("signed", target.checked);

// A closer look

const [x, y] = $("zoom").querySelectorAll("input");

mosaic.onmousemove = (event) => {
  const frame = mosaic.getBoundingClientRect();
  x.value = (event.clientX - frame.left) / frame.width;
  y.value = (event.clientY - frame.top) / frame.height;
  $("lens").style.translate = `${event.clientX - frame.left}px ${event.clientY - frame.top}px`;
};

mosaic.onclick = (event) => {
  mosaic.onmousemove(event);
  x.disabled = y.disabled = false;
  $("zoom").submit();
};

// Painting in this tab

let worker = null;
let delivered = 0;

const says = {
  delivered: () => `This tab has painted ${++delivered}.`,
  idle: () => (delivered ? `This tab has painted ${delivered}, and waits for more.` : "There is nothing to paint now."),
  stopped: () => `This tab has stopped after ${delivered}.`,
  rejected: (message) => message,
  error: (message) => message,
  unauthorized: () => location.assign("/"),
};

function paint(painting) {
  sessionStorage.setItem("painting", painting ? "yes" : "");
  $("paint").ariaPressed = painting;
  $("paint").textContent = painting ? "Stop painting" : "Paint in this tab";
  if (!worker) hire();
  worker.postMessage(painting ? "start" : "stop");
}

function hire() {
  worker = new Worker($("paint").dataset.worker, { type: "module" });
  worker.onmessage = ({ data: { name, message } }) => ($("status").textContent = says[name](message));
  worker.onerror = () => ($("status").textContent = "This browser cannot paint.");
}

$("paint").onclick = () => paint($("paint").ariaPressed !== "true");
if (sessionStorage.getItem("painting")) paint(true);

// The picture, whenever one of its tiles is handed out to this user or painted, and when all are stitched

let stale = true;
let looking = false;

/** Look at the picture; of what happens meanwhile, once more afterwards. */
async function look() {
  stale = true;
  if (looking) return;
  looking = true;
  while (stale) {
    stale = false;
    await fetchProgress();
  }
  looking = false;
}

async function fetchProgress() {
  try {
    const response = await fetch(`${url}/progress`);
    if (response.redirected) location.assign("/");
    else show(await response.json());
  } catch {
    $("status").textContent = "The server does not answer.";
  }
}

const hearing = new Jobber({ url: "/jobber" });
hearing.addEventListener("unauthorized", () => location.assign("/"));
hearing.addEventListener("error", look);
hearing.events({}, look);
look();
