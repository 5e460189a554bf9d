/** A job as the server hands it out. */
export interface Job<Data = any> {
  readonly id: number;
  readonly type: string;
  readonly data: Data;
  readonly queue: string;
  readonly priority: number;
  /** The number of this hand-out. */
  readonly attempt: number;
  readonly failures: number;
  readonly max_attempts: number;
  readonly lease_seconds: number;
  /** RFC 3339, UTC. */
  readonly enqueued_at: string;
  readonly href: string;
  /** The files that it came with. */
  readonly attachments: Attachment[];
  /** Set when the server refused the last result and asks for a corrected one: the handler is called once more. */
  readonly rejection?: Rejection;
}

/** A file of a job. */
export interface Attachment {
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** What who put it said that it is. */
  readonly type: string;
  /** Hexadecimal. */
  readonly sha256: string;
  readonly href: string;
}

/** Why a result was refused. */
export interface Rejection {
  readonly reason: string;
  /** Field to messages, when the result breaks its schema. */
  readonly errors: Record<string, unknown> | null;
}

/**
 * Tell how far the work is: `progress` from 0 to 1, `note` up to 500 characters.
 *
 * It goes with the next heartbeat, which is sent at once, though not more often than every two seconds.
 */
export type Report = (progress?: number, note?: string) => void;

/**
 * Do a job; what is returned (JSON, `undefined` for null) is delivered as its result.
 *
 * An error that is thrown fails the job, which the server offers again later. It may carry `permanent: true` (do not
 * try again), `retrySeconds` (not before) and `cancel: true` (nobody is to do it: the job ends cancelled). A result that
 * the server wants corrected means another call with `job.rejection`; after four refused results the job is failed.
 *
 * The signal is aborted when the job is lost or given back: stop then, whatever is returned is dropped. The place of
 * the job is free for another one when the handler has ended.
 */
export type Handler<Data = any, Result = unknown> = (
  job: Job<Data>,
  signal: AbortSignal,
  report: Report,
) => Result | Promise<Result>;

export interface JobberOptions {
  /** The types to claim; each needs a handler. Default: the types that have handlers. */
  types?: string[];
  /** The queues to claim from. Default: every queue. */
  queues?: string[];
  /** How many jobs to hold at a time. Default: 1. */
  limit?: number;
  /**
   * The length of the lease. Default: 300, since timers of a background tab come once a minute or later and a
   * heartbeat is due every third of it. `null` leaves it to the job and the app.
   */
  leaseSeconds?: number | null;
  /**
   * How long the server may wait for a job before it answers a claim. Default: 25; 0 makes it answer at once. It waits
   * for no longer than it is set to, and asks to be left alone for a while where it has no place to wait in.
   */
  waitSeconds?: number;
  /** Where the blueprint is, absolute or from the root: `"/jobber"`. Default: where this module was loaded from. */
  url?: string;
  /** Sent as `X-CSRFToken`. Default: the content of `<meta name="csrf-token">`, which a worker cannot see. */
  csrfToken?: string;
  /** Sent with every request: `{"Jobber-Node": "lab-3"}`. */
  headers?: Record<string, string>;
}

/** A job as whoever may see it does. */
export interface SeenJob<Data = any, Result = any> {
  readonly id: number;
  readonly type: string;
  readonly data: Data;
  readonly queue: string;
  readonly priority: number;
  readonly state:
    | "queued" | "scheduled" | "locked" | "submitted" | "blocked"
    | "succeeded" | "failed" | "cancelled" | "expired";
  readonly attempt: number;
  readonly failures: number;
  readonly max_attempts: number;
  /** From 0 to 1. */
  readonly progress: number | null;
  readonly note: string | null;
  /** Null also when this visitor may not see it. */
  readonly result: Result | null;
  readonly error: { type: string; message: string; traceback?: string | null } | null;
  readonly enqueued_at: string;
  readonly run_at: string | null;
  readonly finished_at: string | null;
  readonly series: string | null;
  readonly owner: string | null;
  /** The id of the batch, or the job, that waits for its end. */
  readonly batch: number | null;
  readonly href: string;
  readonly attachments: Attachment[];
}

/** How far a batch is. */
export interface Batch<Data = any> {
  readonly id: number;
  readonly type: string;
  readonly state: SeenJob["state"];
  readonly data: Data;
  readonly owner: string | null;
  /** Its members; of them `done` succeeded, `failed` failed or expired, `running` are held, `left` have not ended. */
  readonly total: number;
  readonly done: number;
  readonly failed: number;
  readonly cancelled: number;
  readonly running: number;
  readonly left: number;
  /** Ends a second. */
  readonly rate: number | null;
  /** Until all have ended, at this rate. */
  readonly seconds_left: number | null;
  readonly enqueued_at: string;
  readonly finished_at: string | null;
  readonly href: string;
}

/** Which jobs to hear of; all that the visitor may see otherwise. */
export interface EventsFilter {
  /** An id, or up to 100. */
  job?: number | number[];
  type?: string;
  queue?: string;
  /** The reference of a thing: `<table>/<key>`. */
  owner?: string;
}

