//! One connection and what it does with an operation: send it, check the answer, count it.
//!
//! Order around a write, as in every run of this tool: note the attempt (in memory and in the journal), send, note the
//! answer (journal first), count. What was counted as acknowledged can be audited, even when this process dies.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hyper::StatusCode;

use super::Shared;
use super::step::{Step, Write};
use super::tally::Done;
use crate::client::{Client, ContentBody, Failure, Read};
use crate::content::Stream;
use crate::expect::{Content, Difference, Mismatch};
use crate::journal::Event;
use crate::sigv4::UNSIGNED_PAYLOAD;
use crate::worker::backoff;

/// Pause after an operation that found no server, with --keep-going.
const DOWN_PAUSE: Duration = Duration::from_millis(100);

/// How an answered operation ended.
enum Outcome {
    Right {
        bytes: u64,
        found: Option<Content>,
    },
    /// The content was wrong; already reported.
    Wrong,
}

impl Outcome {
    const NO_BYTES: Self = Self::Right { bytes: 0, found: None };
}

/// One connection.
pub(crate) struct Actor {
    shared: Arc<Shared>,
    client: Client,
}

impl Actor {
    pub(crate) fn new(shared: Arc<Shared>, client: Client) -> Self {
        Self { shared, client }
    }

    pub(crate) async fn connect(&mut self) -> Result<(), Failure> {
        self.client.connect().await
    }

    /// Does operation `number`, which should have begun at `due` in the phase `phase`.
    pub(crate) async fn operate(&mut self, number: u64, due: Instant, phase: usize) {
        let step = Step::new(&self.shared, number);
        let result = self.finish(&step, due, phase).await;
        let found = result.as_ref().ok().copied().flatten();
        step.release(&self.shared.keys, found);
        if let Err(failure) = result {
            self.shared.tally().failed(phase);
            if failure.is_unreachable() {
                if !self.shared.keep_going {
                    self.shared.abort(failure.to_string());
                    return;
                }
                tokio::time::sleep(DOWN_PAUSE).await;
            }
        }
    }

    /// Writes object `number` once, before the clock starts.
    pub(crate) async fn prepare(&mut self, number: u64, bytes: Option<u64>) -> Result<(), Failure> {
        let put = crate::stats::Operation::Put;
        let content = |number, version| Write::content(&self.shared, put, (number, version), bytes);
        let Some(writing) = self.shared.keys.begin_write(number, super::keys::Want::Any, content) else {
            return Ok(());
        };
        let write = Write::new(&self.shared, put, writing, bytes);
        let step = Step::Write(write);
        let (mut attempt, mut hashing) = (0, Duration::ZERO);
        let result = loop {
            match self.attempt(&step, attempt, &mut hashing).await {
                Err(failure) if failure.is_retryable() && attempt < super::PREPARE_RETRIES => attempt += 1,
                other => break other.map(|_| ()),
            }
            tokio::time::sleep(backoff(attempt)).await;
        };
        step.release(&self.shared.keys, None);
        result
    }

    async fn finish(&mut self, step: &Step, due: Instant, phase: usize) -> Result<Option<Content>, Failure> {
        let shared = Arc::clone(&self.shared);
        let started = Instant::now();
        let mut hashing = Duration::ZERO;
        let mut attempt = 0;
        loop {
            let failure = match self.attempt(step, attempt, &mut hashing).await {
                Ok(Outcome::Right { bytes, found }) => {
                    let ended = Instant::now();
                    let done = Done {
                        operation: step.operation(),
                        phase,
                        bytes,
                        latency: (ended - due).saturating_sub(hashing),
                        service: (ended - started).saturating_sub(hashing),
                        ended: shared.since_begin(ended),
                    };
                    shared.tally().success(&done);
                    return Ok(found);
                }
                Ok(Outcome::Wrong) => return Ok(None),
                Err(failure) => failure,
            };
            shared.tally().error(failure.kind(), shared.since_begin(Instant::now()));
            attempt += 1;
            let stopped = shared.stop.load(Ordering::Relaxed);
            if attempt > shared.retries || !failure.is_retryable() || stopped {
                return Err(failure);
            }
            shared.tally().retries += 1;
            tokio::time::sleep(backoff(attempt)).await;
        }
    }

