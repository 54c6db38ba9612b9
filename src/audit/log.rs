//! The queue and the one thread that writes. Nothing here makes a caller wait for the disk, except [`Ticket::wait`] and
//! [`Log::close`], which say how long.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::event::{Event, Fields, KeyCall, LockRecord, StateChange, Value};
use super::files::{Entry, Files};
use super::{AuditError, Config};

/// Records of one write.
const BATCH: usize = 4096;
/// State changes that may wait beside the key calls; they are rare, so this is reached only with a disk that is full
/// for days.
const RESERVE: usize = 4096;
/// Between two tries on a disk that takes nothing.
const RETRY: Duration = Duration::from_secs(1);

enum Body {
    Call(KeyCall),
    State(StateChange),
    Lock(LockRecord),
    Event(Event),
}

struct Pending {
    time: SystemTime,
    body: Body,
    /// Told once the record is durable.
    ack: Option<SyncSender<()>>,
}

impl Pending {
    fn is_call(&self) -> bool {
        matches!(self.body, Body::Call(_))
    }

    fn entry(&self) -> Entry {
        let (event, fields, signed) = match &self.body {
            Body::Call(call) => ("key_call", call.fields(), false),
            Body::State(state) => ("state", state.clone().fields(), true),
            Body::Lock(lock) => ("lock", lock.clone().fields(), true),
            Body::Event(event) => {
                let (name, fields) = event.clone().split();
                (name, fields, false)
            }
        };
        Entry { time: self.time, event, fields: fields.json(), signed }
    }
}

/// What the log has done so far: for `status` and metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Number of the last record that was written.
    pub seq: u64,
    /// Its hash. Kept elsewhere (the journal, the customer's system), it shows later whether the end was cut off.
    pub hash: [u8; 32],
    /// Records that were dropped since the log was opened, because the disk took nothing and the queue was full.
    pub dropped: u64,
    /// Records that wait for the disk.
    pub waiting: u64,
    /// Why the last write, sync or rotation failed; `None` when it succeeded.
    pub error: Option<String>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Pending>,
    /// How many of `waiting` are key calls.
    calls: usize,
    /// Records to count in the next `gap` record, and since when.
    dropped: u64,
    dropped_since: Option<SystemTime>,
    closing: bool,
    done: bool,
    stats: Stats,
}

struct Shared {
    queue: Mutex<Queue>,
    /// The writer has something to do.
    work: Condvar,
    /// The writer has ended.
    end: Condvar,
    limit: usize,
    gather: Duration,
}

impl Shared {
    /// The queue stays consistent between any two statements here, so a panic elsewhere doesn't spoil it.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, body: Body, ack: Option<SyncSender<()>>) {
        let pending = Pending { time: SystemTime::now(), body, ack };
        let call = pending.is_call();
        let mut queue = self.lock();
        let room = if call { queue.calls < self.limit } else { queue.waiting.len() < self.limit + RESERVE };
        if queue.closing || !room {
            queue.dropped += 1;
            queue.stats.dropped += 1;
            queue.dropped_since.get_or_insert(pending.time);
            return;
        }
        queue.calls += usize::from(call);
        queue.waiting.push_back(pending);
        // The writer gathers key calls for a while: only the first wakes it, and whatever must not wait.
        if !call || queue.waiting.len() == 1 || queue.waiting.len() == BATCH {
            self.work.notify_one();
        }
    }
}

/// Tells when a record is durable. May be dropped.
#[derive(Debug)]
pub struct Ticket(Receiver<()>);

impl Ticket {
    /// Waits until the record is on disk, at most `longest`; says whether it is.
    pub fn wait(self, longest: Duration) -> bool {
        self.0.recv_timeout(longest).is_ok()
    }
}

/// An open log. Every method may be called from any thread.
///
/// Open it after the process has gone into the background: the writer is a thread, and threads don't survive `fork`.
pub struct Log {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("stats", &self.stats()).finish()
    }
}