/** What the server, or the way to it, answered instead of what was asked for. */
export class Refusal extends Error {
  /** The HTTP status; 0 when there was no answer. */
  readonly status: number;
  /** The stable code, `unreachable` when nothing answered, null when something else than the blueprint did. */
  readonly code: string | null;
  /** What becomes of a rejected result's job. */
  readonly then: "correct" | "release" | "exclude" | "failed" | null;
  readonly errors: Record<string, unknown> | null;
  readonly retryable: boolean;
  /** What the server asks to wait, in seconds. */
  readonly retryAfter: number | null;
  /** The job is not this client's any more. */
  readonly gone: boolean;
  /** The job is still this client's, which may deliver something else. */
  readonly correctable: boolean;
}

/** The events, for a page to show. */
export interface JobberEvents {
  /** A job was handed out, its handler is called next. */
  claimed: CustomEvent<{ job: Job }>;
  /** A job that this tab held before it crashed or was discarded is worked again, on the same attempt. */
  resumed: CustomEvent<{ job: Job }>;
  /** `submitted`: the result is safe, and the server goes on with it later. */
  delivered: CustomEvent<{ job: Job; state: "succeeded" | "submitted" }>;
  /** The result was refused. Its job is still held when `error.correctable`. */
  rejected: CustomEvent<{ job: Job; error: Refusal }>;
  /** The handler threw, or the result cannot be delivered. `runAt` is when the job is offered again. */
  failed: CustomEvent<{ job: Job; error: unknown; state: string; runAt: string | null }>;
  /** The job was given back unworked: the page goes, `stop({ now: true })`, or a resumed job has no handler here. */
  released: CustomEvent<{ job: Job }>;
  /** The job is another's, cancelled or out of sight (`error.code`); the signal is aborted. */
  lost: CustomEvent<{ job: Job; error: Refusal }>;
  /** There is nothing to claim: the server waits for a job, or the next try comes in so many seconds. */
  idle: CustomEvent<{ retryAfter: number }>;
  /** Nobody is logged in. The client stops; what it held is resumed by `start()` when the same visitor is back. */
  unauthorized: CustomEvent<{ error: Refusal }>;
  /** Something went wrong. The client goes on when the error is `retryable` or the server's, else it stops. */
  error: CustomEvent<{ error: unknown; job?: Job }>;
  /** Nothing is claimed or worked any more. */
  stopped: CustomEvent<{}>;
}

/**
 * A client that works jobs in this tab or worker.
 *
 *     const jobber = new Jobber();
 *     jobber.on("tile", async (job, signal) => render(job.data, signal));
 *     jobber.start();
 *
 * - Heartbeats are sent every third of the lease, when the page is shown or hidden, and when it is online again.
 * - When the page goes, jobs in hand are released. What could not be released (a crash, a discarded tab, a network
 *   that was away) is resumed when the same tab comes back, if the server says that it is still held. Another tab's
 *   jobs are left alone, and so are those of the tab that this one is a copy of.
 * - A page in the back/forward cache works on when it is shown again.
 * - A worker learns nothing of its page and keeps nothing over a reload: its jobs are free when their leases end,
 *   unless the page lets it call `stop({ now: true })` before it goes.
 * - Lost connections and answers that say `retryable` are tried again, with a growing pause or the server's.
 */
export class Jobber extends EventTarget {
  constructor(options?: JobberOptions);
  /** Whether this client claims jobs. */
  readonly running: boolean;
  /** The jobs in hand. */
  readonly jobs: Job[];
  /** Set the handler of a type. */
  on<Data = any, Result = unknown>(type: string, handler: Handler<Data, Result>): this;
  /** Resume what the tab was left with, then claim; throws when there is no handler for a type to claim. */
  start(): this;
  /** Claim no more and finish the jobs in hand; `now` aborts and releases them. Resolves when all have ended. */
  stop(options?: { now?: boolean }): Promise<void>;
  /**
   * Hear of jobs that are changed: the callback gets each as it is then, perhaps twice, or null when too much has
   * changed to be told and the page is to list them again. It goes on by itself after a lost connection and when the
   * page comes back; it ends when nobody is logged in (`unauthorized`). Returns the function that ends it.
   */
  events(filter: EventsFilter, callback: (job: SeenJob | null) => void): () => void;
  /** Put a file beside the result of a job in hand, before the handler returns; throws a `Refusal`. */
  attach(job: Job, name: string, blob: Blob, signal?: AbortSignal): Promise<Attachment>;
  /** Get a file of a job, to be read as a stream or by `blob()`; throws a `Refusal`. */
  fetchAttachment(job: Job, name: string, signal?: AbortSignal): Promise<Response>;
  /** Ask how far a batch is; throws a `Refusal`. */
  batch(id: number, signal?: AbortSignal): Promise<Batch>;
  addEventListener<Name extends keyof JobberEvents>(
    name: Name,
    listener: (event: JobberEvents[Name]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    name: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}