    async fn attempt(
        &mut self,
        step: &Step,
        attempt: u32,
        hashing: &mut Duration,
    ) -> Result<Outcome, Failure> {
        match step {
            Step::Get(reading) | Step::Range(reading, _) => {
                let key = self.shared.keys.name(reading.number);
                let read = match step {
                    Step::Range(_, range) => self.client.get_range(&key, &reading.expected, *range).await?,
                    _ => self.client.get(&key, &reading.expected).await?,
                };
                Ok(self.judge(&key, reading, read, step))
            }
            Step::Head(reading) => {
                let key = self.shared.keys.name(reading.number);
                let size = self.client.head(&key).await?;
                Ok(self.judge_head(&key, reading, size))
            }
            Step::List(after, certain) => self.list(*after, certain).await,
            Step::Write(write) => self.write(write, attempt, hashing).await,
            Step::Delete(writing) => {
                let (number, version) = (writing.number, writing.version);
                self.before_write(number, version, Content::Absent);
                let result = self.client.delete(&self.shared.keys.name(number)).await.map(|()| None);
                self.after_write(number, version, Content::Absent, &result);
                result.map(|_| Outcome::NO_BYTES)
            }
            Step::Copy { source, writing, content } => {
                let Content::Version { version, .. } = *content else { unreachable!("copies have content") };
                self.before_write(writing.number, version, *content);
                let names = [*source, writing.number].map(|number| self.shared.keys.name(number));
                let result = self.client.copy(&names[0], &names[1]).await;
                self.after_write(writing.number, version, *content, &result);
                result.map(|_| Outcome::NO_BYTES)
            }
        }
    }

    async fn write(
        &mut self,
        write: &Write,
        attempt: u32,
        hashing: &mut Duration,
    ) -> Result<Outcome, Failure> {
        let (number, version) = (write.writing.number, write.writing.version);
        let key = self.shared.keys.name(number);
        let body = ContentBody::new(Stream::new(self.shared.seed, &key, version), write.size_bytes);
        let begun = Instant::now();
        let hash = match write.in_parts {
            true => UNSIGNED_PAYLOAD.to_owned(),
            false => self.client.payload_hash(body.clone()).await,
        };
        *hashing += begun.elapsed();
        self.before_write(number, version, write.content);
        let result = match write.in_parts {
            true => self.client.put_parts(&key, body, self.shared.workload.part_bytes).await.map(|()| None),
            false => self.client.put_if(&key, body, &hash, write.condition.as_ref()).await,
        };
        let refused = matches!(&result, Err(Failure::Http { status: StatusCode::PRECONDITION_FAILED, .. }));
        // A repeated attempt may be refused because the one before took effect.
        if refused && attempt > 0 && !write.must_fail {
            self.after_write(number, version, write.content, &Ok(None));
            return Ok(Outcome::Right { bytes: write.size_bytes, found: None });
        }
        self.after_write(number, version, write.content, &result);
        if write.condition.is_some() && refused != write.must_fail && (refused || result.is_ok()) {
            let found = if refused { "412 although it holds" } else { "a write although it does not hold" };
            self.shared.tally().mismatch(Mismatch {
                key,
                offset_bytes: 0,
                expected: format!("{:?} to be respected", write.condition),
                found: found.to_owned(),
            });
            return Ok(Outcome::Wrong);
        }
        if refused && write.must_fail {
            // The entity tag that was taken for the write still stands.
            self.shared.keys.reject(number, write.content, write.writing.tag.clone());
            return Ok(Outcome::NO_BYTES);
        }
        result.map(|_| Outcome::Right { bytes: write.size_bytes, found: None })
    }

