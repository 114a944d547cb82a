//! One closed-loop worker: its connection, the keys that only it writes, and what each of them may hold.
//!
//! Order around a write: note the attempt (in memory and in the journal), send, note the answer (journal first), count.
//! So whatever was counted as acknowledged can be audited, even when this process dies.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::args::Mix;
use crate::client::{Client, ContentBody, Failure, Read};
use crate::content::{Stream, next_random};
use crate::expect::{Content, Difference, Expected, Mismatch};
use crate::journal::{Event, Journal};
use crate::stats::{Operation, Stats};

const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Pause after an operation that found no server, with --keep-going.
const DOWN_PAUSE: Duration = Duration::from_millis(100);
/// Attempts to write one object before the measured phase.
const PREPARE_RETRIES: u32 = 4;
const LIST_KEYS_MAX: u32 = 100;

/// What all workers of a run share.
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) prefix: String,
    pub(crate) objects: u64,
    pub(crate) size_bytes: u64,
    pub(crate) part_bytes: Option<u64>,
    pub(crate) mix: Mix,
    pub(crate) retries: u32,
    pub(crate) keep_going: bool,
    pub(crate) journal: Option<Journal>,
    pub(crate) stats: Mutex<Stats>,
    pub(crate) stop: AtomicBool,
    pub(crate) stop_reason: Mutex<Option<String>>,
}

impl Run {
    pub(crate) fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().expect("no worker panics while it counts")
    }

    /// Ends the run early; the first reason is kept.
    fn abort(&self, reason: String) {
        self.stop.store(true, Ordering::Relaxed);
        self.stop_reason.lock().expect("nothing panics with it").get_or_insert(reason);
    }

    fn mismatch(&self, key: &str, expected: &Expected, difference: Difference) {
        // Only those that are described are worth a search through all keys.
        let searched = if self.stats().describes_more() { self.objects } else { 0 };
        let others = (0..searched).map(|number| key_name(&self.prefix, number));
        let mismatch = difference.into_mismatch(self.seed, key, expected, others);
        self.stats().mismatch(mismatch);
    }
}

/// Name of object `number`.
pub(crate) fn key_name(prefix: &str, number: u64) -> String {
    format!("{prefix}obj-{number:08}")
}

/// A key of this worker.
pub(crate) struct Slot {
    pub(crate) key: String,
    pub(crate) expected: Expected,
    pub(crate) next_version: u64,
}

pub(crate) struct Worker {
    run: Arc<Run>,
    client: Client,
    slots: Vec<Slot>,
    /// The slot that the next PUT of a pure PUT run writes.
    turn: usize,
    random: u64,
}

impl Worker {
    pub(crate) fn new(run: Arc<Run>, client: Client, slots: Vec<Slot>, number: u64) -> Self {
        let mut random = run.seed ^ number.wrapping_mul(0xA076_1D64_78BD_642F);
        next_random(&mut random);
        Self { run, client, slots, turn: 0, random }
    }

    /// Connects and, if asked, writes every object of this worker once.
    pub(crate) async fn prepare(&mut self, write: bool) -> Result<()> {
        self.client.connect().await?;
        for slot in 0..if write { self.slots.len() } else { 0 } {
            if self.run.stop.load(Ordering::Relaxed) {
                break;
            }
            let write = self.new_write(slot).await;
            let mut attempt = 0;
            while let Err(failure) = self.put(slot, &write).await {
                attempt += 1;
                if !failure.is_retryable() || attempt > PREPARE_RETRIES {
                    return Err(anyhow!(failure).context(format!("cannot prepare {}", self.slots[slot].key)));
                }
                tokio::time::sleep(backoff(attempt)).await;
            }
        }
        Ok(())
    }

    /// Operates until `deadline` or until the run is stopped; completes what it began.
    pub(crate) async fn measure(&mut self, deadline: Instant) {
        while Instant::now() < deadline && !self.run.stop.load(Ordering::Relaxed) {
            let (operation, slot) = self.choose();
            if let Err(failure) = self.operate(operation, slot).await {
                self.run.stats().failed_operations += 1;
                if failure.is_unreachable() {
                    if !self.run.keep_going {
                        self.run.abort(failure.to_string());
                        return;
                    }
                    tokio::time::sleep(DOWN_PAUSE).await;
                }
            }
        }
    }

    fn choose(&mut self) -> (Operation, usize) {
        let mix = self.run.mix;
        if mix == Mix::PUT {
            let slot = self.turn;
            self.turn = (self.turn + 1) % self.slots.len();
            return (Operation::Put, slot);
        }
        let mut draw = next_random(&mut self.random) % mix.total();
        let slot =
            usize::try_from(next_random(&mut self.random) % self.slots.len() as u64).expect("below a usize");
        for (weight, operation) in
            [(mix.get, Operation::Get), (mix.put, Operation::Put), (mix.list, Operation::List)]
        {
            if draw < u64::from(weight) {
                return (operation, slot);
            }
            draw -= u64::from(weight);
        }
        // Deleting what is not there would measure nothing.
        let absent = self.slots[slot].expected.certainly_absent();
        (if absent { Operation::Put } else { Operation::Delete }, slot)
    }

