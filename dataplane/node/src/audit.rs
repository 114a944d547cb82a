//! The audit log: who did what to which bucket and key, or to users and policies, one JSON object a line.
//!
//! Written are changes, and whatever was refused for want of rights; with `audit-reads` also reads. Lines go to a thread
//! by a bounded queue: a slow disk delays no request, it loses lines, which are counted. The file is kept below a size by
//! starting it anew; the one before it stays as `NAME.1`. Lines are not flushed to the medium.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use quarry_gateway::RequestRecord;
use quarry_identity::Principal;
use serde::Serialize;

use crate::runtime::clock;

/// Lines that may wait to be written.
const LINES_WAITING_MAX: usize = 4096;
/// Bytes of a key in a line: the longest key, in characters that JSON escapes.
const TEXT_BYTES_MAX: usize = 6 << 10;

/// Where the audit log is, and what goes there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct AuditConfig {
    pub(crate) path: PathBuf,
    /// Of the file before it is started anew.
    pub(crate) bytes_max: u64,
    pub(crate) reads: bool,
}

/// What became of lines.
#[derive(Default)]
pub(crate) struct AuditCounts {
    written: AtomicU64,
    /// The queue was full.
    dropped: AtomicU64,
    /// The file could not be written.
    failed: AtomicU64,
}

impl AuditCounts {
    /// Each by its name.
    pub(crate) fn values(&self) -> [(&'static str, u64); 3] {
        let of = |value: &AtomicU64| value.load(Ordering::Relaxed);
        [("written", of(&self.written)), ("dropped", of(&self.dropped)), ("failed", of(&self.failed))]
    }
}

/// Where lines are handed in; every thread has a clone.
#[derive(Clone)]
pub(crate) struct AuditSink {
    lines: SyncSender<Option<String>>,
    counts: Arc<AuditCounts>,
    reads: bool,
}

/// One line.
#[derive(Serialize)]
struct Line<'a> {
    /// Unix milliseconds at the end of the request.
    time_ms: u64,
    /// `s3` or `admin`.
    source: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    /// `root`, `user:NAME`, `anonymous`, `admin-token`, or `unknown` where the signature was not good.
    who: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<IpAddr>,
    operation: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    bucket: &'a str,
    /// Of an admin request the path: it names the user, key or policy.
    #[serde(skip_serializing_if = "str::is_empty")]
    key: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

fn name(principal: Option<&Principal>) -> String {
    match principal {
        None => "unknown".to_owned(),
        Some(Principal::Root) => "root".to_owned(),
        Some(Principal::User(name)) => format!("user:{name}"),
        Some(Principal::Anonymous) => "anonymous".to_owned(),
    }
}

fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

impl AuditSink {
    /// Opens the file and starts the thread that writes it; end it with [`AuditSink::stop`].
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn start(config: &AuditConfig) -> io::Result<(Self, JoinHandle<()>)> {
        let (lines, inbox) = sync_channel(LINES_WAITING_MAX);
        let counts = Arc::new(AuditCounts::default());
        let log = AuditFile::open(config)?;
        let written = Arc::clone(&counts);
        let writer = move || write(log, &inbox, &written);
        let thread = std::thread::Builder::new().name("audit".into()).spawn(writer)?;
        Ok((Self { lines, counts, reads: config.reads }, thread))
    }

    /// What became of lines so far.
    pub(crate) fn counts(&self) -> Arc<AuditCounts> {
        Arc::clone(&self.counts)
    }

    /// A request of S3 has ended.
    pub(crate) fn request(&self, record: &RequestRecord<'_>) {
        let reads = matches!(record.method, "GET" | "HEAD" | "OPTIONS");
        if reads && !self.reads && !matches!(record.status, 401 | 403) {
            return;
        }
        self.hand_in(&Line {
            time_ms: clock::unix_ms(),
            source: "s3",
            request_id: Some(record.request_id),
            who: name(record.principal),
            client: record.client,
            operation: record.operation,
            bucket: bounded(record.bucket),
            key: bounded(record.key),
            status: record.status,
            error: record.error_code,
        });
    }

    /// A request with the admin token, or without the right one, was answered.
    pub(crate) fn admin(&self, client: IpAddr, method: &str, path: &str, status: u16) {
        let allowed = status != 401;
        if method == "GET" && allowed && !self.reads {
            return;
        }
        self.hand_in(&Line {
            time_ms: clock::unix_ms(),
            source: "admin",
            request_id: None,
            who: if allowed { "admin-token" } else { "unknown" }.to_owned(),
            client: Some(client),
            operation: method,
            bucket: "",
            key: bounded(path),
            status,
            error: None,
        });
    }

    fn hand_in(&self, line: &Line<'_>) {
        let text = serde_json::to_string(line).expect("text and numbers always are JSON");
        if self.lines.try_send(Some(text)).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lets the thread write what waits, and end.
    pub(crate) fn stop(&self) {
        // An error means that it has ended.
        let _ = self.lines.send(None);
    }
}

fn write(mut log: AuditFile, inbox: &Receiver<Option<String>>, counts: &AuditCounts) {
    while let Ok(Some(line)) = inbox.recv() {
        match log.append(&line) {
            Ok(()) => counts.written.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                if counts.failed.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::error!(event = "audit_log_failed", %error);
                }
                continue;
            }
        };
    }
}

struct AuditFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

impl AuditFile {
    fn open(config: &AuditConfig) -> io::Result<Self> {
        let (file, bytes) = open(&config.path)?;
        Ok(Self { path: config.path.clone(), file, bytes, bytes_max: config.bytes_max })
    }

    fn append(&mut self, line: &str) -> io::Result<()> {
        let line = format!("{line}\n");
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.bytes_max {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            (self.file, self.bytes) = open(&self.path)?;
        }
        self.file.write_all(line.as_bytes())?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json_and_the_file_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let config = AuditConfig { path: path.clone(), bytes_max: 1000, reads: false };
        let (sink, thread) = AuditSink::start(&config).unwrap();
        let client = IpAddr::from([127, 0, 0, 1]);
        sink.admin(client, "GET", "users", 200);
        for number in 0..20 {
            sink.admin(client, "PUT", &format!("policies/\"{number}\n"), 200);
        }
        sink.stop();
        thread.join().unwrap();
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let (newest, older) = (read(&path), read(&dir.path().join("audit.log.1")));
        assert!(newest.len() <= 1000 && older.len() <= 1000 && !newest.is_empty());
        let last: serde_json::Value = serde_json::from_str(newest.lines().next_back().unwrap()).unwrap();
        assert_eq!(
            (last["key"].as_str(), last["who"].as_str()),
            (Some("policies/\"19\n"), Some("admin-token"))
        );
        assert_eq!(sink.counts().values()[0], ("written", 20));
        sink.admin(client, "PUT", "late", 200);
        assert_eq!(sink.counts().values()[1].1, 1, "nobody takes lines any more");
    }
}
