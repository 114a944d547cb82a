//! The engine of `run`: connections that work through a schedule and count.
//!
//! [`keys`] knows the objects, [`step`] turns a draw into something to send, [`operate`] sends it and judges the answer,
//! [`pace`] says when, [`tally`] counts, [`knee`] searches for the highest rate that is served well.
//!
//! Measured is from the start of the first phase to the end of the last one; operations in flight then are completed
//! and counted, for at most the drain time.

pub(crate) mod keys;
pub(crate) mod knee;
mod operate;
mod pace;
mod step;
pub(crate) mod tally;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::args::{CONCURRENCY_MAX, Endpoint};
use crate::client::{Client, Target};
use crate::expect::{Difference, Expected};
use crate::journal::Journal;
use crate::process;
use crate::run;
use crate::sigv4::{Credentials, Signer};
use crate::trace::Trace;
use crate::workload::dice::Dice;
use crate::workload::{Phases, Workload};
use operate::Actor;
use pace::Schedule;
use tally::Tally;

/// Attempts to write one object before the clock starts.
const PREPARE_RETRIES: u32 = 4;
/// How often an idle worker of a ramp looks whether its turn has come.
const RAMP_PAUSE: Duration = Duration::from_millis(5);
const LIST_KEYS_MAX: u32 = 1000;

/// Everything that defines one client's run; what a coordinator sends to its agents.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) workload: Workload,
    pub(crate) endpoint: Endpoint,
    pub(crate) region: String,
    pub(crate) bucket: String,
    pub(crate) prefix: String,
    pub(crate) seed: u64,
    pub(crate) first_version: u64,
    pub(crate) sign_payload: bool,
    pub(crate) verify: bool,
    pub(crate) retries: u32,
    pub(crate) keep_going: bool,
    pub(crate) timeout: Duration,
    /// Time after the last phase for what was begun or is waiting.
    pub(crate) drain: Duration,
    pub(crate) threads: u8,
    /// Which of several load generators this is.
    pub(crate) client: u64,
    pub(crate) trace: Option<Trace>,
    pub(crate) speed: f64,
}

impl Spec {
    /// The part of client `client` of `clients`: its own objects under a prefix of its own, its own sequence of
    /// operations from the same seed, its share of the load.
    pub(crate) fn for_client(&self, client: u64, clients: u64) -> Self {
        Self {
            workload: self.workload.share(clients),
            prefix: format!("{}client-{client}/", self.prefix),
            client,
            ..self.clone()
        }
    }
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) workload: Workload,
    pub(crate) seed: u64,
    pub(crate) client: u64,
    pub(crate) keys: keys::Keys,
    pub(crate) trace: Option<Arc<Trace>>,
    pub(crate) retries: u32,
    pub(crate) keep_going: bool,
    pub(crate) journal: Option<Journal>,
    pub(crate) stop: Arc<AtomicBool>,
    stop_reason: Mutex<Option<String>>,
    tally: Mutex<Tally>,
    begin: Mutex<Instant>,
    /// The next operation's number.
    next: AtomicU64,
    in_flight: AtomicU64,
    prepared: AtomicU64,
}

impl Shared {
    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("nothing panics while it counts")
    }

    pub(crate) fn since_begin(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.begin.lock().expect("nothing panics with it"))
    }

    /// Ends the run early; the first reason is kept.
    pub(crate) fn abort(&self, reason: String) {
        self.stop.store(true, Ordering::Relaxed);
        self.stop_reason.lock().expect("nothing panics with it").get_or_insert(reason);
    }

    pub(crate) fn stopped_early(&self) -> Option<String> {
        self.stop_reason.lock().expect("nothing panics with it").clone()
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn prepared(&self) -> u64 {
        self.prepared.load(Ordering::Relaxed)
    }

    fn mismatch(&self, key: &str, expected: &Expected, difference: Difference) {
        // Only those that are described are worth a search through all keys.
        let searched = if self.tally().describes_more() { self.keys.len() } else { 0 };
        let others = (0..searched).map(|number| self.keys.name(number));
        let mismatch = difference.into_mismatch(self.seed, key, expected, others);
        self.tally().mismatch(mismatch);
    }
}

/// One client of a run.
pub(crate) struct Engine {
    pub(crate) spec: Spec,
    pub(crate) shared: Arc<Shared>,
    pub(crate) target: Arc<Target>,
    /// What the server calls itself.
    pub(crate) server_name: Option<String>,
    signer: Signer,
    actors: Vec<Actor>,
}

/// What one measurement brought.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) tally: Tally,
    pub(crate) elapsed: Duration,
    /// CPU seconds of this process.
    pub(crate) client_cpu_seconds: Option<f64>,
    pub(crate) stopped_early: Option<String>,
}

