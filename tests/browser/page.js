import { Jobber } from "/jobber/jobber.js";
import { handlers, note } from "/handlers.js";

window.seen = [];
window.aborted = [];
window.finish = {};

/** Hold a job until the test finishes it, or it is aborted. */
function hold(job, signal) {
  return new Promise((resolve, reject) => {
    window.finish[job.id] = resolve;
    signal.addEventListener("abort", () => {
      window.aborted.push(job.id);
      reject(signal.reason);
    });
  });
}

/** Make the client of a test, which it may start. */
window.make = (options) => {
  const jobber = new Jobber(options);
  note(jobber, window.seen);
  for (const [type, handler] of Object.entries({ ...handlers, hold })) jobber.on(type, handler);
  return (window.jobber = jobber);
};

/** Hear of jobs, as a test wants it; `jobber` is made with it. */
window.hear = (filter, options) => {
  window.heard = [];
  const told = (job) => window.heard.push(job && { id: job.id, state: job.state, progress: job.progress });
  window.leave = window.make(options).events(filter, told);
};

/** Come again as a crashed tab does: the client hears nothing of its end. */
window.crash = () => {
  window.crashed = true;
  location.reload();
};
addEventListener("pagehide", (event) => window.crashed && event.stopImmediatePropagation());

window.ready = true;