    async fn operate(&mut self, operation: Operation, slot: usize) -> Result<(), Failure> {
        let write = match operation {
            Operation::Put => Some(self.new_write(slot).await),
            _ => None,
        };
        let started = Instant::now();
        let mut attempt = 0;
        loop {
            let result = match (operation, &write) {
                (Operation::Put, Some(write)) => self.put(slot, write).await,
                (Operation::Get | Operation::Put, _) => self.get(slot).await,
                (Operation::Delete, _) => self.delete(slot).await,
                (Operation::List, _) => self.list().await,
                (other, _) => unreachable!("choose() does not choose {other:?}"),
            };
            let failure = match result {
                Ok(Outcome::Right { bytes }) => {
                    let now = Instant::now();
                    self.run.stats().success(operation, bytes, now - started, now);
                    return Ok(());
                }
                Ok(Outcome::Wrong) => return Ok(()),
                Err(failure) => failure,
            };
            self.run.stats().error(failure.kind());
            attempt += 1;
            if attempt > self.run.retries || !failure.is_retryable() || self.run.stop.load(Ordering::Relaxed)
            {
                return Err(failure);
            }
            self.run.stats().retries += 1;
            tokio::time::sleep(backoff(attempt)).await;
        }
    }

    /// Chooses the next version of a key and hashes it if payloads are signed: before the clock of the operation starts.
    async fn new_write(&mut self, slot: usize) -> Write {
        let slot = &mut self.slots[slot];
        let version = slot.next_version;
        slot.next_version += 1;
        let body = ContentBody::new(Stream::new(self.run.seed, &slot.key, version), self.run.size_bytes);
        let in_parts = self.run.part_bytes.filter(|part| self.run.size_bytes > *part);
        let payload_hash = match in_parts {
            Some(_) => String::new(),
            None => self.client.payload_hash(body.clone()).await,
        };
        Write { version, body, payload_hash, in_parts }
    }

    async fn put(&mut self, slot: usize, write: &Write) -> Result<Outcome, Failure> {
        let size_bytes = self.run.size_bytes;
        let content = Content::Version { version: write.version, size_bytes };
        self.before_write(slot, write.version, content);
        let key = &self.slots[slot].key;
        let body = write.body.clone();
        let result = match write.in_parts {
            Some(part_bytes) => self.client.put_parts(key, body, part_bytes).await,
            None => self.client.put(key, body, &write.payload_hash).await,
        };
        self.after_write(slot, write.version, content, &result);
        result.map(|()| Outcome::Right { bytes: size_bytes })
    }

    async fn delete(&mut self, slot: usize) -> Result<Outcome, Failure> {
        let version = self.slots[slot].next_version;
        self.before_write(slot, version, Content::Absent);
        let result = self.client.delete(&self.slots[slot].key).await;
        self.after_write(slot, version, Content::Absent, &result);
        result.map(|()| Outcome::Right { bytes: 0 })
    }

    async fn get(&mut self, slot: usize) -> Result<Outcome, Failure> {
        let Slot { key, expected, .. } = &mut self.slots[slot];
        let difference = match self.client.get(key, expected).await? {
            Read::Found(content) => {
                let Content::Version { version, size_bytes } = content else {
                    unreachable!("an absent object is not found")
                };
                if !expected.is_known() && version > 0 {
                    expected.settle(content);
                }
                return Ok(Outcome::Right { bytes: size_bytes });
            }
            Read::Absent if expected.accepts(Content::Absent) => return Ok(Outcome::Right { bytes: 0 }),
            Read::Absent => Difference::missing(),
            Read::Wrong(difference) => difference,
        };
        self.run.mismatch(key, expected, difference);
        Ok(Outcome::Wrong)
    }

    /// Lists from the front; the keys must be in order and of the prefix.
    async fn list(&mut self) -> Result<Outcome, Failure> {
        let prefix = &self.run.prefix;
        let page = self.client.list(prefix, LIST_KEYS_MAX, None).await?;
        let keys: Vec<&str> = page.objects.iter().map(|(key, _)| key.as_str()).collect();
        let wrong = keys.windows(2).find(|pair| pair[0] >= pair[1]).map(|pair| pair[1]);
        let foreign = keys.iter().copied().find(|key| !key.starts_with(prefix.as_str()));
        if let Some(found) = wrong.or(foreign) {
            self.run.stats().mismatch(Mismatch {
                key: prefix.clone(),
                offset_bytes: 0,
                expected: "a listing in order, of the prefix".to_owned(),
                found: format!("{found} out of order or of another prefix"),
            });
            return Ok(Outcome::Wrong);
        }
        Ok(Outcome::Right { bytes: 0 })
    }

    fn before_write(&mut self, slot: usize, version: u64, content: Content) {
        self.note(Event::Try, slot, version, content);
        self.slots[slot].expected.attempt(content);
    }

    fn after_write(&mut self, slot: usize, version: u64, content: Content, result: &Result<(), Failure>) {
        match result {
            Ok(()) => {
                self.note(Event::Ack, slot, version, content);
                self.slots[slot].expected.settle(content);
            }
            Err(failure) if !failure.outcome_unknown() => {
                self.note(Event::No, slot, version, content);
                self.slots[slot].expected.reject(content);
            }
            Err(_) => {}
        }
    }

    /// A journal that cannot be written ends the run: what is not written cannot be audited.
    fn note(&self, event: Event, slot: usize, version: u64, content: Content) {
        if let Some(journal) = &self.run.journal
            && let Err(error) = journal.write(event, &self.slots[slot].key, version, content)
        {
            self.run.abort(format!("cannot write the journal: {error}"));
        }
    }
}

/// One version on its way to the server.
struct Write {
    version: u64,
    body: ContentBody,
    payload_hash: String,
    in_parts: Option<u64>,
}

/// How an answered operation ended.
enum Outcome {
    Right {
        bytes: u64,
    },
    /// The content was wrong; already reported.
    Wrong,
}

/// 50 ms, doubling up to 2 s; `attempt` counts from 1.
pub(crate) fn backoff(attempt: u32) -> Duration {
    BACKOFF_MAX.min(BACKOFF_FIRST * 2u32.saturating_pow((attempt - 1).min(10)))
}