impl Engine {
    /// Looks the endpoint up and makes sure that there is a bucket.
    pub(crate) async fn new(spec: Spec, credentials: Credentials, journal: Option<Journal>) -> Result<Self> {
        spec.workload.check()?;
        let signer = Signer::new(credentials, spec.region.clone());
        let mut target = run::target(&spec.endpoint, spec.timeout, &spec.bucket, spec.seed).await?;
        target.verify = spec.verify;
        target.sign_payload = spec.sign_payload;
        let target = Arc::new(target);
        let mut setup = Client::new(Arc::clone(&target), signer.clone());
        run::ensure_bucket(&mut setup, spec.retries)
            .await
            .with_context(|| format!("cannot use bucket {}", spec.bucket))?;
        let server_name = setup.server_name().await.ok().flatten();
        let shared = Arc::new(Shared {
            workload: spec.workload.clone(),
            seed: spec.seed,
            client: spec.client,
            keys: keys::Keys::new(spec.prefix.clone(), spec.first_version, true),
            trace: spec.trace.clone().map(Arc::new),
            retries: spec.retries,
            keep_going: spec.keep_going,
            journal,
            stop: Arc::default(),
            stop_reason: Mutex::new(None),
            tally: Mutex::new(Tally::new(std::iter::empty())),
            begin: Mutex::new(Instant::now()),
            next: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            prepared: AtomicU64::new(0),
        });
        Ok(Self { spec, shared, target, server_name, signer, actors: Vec::new() })
    }

    fn actor(&self) -> Actor {
        Actor::new(Arc::clone(&self.shared), Client::new(Arc::clone(&self.target), self.signer.clone()))
    }

