// A tab's painter: the browser client of the app, in a thread of its own.

import { Jobber } from "/jobber/jobber.js";
import { counts } from "./mandelbrot.js";

const node = `tab-${Math.random().toString(36).slice(2, 6)}`;
// A tile takes a second at most; when the tab is closed meanwhile, others get it soon.
const jobber = new Jobber({ headers: { "Jobber-Node": node }, leaseSeconds: 20 });

jobber.on("tile", (job) => ({ counts: counts(job.data) }));

for (const name of ["delivered", "idle", "unauthorized", "rejected", "error", "stopped"])
  jobber.addEventListener(name, ({ detail }) => postMessage({ name, message: detail.error?.message }));

onmessage = ({ data }) => (data === "start" ? jobber.start() : jobber.stop());
