//! A load run: set up, prepare, measure, sum up.
//!
//! The measured phase begins when every worker is connected and has prepared its objects. Operations are started for
//! --duration; the phase ends when the last of them is complete, and rates and CPU times are over this whole span.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::args::{Endpoint, LoadArgs, Mix, Payload, Verify};
use crate::client::{Client, Failure, Target, unix_seconds};
use crate::content::VERSION_MAX;
use crate::credentials;
use crate::expect::Expected;
use crate::journal::Journal;
use crate::process::{self, FoundBy};
use crate::report::{Report, ServerUsage, Workload};
use crate::sigv4::Signer;
use crate::stats::Stats;
use crate::worker::{Run, Slot, Worker, backoff, key_name};

/// Versions a key can get between two runs that start in neighbouring seconds.
pub(crate) const VERSIONS_PER_SECOND: u64 = 1 << 20;
const LIST_KEYS_MAX: u32 = 1000;

/// The three load modes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Put,
    Get,
    Mixed,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Mixed => "mixed",
        }
    }
}

/// A target for requests: the address is looked up once.
pub(crate) async fn target(
    endpoint: &Endpoint,
    timeout: Duration,
    bucket: &str,
    seed: u64,
) -> Result<Target> {
    let address = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port))
        .await
        .with_context(|| format!("cannot look up {}", endpoint.host))?
        .next()
        .with_context(|| format!("{} has no address", endpoint.host))?;
    Ok(Target {
        address,
        host: endpoint.authority.clone(),
        bucket: bucket.to_owned(),
        seed,
        verify: true,
        sign_payload: false,
        timeout,
    })
}

pub(crate) async fn load(mode: Mode, args: &LoadArgs) -> Result<Report> {
    let objects = args.checked_objects().map_err(|problem| anyhow!(problem))?;
    let signer =
        Signer::new(credentials::find(&args.endpoint.server.keys)?, args.endpoint.server.region.clone());
    let mut target =
        target(&args.endpoint.server.endpoint, args.endpoint.server.timeout, &args.bucket, args.seed).await?;
    target.verify = args.verify == Verify::Full;
    target.sign_payload = args.payload == Payload::Signed;
    let target = Arc::new(target);
    let mut setup = Client::new(Arc::clone(&target), signer.clone());
    ensure_bucket(&mut setup, args.retries)
        .await
        .with_context(|| format!("cannot use bucket {}", args.bucket))?;

    let first_version = args.first_version.unwrap_or_else(|| unix_seconds() * VERSIONS_PER_SECOND);
    assert!(first_version < VERSION_MAX, "the clock would have to be past the year 2240");
    let slots = slots(mode, args, objects, first_version, &mut setup).await?;
    let objects = slots.iter().map(|slots| slots.len() as u64).sum();
    drop(setup);
    let run = Arc::new(Run {
        seed: args.seed,
        prefix: args.prefix.clone(),
        objects,
        size_bytes: args.size.unwrap_or(0),
        part_bytes: args.part_size,
        mix: match mode {
            Mode::Put => Mix::PUT,
            Mode::Get => Mix::GET,
            Mode::Mixed => args.mix,
        },
        retries: args.retries,
        keep_going: args.keep_going,
        journal: args
            .journal
            .as_ref()
            .map(|path| Journal::open(path, args.seed, &args.bucket))
            .transpose()?,
        stats: Mutex::new(Stats::new(Instant::now())),
        stop: AtomicBool::new(false),
        stop_reason: Mutex::new(None),
    });
    let workers = slots
        .into_iter()
        .zip(0..)
        .map(|(slots, number)| {
            Worker::new(Arc::clone(&run), Client::new(Arc::clone(&target), signer.clone()), slots, number)
        })
        .collect();
    let write_first = mode != Mode::Put && !args.no_prepare;
    if write_first && !args.endpoint.server.json {
        eprintln!("preparing {objects} objects");
    }
    let (pids, found_by) = server_processes(args, &target);
    let names = process::names(&pids);
    let phase = measure(&run, workers, write_first, args.duration, &pids).await?;

    let stats = std::mem::replace(&mut *run.stats(), Stats::new(Instant::now()));
    let stopped_early = run.stop_reason.lock().expect("nothing panics with it").take();
    let server = (!pids.is_empty()).then(|| {
        ServerUsage::new(pids, names, found_by, phase.server_cpu, phase.server_peak_rss, &stats.all)
    });
    let workload = workload(args, objects, first_version);
    Ok(Report::new(mode.name(), workload, stats, phase.elapsed, phase.client_cpu, server, stopped_early))
}

pub(crate) async fn ensure_bucket(setup: &mut Client, retries: u32) -> Result<(), Failure> {
    let mut attempt = 0;
    loop {
        match setup.ensure_bucket().await {
            Err(failure) if failure.is_retryable() && attempt < retries => attempt += 1,
            other => return other,
        }
        tokio::time::sleep(backoff(attempt)).await;
    }
}

