//! The command `history`: what clients of a cluster ask and are told, recorded for a judge of consistency
//! (`quarry-linearizable`), while something else breaks the nodes.
//!
//! Every attempt is an operation of its own with a value of its own: a PUT that is repeated after an unknown outcome writes
//! another value, so nothing is hidden by the repetition. [`value`] knows the values, [`client`] is one client.
//! Whether a failed attempt may have had an effect follows from docs/consistency.md: 4xx, 503 and 507 had none.

mod client;
mod record;
mod value;

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::json;
use tokio::task::JoinSet;

use crate::args::history::HistoryArgs;
use crate::client::{Client, Target};
use crate::credentials;
use crate::run::{ensure_bucket, target};
use crate::sigv4::Signer;
use client::HistoryClient;
use record::Record;
use value::Values;

/// Attempts of a client that follows the standard mode of the AWS SDKs.
const STANDARD_ATTEMPTS: u32 = 3;
/// Attempts to create the bucket.
const BUCKET_ATTEMPTS: u32 = 60;
/// Keys of one listing.
const GROUP_KEYS: u32 = 8;

/// What the clients share.
struct Shared {
    args: HistoryArgs,
    targets: Vec<Arc<Target>>,
    signer: Signer,
    values: Mutex<Values>,
    once_keys: AtomicU64,
    out: Mutex<BufWriter<File>>,
    origin: Instant,
    stop: AtomicBool,
}

impl Shared {
    fn now_us(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).expect("less than 500,000 years")
    }

    fn values(&self) -> std::sync::MutexGuard<'_, Values> {
        self.values.lock().expect("nothing panics with it")
    }

    fn write(&self, record: &Record<'_>) {
        let line = serde_json::to_string(record).expect("numbers and texts");
        let mut out = self.out.lock().expect("nothing panics with it");
        writeln!(out, "{line}").expect("the history can be written");
    }

    fn hot_key(&self, number: u64) -> String {
        let number = number % u64::from(self.args.hot_keys);
        format!("{}k{number}", Self::group(number / u64::from(GROUP_KEYS)))
    }

    /// The prefix of some hot keys.
    fn group(number: u64) -> String {
        format!("hot/g{number}/")
    }

    /// The hot keys under a prefix.
    fn group_keys(&self, number: u64) -> impl Iterator<Item = String> {
        let first = number * u64::from(GROUP_KEYS);
        let end = (first + u64::from(GROUP_KEYS)).min(u64::from(self.args.hot_keys));
        (first..end).map(|number| self.hot_key(number))
    }

    fn once_key(number: u64) -> String {
        format!("once/{number:06}")
    }
}

/// Runs the command.
pub(crate) fn run(args: &HistoryArgs) -> Result<ExitCode> {
    crate::runtime(1)?.block_on(recorded(args.clone()))
}

async fn recorded(args: HistoryArgs) -> Result<ExitCode> {
    let mut targets = Vec::new();
    for node in &args.nodes {
        targets.push(Arc::new(target(node, args.timeout, &args.bucket, args.seed).await?));
    }
    let signer = Signer::new(credentials::find(&args.keys)?, args.region.clone());
    let mut setup = Client::new(Arc::clone(&targets[0]), signer.clone());
    ensure_bucket(&mut setup, BUCKET_ATTEMPTS).await.context("cannot make the bucket")?;
    if !setup.list_tags("").await.context("cannot list the bucket")?.is_empty() {
        bail!("bucket {} is not empty: histories begin with nothing", args.bucket);
    }
    let mut out = BufWriter::new(
        File::create(&args.out).with_context(|| format!("cannot write {}", args.out.display()))?,
    );
    let (origin, origin_unix_us) = (Instant::now(), unix_us());
    let header = json!({ "origin_unix_us": origin_unix_us, "clients": args.clients, "rate": args.rate,
        "nodes": args.nodes.len(), "hot_keys": args.hot_keys, "seed": args.seed });
    writeln!(out, "{header}").context("cannot write the history")?;
    let (duration, clients) = (args.duration, args.clients);
    let shared = Arc::new(Shared {
        values: Mutex::new(Values::new(args.seed)),
        once_keys: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        out: Mutex::new(out),
        args,
        targets,
        signer,
        origin,
    });
    stop_after(duration, &shared);
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        let mut client = HistoryClient::new(Arc::clone(&shared), number);
        tasks.spawn(async move { client.run().await });
    }
    while let Some(task) = tasks.join_next().await {
        task.context("a client failed")?;
    }
    let unread = read_back(&shared, &mut tasks).await?;
    shared.out.lock().expect("nothing panics with it").flush().context("cannot write the history")?;
    if unread > 0 {
        eprintln!("quarry-loadgen: {unread} keys could not be read at the end");
        return Ok(ExitCode::from(crate::EXIT_WRONG));
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads every key at the end: hot ones through every node, the others through one each. Returns how many could not be.
async fn read_back(shared: &Arc<Shared>, tasks: &mut JoinSet<()>) -> Result<u64> {
    let nodes = shared.targets.len() as u64;
    let hot = u64::from(shared.args.hot_keys) * nodes;
    let total = hot + shared.once_keys.load(Ordering::Relaxed);
    let (next, unread) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for number in 0..shared.args.clients {
        let (shared, next, unread) = (Arc::clone(shared), Arc::clone(&next), Arc::clone(&unread));
        tasks.spawn(async move {
            let mut client = HistoryClient::new(Arc::clone(&shared), shared.args.clients + number);
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let (key, node) = match at {
                    at if at < hot => (shared.hot_key(at / nodes), at % nodes),
                    at if at < total => (Shared::once_key(at - hot), at % nodes),
                    _ => return,
                };
                let was_read = client.read_back(key, node).await;
                unread.fetch_add(u64::from(!was_read), Ordering::Relaxed);
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.context("a client failed")?;
    }
    Ok(unread.load(Ordering::Relaxed))
}

/// Tells the clients to stop after this time or, without one, when standard input ends.
fn stop_after(duration: Option<Duration>, shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        match duration {
            Some(duration) => std::thread::sleep(duration),
            None => drop(std::io::stdin().read_to_end(&mut Vec::new())),
        }
        shared.stop.store(true, Ordering::Relaxed);
    });
}

#[allow(
    clippy::disallowed_methods,
    reason = "the windows of faults are told by the time of day, and nothing here is simulated"
)]
fn unix_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).expect("before the year 500,000"))
}