impl Log {
    /// Opens the log, begins it where there is none, and goes on with it where one is, also after a crash.
    ///
    /// # Errors
    /// If the file can't be opened or written, another process writes it, or it is no audit log.
    pub fn open(config: Config) -> Result<Log, AuditError> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            end: Condvar::new(),
            limit: config.queue.max(1),
            gather: config.gather,
        });
        let path = config.path.clone();
        let files = Files::open(config)?;
        (shared.lock().stats.seq, shared.lock().stats.hash) = (files.chain().seq, files.chain().hash);
        let writer = Arc::clone(&shared);
        thread::Builder::new()
            .name("hyokfs-audit".to_owned())
            .spawn(move || {
                Writer { shared: &writer, files }.run();
                writer.lock().done = true;
                writer.end.notify_all();
            })
            .map_err(AuditError::io(&path, "start the writer's thread"))?;
        Ok(Log { shared })
    }

    /// Records one call to a key service. Costs a short mutex and a push, never the disk.
    pub fn key_call(&self, call: KeyCall) {
        self.shared.push(Body::Call(call), None);
    }

    /// Records a change of state; it is written at once, signed and synced by the writer's thread.
    pub fn state(&self, state: StateChange) -> Ticket {
        self.urgent(Body::State(state))
    }

    /// Records a finished lock; written like a state change.
    pub fn lock(&self, lock: LockRecord) -> Ticket {
        self.urgent(Body::Lock(lock))
    }

    /// Records anything else; written at once and synced.
    pub fn event(&self, event: Event) -> Ticket {
        self.urgent(Body::Event(event))
    }

    fn urgent(&self, body: Body) -> Ticket {
        let (sender, receiver) = sync_channel(1);
        self.shared.push(body, Some(sender));
        Ticket(receiver)
    }

    /// What the log has done so far.
    pub fn stats(&self) -> Stats {
        let queue = self.shared.lock();
        Stats { waiting: queue.waiting.len() as u64, ..queue.stats.clone() }
    }

    /// Writes what waits and a `close` record, syncs, and ends the thread; waits at most `longest` for it and says
    /// whether all of it is on disk. Records that come later are dropped. Dropping the log does the same within 2 s.
    pub fn close(&self, longest: Duration) -> bool {
        let mut queue = self.shared.lock();
        queue.closing = true;
        self.shared.work.notify_one();
        let until = Instant::now() + longest;
        while !queue.done {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self.shared.end.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.waiting.is_empty() && queue.stats.error.is_none()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.close(Duration::from_secs(2));
    }
}

struct Writer<'a> {
    shared: &'a Shared,
    files: Files,
}

impl Writer<'_> {
    fn run(mut self) {
        let mut failing = false;
        loop {
            let (batch, dropped, closing) = self.next(failing);
            let mut entries: Vec<Entry> = dropped.map(|(count, since)| gap(count, since)).into_iter().collect();
            entries.extend(batch.iter().map(Pending::entry));
            let last = closing && batch.len() < BATCH;
            if last {
                entries.push(Entry { time: SystemTime::now(), event: "close", fields: "{}".to_owned(), signed: true });
            }
            let sync = last || batch.iter().any(|pending| !pending.is_call());
            let mut error = None;
            if let Err(failed) = self.files.append(&entries) {
                self.give_back(batch, dropped);
                error = Some(failed.to_string());
                failing = true;
            } else {
                failing = false;
                // What is written stays written when the sync fails; its callers just never hear that it is durable.
                match if sync { self.files.sync() } else { Ok(()) } {
                    Ok(()) => batch.into_iter().filter_map(|pending| pending.ack).for_each(|ack| {
                        // Nobody may be waiting any more.
                        let _ = ack.try_send(());
                    }),
                    Err(failed) => error = Some(failed.to_string()),
                }
                if !last && let Err(failed) = self.files.rotate_if_full() {
                    error = Some(failed.to_string());
                }
            }
            if let Some(error) = &error {
                tracing::warn!("{error}; records wait in memory until the log can be written");
            }
            let mut queue = self.shared.lock();
            queue.stats.seq = self.files.chain().seq;
            queue.stats.hash = self.files.chain().hash;
            queue.stats.error = error;
            // A disk that takes nothing must not hold up the end of the process.
            if last || (closing && failing) {
                return;
            }
        }
    }

    /// Waits for work, then takes it: a batch, how many records were dropped before it, whether the log is closing.
    fn next(&self, failing: bool) -> (Vec<Pending>, Option<(u64, SystemTime)>, bool) {
        let mut queue = self.shared.lock();
        let mut until = failing.then(|| Instant::now() + RETRY);
        loop {
            if queue.closing {
                break;
            }
            let hurry = !failing && (queue.waiting.len() > queue.calls || queue.waiting.len() >= BATCH);
            if hurry {
                break;
            }
            if !queue.waiting.is_empty() {
                until.get_or_insert_with(|| Instant::now() + self.shared.gather);
            }
            queue = match until {
                None => self.shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.shared.work.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        let count = queue.waiting.len().min(BATCH);
        let batch: Vec<Pending> = queue.waiting.drain(..count).collect();
        queue.calls -= batch.iter().filter(|pending| pending.is_call()).count();
        let dropped = std::mem::take(&mut queue.dropped);
        let since = queue.dropped_since.take().unwrap_or_else(SystemTime::now);
        (batch, (dropped > 0).then_some((dropped, since)), queue.closing)
    }

    /// Puts a batch that could not be written back to the front.
    fn give_back(&self, batch: Vec<Pending>, dropped: Option<(u64, SystemTime)>) {
        let mut queue = self.shared.lock();
        queue.calls += batch.iter().filter(|pending| pending.is_call()).count();
        batch.into_iter().rev().for_each(|pending| queue.waiting.push_front(pending));
        if let Some((count, since)) = dropped {
            queue.dropped += count;
            queue.dropped_since = Some(since);
        }
    }
}

fn gap(dropped: u64, since: SystemTime) -> Entry {
    let mut fields = Fields::default();
    fields.put("dropped", Value::Number(dropped)).put("since", Value::Time(since));
    Entry { time: SystemTime::now(), event: "gap", fields: fields.json(), signed: false }
}
