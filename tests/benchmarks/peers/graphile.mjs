// graphile-worker; `work` takes how many jobs are executed at once, if not by its default.
import { require, run, tick } from "./app.mjs";

const { Logger, makeWorkerUtils, run: start } = require("graphile-worker");
const connectionString = process.env.BENCH_URL;
const logger = new Logger(() => () => {}); // no line for each job
let utils;

await run({
  async setUp() {
    utils = await makeWorkerUtils({ connectionString, logger });
    await utils.migrate();
  },
  one: (number) => utils.addJob("work", { number }),
  many: (numbers) => utils.addJobs(numbers.map((number) => ({ identifier: "work", payload: { number } }))),
  async work(concurrency) {
    const taskList = { work: async ({ number }) => tick(number) };
    const runner = await start({ connectionString, logger, concurrency, taskList, noHandleSignals: true });
    await runner.promise;
  },
});