    /// Writes all objects, or learns which are there; opens all connections.
    pub(crate) async fn prepare(&mut self) -> Result<()> {
        while self.actors.len() < self.connections() {
            self.actors.push(self.actor());
        }
        for actor in &mut self.actors {
            actor.connect().await?;
        }
        if !self.spec.workload.phases.prepare {
            return self.list_objects().await;
        }
        let sizes: Vec<Option<u64>> = match &self.shared.trace {
            Some(trace) => trace.objects.iter().map(|size| Some(*size)).collect(),
            None => vec![None; usize::try_from(self.spec.workload.objects).context("too many objects")?],
        };
        self.shared.keys.reserve(sizes.len() as u64);
        let queue = Arc::new(Mutex::new((0u64..).zip(sizes)));
        let mut tasks = JoinSet::new();
        for mut actor in self.actors.drain(..) {
            let (queue, shared) = (Arc::clone(&queue), Arc::clone(&self.shared));
            tasks.spawn(async move {
                loop {
                    let next = queue.lock().expect("nothing panics with it").next();
                    let Some((number, size)) = next.filter(|_| !shared.stop.load(Ordering::Relaxed)) else {
                        return Ok(actor);
                    };
                    if let Err(failure) = actor.prepare(number, size).await {
                        shared.stop.store(true, Ordering::Relaxed);
                        return Err(
                            anyhow!(failure).context(format!("cannot prepare {}", shared.keys.name(number)))
                        );
                    }
                    shared.prepared.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while let Some(actor) = tasks.join_next().await {
            self.actors.push(actor.context("a worker failed")??);
        }
        Ok(())
    }

    /// Connections for the largest load of any phase.
    fn connections(&self) -> usize {
        let workload = &self.spec.workload;
        if workload.rate.is_some() || self.shared.trace.is_some() {
            return workload.concurrency;
        }
        let most = workload.phases.measured.iter().map(|phase| phase.factor(1.0)).fold(1.0, f64::max);
        workers(workload.concurrency, most)
    }

    async fn list_objects(&mut self) -> Result<()> {
        let mut setup = Client::new(Arc::clone(&self.target), self.signer.clone());
        let prefix = &self.spec.prefix;
        let (mut token, mut found) = (None, 0);
        while found < self.spec.workload.objects {
            let page = setup.list(prefix, LIST_KEYS_MAX, token.as_deref()).await.context("cannot list")?;
            for (key, size_bytes) in page.objects {
                let number = key.strip_prefix(prefix.as_str()).and_then(|name| name.strip_prefix("obj-"));
                if let Some(number) = number.and_then(|number| number.parse().ok())
                    && number < crate::args::OBJECTS_MAX
                {
                    self.shared.keys.listed(number, size_bytes);
                    found += 1;
                }
            }
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        if found == 0 {
            bail!("no objects under prefix '{prefix}': begin the phases with prepare");
        }
        Ok(())
    }

    /// Runs `phases`, in the open loop at `rate` or the trace's times if there is one, else in the closed loop.
    pub(crate) async fn measure(&mut self, rate: Option<f64>, phases: &Phases) -> Result<Measured> {
        let cpu_before = process::own_usage();
        let begin = Instant::now();
        let names = phases
            .measured
            .iter()
            .map(|phase| (phase.name().to_owned(), phase.duration.as_secs_f64(), phase.counts()));
        *self.shared.tally() = Tally::new(names);
        *self.shared.begin.lock().expect("nothing panics with it") = begin;
        match self.schedule(rate, phases) {
            Some(schedule) => self.open_loop(schedule, phases, begin).await?,
            None => self.closed_loop(phases, begin).await?,
        }
        // Whoever divides by the time divides by at least that of the phases.
        let elapsed = begin.elapsed();
        let cpu_after = process::own_usage();
        let mut tally = self.shared.tally().clone();
        tally.close_second();
        Ok(Measured {
            tally,
            elapsed,
            client_cpu_seconds: cpu_before
                .zip(cpu_after)
                .map(|(before, after)| after.cpu_seconds - before.cpu_seconds),
            stopped_early: self.shared.stopped_early(),
        })
    }

    fn schedule(&self, rate: Option<f64>, phases: &Phases) -> Option<Schedule> {
        let next = self.shared.next.load(Ordering::Relaxed);
        if let Some(trace) = &self.shared.trace {
            let (trace, phases) = (Arc::clone(trace), phases.clone());
            return Some(Schedule::Trace { trace, speed: self.spec.speed, next: 0, phases });
        }
        let dice = Dice::new(self.spec.seed, !self.spec.client, next);
        Some(Schedule::rate(rate?, self.spec.workload.arrivals, phases.clone(), dice))
    }

    async fn open_loop(&mut self, schedule: Schedule, phases: &Phases, begin: Instant) -> Result<()> {
        let first = self.shared.next.load(Ordering::Relaxed);
        let (tickets, pacer) = pace::start(schedule, first, begin, Arc::clone(&self.shared.stop));
        let deadline = begin + phases.total() + self.spec.drain;
        let mut tasks = JoinSet::new();
        for mut actor in self.actors.drain(..) {
            let (tickets, shared, phases) = (tickets.clone(), Arc::clone(&self.shared), phases.clone());
            tasks.spawn(async move {
                while let Ok(ticket) = tickets.recv().await {
                    if shared.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let (phase, _) = phases.at(ticket.due - begin);
                    if Instant::now() > deadline {
                        let mut tally = shared.tally();
                        tally.abandoned_operations += 1;
                        tally.failed(phase);
                        continue;
                    }
                    shared.in_flight.fetch_add(1, Ordering::Relaxed);
                    actor.operate(ticket.number, ticket.due, phase).await;
                    shared.in_flight.fetch_sub(1, Ordering::Relaxed);
                    shared.next.fetch_max(ticket.number + 1, Ordering::Relaxed);
                }
                actor
            });
        }
        while let Some(actor) = tasks.join_next().await {
            self.actors.push(actor.context("a worker failed")?);
        }
        drop(tickets);
        let given_up = pacer.join().map_err(|_| anyhow!("the pacing thread failed"))?;
        let mut tally = self.shared.tally();
        tally.abandoned_operations += given_up;
        tally.failed_operations += given_up;
        Ok(())
    }

    async fn closed_loop(&mut self, phases: &Phases, begin: Instant) -> Result<()> {
        let end = begin + phases.total();
        let concurrency = self.spec.workload.concurrency;
        let mut tasks = JoinSet::new();
        for (index, mut actor) in self.actors.drain(..).enumerate() {
            let (shared, phases) = (Arc::clone(&self.shared), phases.clone());
            let mut thinking = Dice::new(shared.seed, shared.client, u64::MAX - index as u64);
            tasks.spawn(async move {
                loop {
                    let now = Instant::now();
                    if now >= end || shared.stop.load(Ordering::Relaxed) {
                        return actor;
                    }
                    let (phase, factor) = phases.at(now - begin);
                    if index >= workers(concurrency, factor) {
                        tokio::time::sleep(RAMP_PAUSE.min(end - now)).await;
                        continue;
                    }
                    let number = shared.next.fetch_add(1, Ordering::Relaxed);
                    shared.in_flight.fetch_add(1, Ordering::Relaxed);
                    actor.operate(number, now, phase).await;
                    shared.in_flight.fetch_sub(1, Ordering::Relaxed);
                    let pause = shared.workload.think.draw(&mut thinking);
                    if !pause.is_zero() {
                        tokio::time::sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
                    }
                }
            });
        }
        while let Some(actor) = tasks.join_next().await {
            self.actors.push(actor.context("a worker failed")?);
        }
        Ok(())
    }
}

/// Workers that are active at a load.
#[allow(clippy::cast_precision_loss, reason = "small numbers")]
#[allow(clippy::cast_possible_truncation, reason = "clamped")]
#[allow(clippy::cast_sign_loss, reason = "clamped")]
fn workers(concurrency: usize, factor: f64) -> usize {
    (concurrency as f64 * factor).ceil().clamp(1.0, CONCURRENCY_MAX as f64) as usize
}
