// The browser client. Its types, events and their documentation stand in jobber.d.ts.

const LEDGER_KEY = "flask_jobber.attempts";
// Timers of a tab in the background come once a minute or later: a third of this allows for that.
const LEASE_SECONDS = 300;
const BEATS_PER_LEASE = 3;
const QUIET_SECONDS = 2;
const TRIES_PER_RESULT = 4;
const RELEASE_PATIENCE_SECONDS = 30;
// The document that a reload ends may give up its locks some time after the next one starts.
const LOCK_PATIENCE_SECONDS = 5;
const MAX_BACKOFF_SECONDS = 60;
const WAIT_SECONDS = 25;
// A claim that is not answered by then waits for a job.
const IDLE_AFTER_SECONDS = 0.5;
// The server gives a sign of life every 15 seconds.
const SILENCE_SECONDS = 45;
const MAX_PAUSE_SECONDS = 3600;
// Browsers let no more than 64 KiB outlive a page; a character is three bytes at most.
const KEEPALIVE_CHARACTERS = 16_000;

/** What the server, or the way to it, answered instead of what was asked for. */
export class Refusal extends Error {
  constructor(status, problem, retryAfter = null) {
    super(problem.detail ?? problem.title ?? `HTTP status ${status}`);
    this.name = "Refusal";
    this.status = status;
    this.code = problem.code ?? null;
    this.then = problem.then ?? null;
    this.errors = problem.errors ?? null;
    this.retryable = problem.retryable ?? [429, 502, 503, 504].includes(status);
    this.retryAfter = retryAfter;
  }

  /** The job is not this client's any more. */
  get gone() {
    return this.status === 404 || this.status === 409;
  }

  /** The job is still this client's, which may deliver something else. */
  get correctable() {
    return this.code === "invalid_result" || this.then === "correct";
  }
}

/** Work jobs in this tab or worker. */
export class Jobber extends EventTarget {
  #handlers = new Map();
  #attempts = new Set();
  #server;
  #options;
  #run = null;
  #ended = Promise.resolve();
  #parked = false;
  #streams = new Set();

  constructor({ url, csrfToken, headers, ...options } = {}) {
    super();
    this.#options = { limit: 1, leaseSeconds: LEASE_SECONDS, waitSeconds: WAIT_SECONDS, ...options };
    this.#server = new Server(url, csrfToken, headers, (refusal) => this.#meetTrouble(refusal));
    this.#watchPage();
  }

  /** Whether this client claims jobs. */
  get running() {
    return this.#run !== null && !this.#run.signal.aborted;
  }