/// The keys of each worker: object number N belongs to worker N modulo the number of workers.
async fn slots(
    mode: Mode,
    args: &LoadArgs,
    objects: u64,
    first_version: u64,
    setup: &mut Client,
) -> Result<Vec<Vec<Slot>>> {
    let concurrency = args.endpoint.concurrency;
    let mut slots: Vec<Vec<Slot>> = (0..concurrency).map(|_| Vec::new()).collect();
    let slot = |key| Slot { key, expected: Expected::default(), next_version: first_version };
    if mode != Mode::Get || !args.no_prepare {
        for number in 0..objects {
            let worker = usize::try_from(number % concurrency as u64).expect("below a usize");
            slots[worker].push(slot(key_name(&args.prefix, number)));
        }
        return Ok(slots);
    }
    let limit = args.objects.unwrap_or(u64::MAX);
    let mut found = 0u64;
    let mut token = None;
    loop {
        let page = setup.list(&args.prefix, LIST_KEYS_MAX, token.as_deref()).await.context("cannot list")?;
        for (key, _) in page.objects {
            let ours = key.strip_prefix(&args.prefix).is_some_and(|name| name.starts_with("obj-"));
            if ours && found < limit {
                let worker = usize::try_from(found % concurrency as u64).expect("below a usize");
                slots[worker].push(Slot { expected: Expected::listed(), ..slot(key) });
                found += 1;
            }
        }
        token = page.next;
        if token.is_none() || found >= limit {
            break;
        }
    }
    if found < concurrency as u64 {
        bail!("{found} objects under prefix '{}': fewer than workers; leave out --no-prepare", args.prefix);
    }
    Ok(slots)
}

fn server_processes(args: &LoadArgs, target: &Target) -> (Vec<u32>, FoundBy) {
    if args.server_pid.is_empty() {
        let pids = process::listeners(target.address.ip(), target.address.port());
        return (pids, FoundBy::ListeningPort);
    }
    (args.server_pid.clone(), FoundBy::ServerPidFlag)
}

/// What the measured phase took.
struct Phase {
    elapsed: Duration,
    client_cpu: Option<f64>,
    server_cpu: Option<f64>,
    server_peak_rss: Option<u64>,
}

async fn measure(
    run: &Arc<Run>,
    workers: Vec<Worker>,
    write_first: bool,
    duration: Duration,
    pids: &[u32],
) -> Result<Phase> {
    let count = workers.len();
    let (ready, mut prepared) = mpsc::unbounded_channel();
    let (start, started) = watch::channel(None);
    let mut tasks = JoinSet::new();
    for mut worker in workers {
        let (ready, mut started, run) = (ready.clone(), started.clone(), Arc::clone(run));
        tasks.spawn(async move {
            let result = worker.prepare(write_first).await;
            if result.is_err() {
                run.stop.store(true, Ordering::Relaxed);
            }
            // Both channels close only when the run is given up.
            if ready.send(result).is_err() || started.wait_for(Option::is_some).await.is_err() {
                return;
            }
            let deadline = *started.borrow();
            worker.measure(deadline.expect("waited for it")).await;
        });
    }
    for _ in 0..count {
        prepared.recv().await.expect("`ready` is alive")?;
    }
    let (client_before, server_before) = (process::own_usage(), process::usage(pids));
    let begin = Instant::now();
    *run.stats() = Stats::new(begin);
    start.send(Some(begin + duration)).expect("the workers wait for it");
    while let Some(task) = tasks.join_next().await {
        task.context("a worker failed")?;
    }
    let end = Instant::now();
    let (client_after, server_after) = (process::own_usage(), process::usage(pids));
    run.stats().note_gap(end);
    let cpu = |before: Option<process::Usage>, after: Option<process::Usage>| {
        Some(after?.cpu_seconds - before?.cpu_seconds)
    };
    Ok(Phase {
        elapsed: end - begin,
        client_cpu: cpu(client_before, client_after),
        server_cpu: cpu(server_before, server_after),
        server_peak_rss: server_after.map(|usage| usage.peak_rss_bytes),
    })
}

fn workload(args: &LoadArgs, objects: u64, first_version: u64) -> Workload {
    Workload {
        endpoint: format!("http://{}", args.endpoint.server.endpoint.authority),
        bucket: args.bucket.clone(),
        prefix: args.prefix.clone(),
        size_bytes: args.size,
        part_bytes: args.part_size,
        objects,
        concurrency: args.endpoint.concurrency,
        threads: args.endpoint.server.threads,
        duration_seconds: args.duration.as_secs_f64(),
        payload: match args.payload {
            Payload::Unsigned => "unsigned",
            Payload::Signed => "signed",
        },
        verify: match args.verify {
            Verify::Full => "full",
            Verify::None => "none",
        },
        seed: args.seed,
        first_version,
    }
}
