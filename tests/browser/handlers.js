// What the tests' jobs do, in a page and in a worker.

export const handlers = {
  square: (job) => job.data ** 2,

  fragile: (job) => {
    throw Object.assign(new RangeError("It broke"), job.data);
  },

  unspeakable: () => 1n,

  picky: (job) => (job.rejection?.reason === "It is not right" ? "right" : "wrong"),

  stubborn: () => "wrong",

  telling: (job, signal, report) => {
    report(0.5, "half");
    return new Promise((resolve) => signal.addEventListener("abort", resolve));
  },
};

/** Note every event, in a form that a test can read. */
export function note(jobber, seen) {
  const names = "claimed resumed delivered rejected failed released lost idle unauthorized error stopped".split(" ");
  for (const name of names) {
    jobber.addEventListener(name, ({ detail: { job, error, ...detail } }) => {
      if (name === "idle" && seen.at(-1)?.name === "idle") return;
      seen.push({ name, job: job?.id, attempt: job?.attempt, code: error?.code, error: error?.message, ...detail });
    });
  }
}
