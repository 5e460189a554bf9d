import { Jobber } from "/jobber/jobber.js";
import { handlers, note } from "/handlers.js";

const seen = [];

onmessage = ({ data: options }) => {
  const jobber = new Jobber(options);
  note(jobber, seen);
  for (const [type, handler] of Object.entries(handlers)) jobber.on(type, handler);
  jobber.addEventListener("delivered", () => postMessage(seen));
  jobber.start();
};