  /** The jobs in hand. */
  get jobs() {
    return [...this.#attempts].map((attempt) => attempt.job);
  }

  on(type, handler) {
    this.#handlers.set(type, handler);
    return this;
  }

  start() {
    if (this.running) return this;
    this.#checkHandlers();
    this.#run = new AbortController();
    this.#ended = this.#live(this.#run);
    return this;
  }

  events(filter, callback) {
    const stream = new Stream(this.#server, filter, callback, (name, detail) => this.#emit(name, detail));
    this.#streams.add(stream.start());
    return () => {
      this.#streams.delete(stream);
      stream.stop();
    };
  }

  async stop({ now = false } = {}) {
    this.#run?.abort();
    if (now) for (const attempt of this.#attempts) attempt.release();
    await this.#ended;
  }

  get #types() {
    return this.#options.types ?? [...this.#handlers.keys()];
  }

  #checkHandlers() {
    const missing = this.#types.filter((type) => !this.#handlers.has(type));
    if (missing.length) throw new Error(`No handler for ${missing.join(", ")}: call on(type, handler) first`);
    if (!this.#types.length) throw new Error("No handlers: call on(type, handler) first");
  }

  #watchPage() {
    // A worker has none of these events: there the listeners are idle.
    addEventListener("pagehide", () => this.#park());
    addEventListener("pageshow", (event) => event.persisted && this.#unpark());
    for (const name of ["visibilitychange", "online"]) addEventListener(name, () => this.#hasten());
  }

  #park() {
    this.#parked = this.running;
    this.stop({ now: true });
    for (const stream of this.#streams) stream.stop();
  }

  #unpark() {
    if (this.#parked) this.start();
    for (const stream of this.#streams) stream.start();
  }

  #hasten() {
    for (const attempt of this.#attempts) attempt.hasten();
  }

  attach(job, name, blob, signal) {
    return this.#server.put(fileUrl(job, name, job.attempt), blob, signal);
  }

  fetchAttachment(job, name, signal) {
    return this.#server.get(fileUrl(job, name), signal);
  }

  batch(id, signal) {
    return this.#server.send("GET", `batches/${id}`, undefined, signal);
  }

  async #live(run) {
    await this.#resume(run.signal);
    await this.#claimJobs(run.signal);
    await Promise.all([...this.#attempts].map((attempt) => attempt.done));
    if (this.#run === run) this.#emit("stopped");
  }

  async #claimJobs(signal) {
    let misses = 0;
    while (!signal.aborted) {
      const error = await this.#fill(signal).catch((error) => error);
      if (!error) misses = 0;
      else if (error.retryable || error.status >= 500) await pause(error.retryAfter ?? backoff(misses++), signal);
      else this.#giveUp(error);
    }
  }

  /** Claim for the free places, or wait until there is a free place or something to claim. */
  async #fill(signal) {
    const limit = this.#options.limit - this.#attempts.size;
    if (limit <= 0) {
      await Promise.race([...this.#attempts].map((attempt) => attempt.done));
      return;
    }
    const asked = performance.now();
    const { jobs, retry_after } = await this.#ask(limit, signal);
    for (const job of jobs) this.#take(this.#attempt(job), signal, "claimed");
    if (jobs.length || signal.aborted) return;
    // A server that has waited need not be left alone for as long as one that had no place to wait in.
    const retryAfter = Math.max(0, retry_after - (performance.now() - asked) / 1000);
    this.#emit("idle", { retryAfter });
    await pause(retryAfter, signal);
  }

  async #ask(limit, signal) {
    const idle = setTimeout(() => this.#emit("idle", { retryAfter: 0 }), 1000 * IDLE_AFTER_SECONDS);
    const settle = () => clearTimeout(idle);
    signal.addEventListener("abort", settle);
    try {
      return await this.#server.claim(this.#claim(limit), signal);
    } finally {
      signal.removeEventListener("abort", settle);
      settle();
    }
  }

  #claim(limit) {
    const { queues, leaseSeconds, waitSeconds } = this.#options;
    const lengths = { lease_seconds: leaseSeconds ?? undefined, wait_seconds: waitSeconds };
    return { types: this.#types, queues, limit, ...lengths };
  }

  #attempt(job, lock) {
    return new Attempt(job, this.#server, lock, (name, detail) => this.#emit(name, detail));
  }

  #take(attempt, signal, event) {
    const handler = this.#handlers.get(attempt.job.type);
    if (signal.aborted || !handler) attempt.release();
    else this.#begin(attempt, handler, event);
  }

  #begin(attempt, handler, event) {
    this.#attempts.add(attempt);
    this.#emit(event, { job: attempt.job });
    attempt.done = attempt.work(handler).finally(() => this.#attempts.delete(attempt));
  }

  async #resume(signal) {
    await Promise.all(ledger.take(this.#server.url).map((url) => this.#resumeOne(url, signal)));
  }

  async #resumeOne(url, signal) {
    const unlock = await lockAlone(url, AbortSignal.timeout(1000 * LOCK_PATIENCE_SECONDS));
    if (unlock) await this.#recall(url, unlock, signal);
    else ledger.forget(url);
  }

  async #recall(url, unlock, signal) {
    try {
      // The lease has been running down, and a release may be on its way: a heartbeat first settles both.
      await this.#server.insist(signal, "PATCH", url, {});
      const job = await this.#server.insist(signal, "GET", url);
      this.#take(this.#attempt(job, unlock), signal, "resumed");
    } catch (error) {
      unlock();
      if (error.gone) ledger.forget(url);
      else ledger.leave(url);
    }
  }

  #meetTrouble(refusal) {
    if (refusal.status === 401) this.#meetLogout(refusal);
    else this.#emit("error", { error: refusal });
  }

  #meetLogout(refusal) {
    const open = [...this.#attempts].filter((attempt) => !attempt.signal.aborted);
    if (!this.running && !open.length) return;
    this.#run.abort();
    for (const attempt of open) attempt.abort(refusal);
    this.#emit("unauthorized", { error: refusal });
  }

  #giveUp(error) {
    if (error.status !== 401) this.#emit("error", { error });
    this.#run.abort();
  }

  #emit(name, detail = {}) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** One job in hand: the verbs of its holder, and the heartbeat. */
class Attempt {
  #server;
  #lock;
  #emit;
  #controller = new AbortController();
  #timer;
  #beatAt = performance.now();
  #said = {};
  #answering = false;
  #settled = false;
  #released;

  constructor(job, server, lock, emit) {
    this.job = job;
    this.#server = server;
    this.#emit = emit;
    this.url = new URL(`jobs/${job.id}/attempts/${job.attempt}`, server.url).href;
    ledger.hold(this.url);
    this.#lock = lock ?? lockAlone(this.url, this.signal);
  }

  get signal() {
    return this.#controller.signal;
  }

  /** Let the handler do the job and tell the server what came of it; never rejects. */
  async work(handler) {
    this.#beatIn(this.job.lease_seconds / BEATS_PER_LEASE);
    try {
      await this.#serve(handler);
    } catch (error) {
      await this.#conclude(error);
    }
    if (!this.signal.aborted) this.#rest();
    await this.#released;
  }

  /** Give the job back unworked. Nothing may be awaited before the request: a page that goes sends it too. */
  release() {
    this.abort(new DOMException("The job is given back", "AbortError"));
    this.#released ??= this.#giveBack();
  }

  /** Stop the handler and the heartbeat, without a word to the server: a later start may resume. */
  abort(reason) {
    this.#controller.abort(reason);
    this.#rest();
  }

  /** Send a heartbeat now, or as soon as the last one is not quite fresh. */
  hasten() {
    const age = (performance.now() - this.#beatAt) / 1000;
    this.#beatIn(Math.max(0, QUIET_SECONDS - age));
  }

  #report = (progress, note) => {
    this.#said = { progress, note };
    this.hasten();
  };

  async #giveBack() {
    const patience = AbortSignal.timeout(1000 * RELEASE_PATIENCE_SECONDS);
    try {
      await this.#server.insist(patience, "DELETE", this.url);
      this.#settle("released");
    } catch (error) {
      if (error.gone) ledger.forget(this.url);
    }
  }

  async #serve(handler) {
    let refusal;
    for (let tries = 0; tries < TRIES_PER_RESULT; tries++) {
      this.signal.throwIfAborted();
      const rejection = refusal && { reason: refusal.message, errors: refusal.errors };
      const result = await handler({ ...this.job, rejection }, this.signal, this.#report);
      this.signal.throwIfAborted();
      refusal = await this.#deliver(result);
      if (!refusal) return;
      this.#emit("rejected", { job: this.job, error: refusal });
    }
    throw refusal;
  }

  /** Deliver; return the refusal when another result may be delivered instead. */
  async #deliver(result) {
    try {
      const { state } = await this.#put("result", { result });
      this.#settle("delivered", { state });
    } catch (error) {
      if (error.correctable) return error;
      throw error;
    }
  }

  async #conclude(error) {
    if (this.signal.aborted) return;
    if (error instanceof Refusal && error.gone) this.#lose(error);
    else if (error instanceof Refusal && error.then && !error.correctable) this.#settle("rejected", { error });
    else await this.#fail(error);
  }

  async #fail(error) {
    try {
      const { state, run_at: runAt } = await this.#put("failure", failure(error));
      this.#settle("failed", { error, state, runAt });
    } catch (refusal) {
      if (refusal.gone) this.#lose(refusal);
      else if (!this.signal.aborted) this.#emit("error", { job: this.job, error: refusal });
    }
  }

