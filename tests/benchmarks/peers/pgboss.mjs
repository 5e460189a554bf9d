// pg-boss; `work` takes how many jobs are fetched at a time and every how many seconds, if not by its defaults.
import { require, run, tick } from "./app.mjs";

const PgBoss = require("pg-boss");
const boss = new PgBoss(process.env.BENCH_URL);
boss.on("error", console.error);

await run({
  async setUp() {
    await boss.start();
    await boss.createQueue("work");
  },
  one: (number) => boss.send("work", { number }),
  many: (numbers) => boss.insert(numbers.map((number) => ({ name: "work", data: { number } }))),
  async work(batchSize, pollingIntervalSeconds) {
    await boss.start();
    const options = batchSize ? { batchSize, pollingIntervalSeconds } : {};
    await boss.work("work", options, async (jobs) => jobs.forEach((job) => tick(job.data.number)));
  },
});
