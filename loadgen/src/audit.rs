//! Reads back what a journal says was acknowledged.
//!
//! For each key: the last acknowledged write, or a later one that was attempted without a definite answer. Anything else
//! is lost or wrong; an object that cannot be read in spite of retries counts as unreadable, which is no better.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::args::{AuditArgs, Endpoint, EndpointArgs};
use crate::client::{Client, Failure, Read};
use crate::credentials;
use crate::expect::{Content, Difference, Expected, Mismatch};
use crate::journal::Promises;
use crate::report::mismatch_line;
use crate::run;
use crate::sigv4::Signer;
use crate::worker::backoff;

/// Problems described one by one; the others are only counted.
const PROBLEMS_KEPT: usize = 100;

/// Result of an audit.
#[derive(Serialize)]
pub(crate) struct AuditReport {
    pub(crate) tool: &'static str,
    pub(crate) mode: &'static str,
    pub(crate) bucket: String,
    /// Acknowledged writes in the journal, and the keys it names.
    pub(crate) acknowledged_writes: u64,
    pub(crate) keys: u64,
    /// Keys that hold what they may hold.
    pub(crate) right: u64,
    /// Keys that hold nothing where a write was acknowledged.
    pub(crate) lost: u64,
    /// Keys with wrong content.
    pub(crate) wrong: u64,
    /// Keys that could not be read.
    pub(crate) unreadable: u64,
    pub(crate) bytes: u64,
    pub(crate) problems: Vec<Mismatch>,
}

impl AuditReport {
    pub(crate) fn passed(&self) -> bool {
        self.lost + self.wrong + self.unreadable == 0
    }

    pub(crate) fn table(&self) -> String {
        let Self { acknowledged_writes, keys, right, lost, wrong, unreadable, bytes, .. } = self;
        let mut out = format!(
            "audit of {acknowledged_writes} acknowledged writes to {keys} keys: {right} right, {lost} lost, \
             {wrong} wrong, {unreadable} unreadable ({bytes} bytes read)\n"
        );
        for problem in &self.problems {
            out.push_str(&format!("  {}\n", mismatch_line(problem)));
        }
        out.push_str(if self.passed() { "PASSED\n" } else { "FAILED\n" });
        out
    }
}

pub(crate) async fn audit(args: &AuditArgs) -> Result<AuditReport> {
    let EndpointArgs { server, concurrency } = &args.endpoint;
    let signer = Signer::new(credentials::find(&server.keys)?, server.region.clone());
    audit_journal(&args.journal, &server.endpoint, server.timeout, signer, *concurrency, args.retries).await
}

/// Reads back what `journal` says, over `concurrency` connections.
pub(crate) async fn audit_journal(
    journal: &Path,
    endpoint: &Endpoint,
    timeout: Duration,
    signer: Signer,
    concurrency: usize,
    retries: u32,
) -> Result<AuditReport> {
    let Promises { seed, bucket, keys, acknowledged } = Promises::load(journal)?;
    let target = Arc::new(run::target(endpoint, timeout, &bucket, seed).await?);
    let names: Arc<Vec<String>> = Arc::new(keys.keys().cloned().collect());
    let report = Arc::new(Mutex::new(AuditReport {
        tool: "quarry-loadgen",
        mode: "audit",
        bucket,
        acknowledged_writes: acknowledged,
        keys: keys.len() as u64,
        right: 0,
        lost: 0,
        wrong: 0,
        unreadable: 0,
        bytes: 0,
        problems: Vec::new(),
    }));
    let queue = Arc::new(Mutex::new(keys.into_iter()));
    let mut tasks = JoinSet::new();
    for _ in 0..concurrency {
        let mut client = Client::new(Arc::clone(&target), signer.clone());
        let (queue, report, names) = (Arc::clone(&queue), Arc::clone(&report), Arc::clone(&names));
        tasks.spawn(async move {
            loop {
                let next = queue.lock().expect("no panic while it is held").next();
                let Some((key, expected)) = next else { return };
                let finding = read(&mut client, &key, &expected, retries).await;
                let problem = judge(finding, seed, &key, &expected, &names);
                note(&mut report.lock().expect("no panic while it is held"), problem);
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.context("a worker failed")?;
    }
    let report = Arc::into_inner(report).expect("all workers ended");
    Ok(report.into_inner().expect("no panic while it was held"))
}

/// What one key turned out to be.
enum Verdict {
    Right { bytes: u64 },
    Lost(Mismatch),
    Wrong(Mismatch),
    Unreadable(Mismatch),
}

async fn read(client: &mut Client, key: &str, expected: &Expected, retries: u32) -> Result<Read, Failure> {
    let mut attempt = 0;
    loop {
        match client.get(key, expected).await {
            Err(failure) if failure.is_retryable() && attempt < retries => attempt += 1,
            other => return other,
        }
        tokio::time::sleep(backoff(attempt)).await;
    }
}

fn judge(
    finding: Result<Read, Failure>,
    seed: u64,
    key: &str,
    expected: &Expected,
    names: &[String],
) -> Verdict {
    let others = names.iter();
    match finding {
        Ok(Read::Found(Content::Version { size_bytes, .. })) => Verdict::Right { bytes: size_bytes },
        Ok(Read::Found(Content::Absent)) => unreachable!("an absent object is not found"),
        Ok(Read::Absent) if expected.accepts(Content::Absent) => Verdict::Right { bytes: 0 },
        Ok(Read::Absent) => Verdict::Lost(Difference::missing().into_mismatch(seed, key, expected, others)),
        Ok(Read::Wrong(difference)) => Verdict::Wrong(difference.into_mismatch(seed, key, expected, others)),
        Err(failure) => Verdict::Unreadable(Mismatch {
            key: key.to_owned(),
            offset_bytes: 0,
            expected: expected.describe(),
            found: failure.to_string(),
        }),
    }
}

fn note(report: &mut AuditReport, verdict: Verdict) {
    let problem = match verdict {
        Verdict::Right { bytes } => {
            report.right += 1;
            report.bytes += bytes;
            return;
        }
        Verdict::Lost(problem) => {
            report.lost += 1;
            problem
        }
        Verdict::Wrong(problem) => {
            report.wrong += 1;
            problem
        }
        Verdict::Unreadable(problem) => {
            report.unreadable += 1;
            problem
        }
    };
    if report.problems.len() < PROBLEMS_KEPT {
        report.problems.push(problem);
    }
}