  async #put(what, body) {
    this.#answering = true;
    try {
      return await this.#server.insist(this.signal, "PUT", `${this.url}/${what}`, body);
    } finally {
      this.#answering = false;
    }
  }

  #beatIn(seconds) {
    clearTimeout(this.#timer);
    if (!this.#settled && !this.signal.aborted) this.#timer = setTimeout(() => this.#beat(), 1000 * seconds);
  }

  async #beat() {
    this.#beatAt = performance.now();
    this.#beatIn(this.job.lease_seconds / BEATS_PER_LEASE);
    try {
      await this.#server.send("PATCH", this.url, this.#said);
    } catch (error) {
      this.#meetRefusal(error);
    }
  }

  #meetRefusal(error) {
    // While an answer is on its way, that request learns better than a heartbeat what became of the job.
    if (error.gone && !this.#answering) this.#lose(error);
    if (error.status !== 422) return;
    this.#said = {};
    this.#emit("error", { job: this.job, error });
  }

  #lose(error) {
    if (this.#settled) return;
    this.abort(error);
    this.#settle("lost", { error });
  }

  #settle(name, detail) {
    if (this.#settled) return;
    this.#settled = true;
    ledger.forget(this.url);
    this.#emit(name, { job: this.job, ...detail });
  }

  async #rest() {
    clearTimeout(this.#timer);
    if (!this.#settled) ledger.leave(this.url);
    (await this.#lock)?.();
  }
}

/** Events of jobs: one stream after the other, each from where the last one ended. */
class Stream {
  #server;
  #path;
  #callback;
  #emit;
  #run = null;
  #cursor = null;
  #retrySeconds = 1;
  #tries = 0;

  constructor(server, filter, callback, emit) {
    const narrow = Object.entries(filter ?? {}).filter(([, value]) => value !== undefined && value !== null);
    this.#path = `events?${new URLSearchParams(narrow.map(([name, value]) => [name, [value].flat().join(",")]))}`;
    this.#server = server;
    this.#callback = callback;
    this.#emit = emit;
  }

  start() {
    if (this.#run && !this.#run.signal.aborted) return this;
    this.#run = new AbortController();
    this.#live(this.#run.signal);
    return this;
  }

  stop() {
    this.#run.abort();
  }

  async #live(signal) {
    for (let misses = 0; !signal.aborted; ) {
      try {
        this.#tries++;
        await this.#hear(await this.#server.open(this.#path, this.#cursor, signal), signal);
        misses = 0;
        await pause(this.#retrySeconds, signal);
      } catch (error) {
        if (signal.aborted) return;
        if (!error.retryable && !(error.status >= 500)) return this.#giveUp(error);
        await pause(error.retryAfter ?? backoff(misses++), signal);
      }
    }
  }

  async #hear(response, signal) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ; ) {
      const { value, done } = await this.#read(reader);
      if (done) return;
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) if (!signal.aborted) this.#tell(block);
    }
  }

  /** Read what comes, or the end, when nothing does although the connection seems to be there. */
  async #read(reader) {
    const silence = setTimeout(() => reader.cancel(), 1000 * SILENCE_SECONDS);
    try {
      return await reader.read().catch(unreachable);
    } finally {
      clearTimeout(silence);
    }
  }

  #tell(block) {
    const told = Object.fromEntries(block.split("\n").map((line) => line.split(/: ?(.*)/s)));
    if (told.event) this.#call(told.event === "job" ? JSON.parse(told.data) : null);
    if (told.retry) this.#retrySeconds = told.retry / 1000;
    // An earlier try came to nothing, and nobody knows what has happened since.
    if (this.#cursor === null && this.#tries > 1) this.#call(null);
    this.#cursor = told.id ?? this.#cursor;
  }

  #call(job) {
    try {
      this.#callback(job);
    } catch (error) {
      this.#emit("error", { error });
    }
  }

  #giveUp(error) {
    this.stop();
    this.#emit(error.status === 401 ? "unauthorized" : "error", { error });
  }
}