    fn judge(&self, key: &str, reading: &super::keys::Reading, read: Read, step: &Step) -> Outcome {
        let difference = match read {
            Read::Found(content) => {
                let Content::Version { version, size_bytes } = content else {
                    unreachable!("an absent object is not found")
                };
                return match step {
                    Step::Range(_, (_, len)) => Outcome::Right { bytes: *len, found: None },
                    _ => Outcome::Right { bytes: size_bytes, found: (version > 0).then_some(content) },
                };
            }
            Read::Absent if reading.expected.accepts(Content::Absent) => return Outcome::NO_BYTES,
            Read::Absent => Difference::missing(),
            Read::Wrong(difference) => difference,
        };
        self.shared.mismatch(key, &reading.expected, difference);
        Outcome::Wrong
    }

    fn judge_head(&self, key: &str, reading: &super::keys::Reading, size: Option<u64>) -> Outcome {
        let right = match size {
            Some(size) => reading.expected.accepts_size(size),
            None => reading.expected.accepts(Content::Absent),
        };
        if right {
            return Outcome::NO_BYTES;
        }
        self.shared.tally().mismatch(Mismatch {
            key: key.to_owned(),
            offset_bytes: 0,
            expected: reading.expected.describe(),
            found: size.map_or("no object".to_owned(), |size| format!("a size of {size} bytes")),
        });
        Outcome::Wrong
    }

    /// Lists from the drawn object on. The keys must be in order and of the prefix, and none may be missing that was
    /// there before and after.
    async fn list(&mut self, after: u64, certain: &[Option<u32>]) -> Result<Outcome, Failure> {
        let keys = &self.shared.keys;
        let (prefix, start) = (keys.prefix().to_owned(), keys.name(after));
        let keys_max = self.shared.workload.list_keys;
        let page = self.client.list_after(&prefix, keys_max, &start).await?;
        let still = keys.certain(after, certain.len() as u64);
        let names: Vec<&str> = page.objects.iter().map(|(key, _)| key.as_str()).collect();
        let disordered = names.windows(2).find(|pair| pair[0] >= pair[1]).map(|pair| pair[1]);
        let foreign = names.iter().copied().find(|key| !key.starts_with(&prefix) || **key <= *start.as_str());
        let wrong = disordered.or(foreign).map(|key| format!("{key} out of order or out of place"));
        let end = page.next.as_ref().and(names.last().copied());
        let missing = (after + 1..)
            .zip(certain.iter().zip(&still))
            .filter(|(_, (before, after))| before.is_some() && before == after)
            .map(|(number, _)| keys.name(number))
            .take_while(|name| end.is_none_or(|end| name.as_str() <= end))
            .find(|name| names.binary_search(&name.as_str()).is_err())
            .map(|name| format!("no {name}"));
        if let Some(found) = wrong.or(missing) {
            let expected = "a listing in order, of the prefix, with all objects".to_owned();
            self.shared.tally().mismatch(Mismatch { key: prefix, offset_bytes: 0, expected, found });
            return Ok(Outcome::Wrong);
        }
        Ok(Outcome::NO_BYTES)
    }

    fn before_write(&self, number: u64, version: u64, content: Content) {
        self.note(Event::Try, number, version, content);
        self.shared.keys.attempt(number, content);
    }

    fn after_write(
        &self,
        number: u64,
        version: u64,
        content: Content,
        result: &Result<Option<String>, Failure>,
    ) {
        match result {
            Ok(tag) => {
                self.note(Event::Ack, number, version, content);
                self.shared.keys.settle(number, content, tag.clone());
            }
            Err(failure) if !failure.outcome_unknown() => {
                self.note(Event::No, number, version, content);
                self.shared.keys.reject(number, content, None);
            }
            Err(_) => {}
        }
    }

    /// A journal that cannot be written ends the run: what is not written cannot be audited.
    fn note(&self, event: Event, number: u64, version: u64, content: Content) {
        if let Some(journal) = &self.shared.journal
            && let Err(error) = journal.write(event, &self.shared.keys.name(number), version, content)
        {
            self.shared.abort(format!("cannot write the journal: {error}"));
        }
    }
}