/** Where a file of a job is; with the attempt of who holds it, where its holder puts it. */
function fileUrl(job, name, attempt) {
  return `jobs/${job.id}/attachments/${encodeURIComponent(name)}${attempt ? `?attempt=${attempt}` : ""}`;
}

/** The HTTP side: one request, its refusals, and the patience with passing trouble. */
class Server {
  #csrfToken;
  #headers;
  #onTrouble;

  constructor(url, csrfToken, headers, onTrouble) {
    this.url = new URL(url ? url.replace(/\/*$/, "/") : ".", import.meta.url).href;
    this.#csrfToken = csrfToken;
    this.#headers = headers;
    this.#onTrouble = onTrouble;
  }

  /** Send until the answer is no passing trouble, or the signal says that it does not matter any more. */
  async insist(signal, ...request) {
    for (let misses = 0; ; misses++) {
      try {
        return await this.send(...request);
      } catch (error) {
        if (!error.retryable) throw error;
        await pause(error.retryAfter ?? backoff(misses), signal);
        signal.throwIfAborted();
      }
    }
  }

  async send(method, path, body, signal, answered) {
    try {
      return await ask(new URL(path, this.url), { ...this.#request(method, JSON.stringify(body)), signal }, answered);
    } catch (error) {
      const trouble = error.retryable || error.status >= 500 || error.status === 401;
      if (trouble && !signal?.aborted) this.#onTrouble(error);
      throw error;
    }
  }

  /** Claim. The signal ends the server's waiting; an answer that has begun is read, to be given back. */
  async claim(body, signal) {
    const waiting = new AbortController();
    const leave = () => waiting.abort();
    const answered = () => signal.removeEventListener("abort", leave);
    signal.addEventListener("abort", leave);
    try {
      return await this.send("POST", "claims", body, waiting.signal, answered);
    } catch (error) {
      if (waiting.signal.aborted) return { jobs: [], retry_after: 0 };
      throw error;
    } finally {
      answered();
    }
  }

  /** Open a stream of events, which goes on after a cursor. */
  async open(path, cursor, signal) {
    const request = this.#request("GET");
    if (cursor !== null) request.headers.set("Last-Event-ID", cursor);
    const response = await fetch(new URL(path, this.url), { ...request, cache: "no-store", signal }).catch(unreachable);
    if (response.ok && response.headers.get("Content-Type")?.startsWith("text/event-stream")) return response;
    throw await refusal(response);
  }

  /** Send a Blob, whose type the browser says. */
  put(path, blob, signal) {
    return ask(new URL(path, this.url), { ...this.#request("PUT"), body: blob, keepalive: false, signal });
  }

  /** Return an answer that is no JSON. */
  async get(path, signal) {
    const response = await fetch(new URL(path, this.url), { ...this.#request("GET"), signal }).catch(unreachable);
    if (response.ok) return response;
    throw await refusal(response);
  }

  #request(method, body) {
    const headers = new Headers(this.#headers);
    if (body) headers.set("Content-Type", "application/json");
    if (method !== "GET" && this.#token) headers.set("X-CSRFToken", this.#token);
    // What ends a hold shall arrive, though the page goes.
    const keepalive = ["PUT", "DELETE"].includes(method) && !(body?.length > KEEPALIVE_CHARACTERS);
    // A redirect is never the blueprint's answer: most often it leads to a login page.
    return { method, headers, body, keepalive, credentials: "same-origin", redirect: "manual" };
  }

  get #token() {
    return this.#csrfToken ?? globalThis.document?.querySelector("meta[name=csrf-token]")?.content;
  }
}

/** The attempts of this tab, by address: those in hand, and those that an earlier document of the tab left. */
class Ledger {
  #inHand = new Map();

  constructor() {
    for (const url of JSON.parse(storage()?.getItem(LEDGER_KEY) ?? "[]")) this.#inHand.set(url, false);
    // A copied tab has a copy of the ledger. Locks tell it so; without them only a reload is surely no copy.
    if (!navigator.locks && !reloaded()) this.#inHand.clear();
    this.#save();
  }

  /** Hand over what was left of one server's attempts. */
  take(base) {
    const left = [...this.#inHand].filter(([url, inHand]) => !inHand && url.startsWith(base));
    return left.map(([url]) => this.hold(url));
  }

  hold(url) {
    this.#inHand.set(url, true);
    this.#save();
    return url;
  }

  leave(url) {
    if (this.#inHand.has(url)) this.#inHand.set(url, false);
  }

  forget(url) {
    this.#inHand.delete(url);
    this.#save();
  }

  #save() {
    try {
      storage()?.setItem(LEDGER_KEY, JSON.stringify([...this.#inHand.keys()]));
    } catch {
      // A full storage costs the resume, not the job.
    }
  }
}

const ledger = new Ledger();

/** The tab's storage; none in a worker, nor where the visitor allows none. */
function storage() {
  try {
    return globalThis.sessionStorage;
  } catch {
    return undefined;
  }
}

function reloaded() {
  return globalThis.document?.wasDiscarded || performance.getEntriesByType("navigation")[0]?.type === "reload";
}

/** Lock an attempt against other tabs: the function that unlocks it, `null` when the signal came first. */
function lockAlone(url, signal) {
  const locks = navigator.locks;
  if (!locks) return Promise.resolve(() => {});
  return new Promise((resolve) => {
    const held = () => new Promise((unlock) => resolve(unlock));
    const ask = () => locks.request(`jobber ${url}`, { signal }, held).catch(meet);
    // Chromium takes a lock back that it grants while alert() or open() stops the page: an Error of no other kind.
    const meet = (error) => (signal.aborted || error instanceof DOMException ? resolve(null) : setTimeout(ask));
    ask();
  });
}

function failure(error) {
  const type = error?.name ?? "Error";
  const message = String(error?.message ?? error);
  const { stack: traceback, permanent, retrySeconds: retry_seconds } = error ?? {};
  // Errors of other libraries may have a cancel() of their own.
  const cancel = error?.cancel === true || undefined;
  return { error: { type, message, traceback }, permanent, retry_seconds, cancel };
}

async function ask(url, request, answered) {
  const response = await fetch(url, request).catch(unreachable);
  answered?.();
  if (response.status === 204) return null;
  if (response.ok) return response.json().catch(unreachable);
  throw await refusal(response);
}

async function refusal(response) {
  return new Refusal(response.status, await response.json().catch(() => ({})), retryAfter(response));
}

function unreachable(cause) {
  throw new Refusal(0, { code: "unreachable", detail: String(cause), retryable: true });
}

function retryAfter(response) {
  return Number.parseFloat(response.headers.get("Retry-After")) || null;
}

/** Twice as long after every miss, and never the same for all clients. */
function backoff(misses) {
  return Math.min(2 ** misses, MAX_BACKOFF_SECONDS) * (0.5 + Math.random() / 2);
}

function pause(seconds, signal) {
  return new Promise((resolve) => {
    const wake = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", wake);
      resolve();
    };
    const timer = setTimeout(wake, 1000 * Math.min(seconds, MAX_PAUSE_SECONDS));
    signal.addEventListener("abort", wake);
    if (signal.aborted) wake();
  });
}
