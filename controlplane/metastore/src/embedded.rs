//! The metastore of one node: everything in RAM, and one file that is replaced as a whole.
//!
//! A transaction is prepared on a copy, written to a temporary file, flushed, renamed over the old file, and the
//! directory is flushed; only then is the copy installed and acknowledged. So a crash leaves the old file or the new
//! one. If writing the temporary file fails, nothing happened and the store goes on. If the rename or the flush of the
//! directory fails, what a restart will find is unknown: the store refuses everything from then on.
//!
//! Calls block their thread for the two flushes; the control plane has a thread of its own. Keys under a lease are
//! never written to the file: the process that would keep them alive is this one.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    time::Instant,
};

use crate::{
    DamageError, Entry, Expected, LeaseId, Metastore, MetastoreError, Range, Revision, Transaction,
    WATCH_EVENTS_MAX, Watch, WatchEvent,
    frame::{self, ContentV1, EntryV1},
};

const FILE_NAME: &str = "metastore";
const TEMPORARY_NAME: &str = "metastore.new";
const LOCK_NAME: &str = "metastore.lock";

/// A metastore in one directory of this host.
#[derive(Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    /// Held as long as the store is open.
    _lock: File,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    content: ContentV1,
    /// Entries under a lease, by key.
    leased: BTreeMap<String, (LeaseId, EntryV1)>,
    leases: HashMap<i64, Lease>,
    /// The newest lease given: ids are not given twice.
    last_lease: i64,
    watchers: Vec<Watcher>,
    failed: bool,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
}

#[derive(Debug)]
struct Watcher {
    prefix: String,
    events: Sender<WatchEvent>,
}

impl Embedded {
    /// Opens the store in `directory`, which must exist; a directory without a metastore file is an empty store.
    ///
    /// # Errors
    /// [`MetastoreError::Locked`], [`MetastoreError::Damaged`] or [`MetastoreError::Io`].
    pub fn open(directory: &Path) -> Result<Self, MetastoreError> {
        let lock = lock(directory)?;
        let path = directory.join(FILE_NAME);
        let content = match fs::read(&path) {
            Ok(bytes) => frame::decode(&bytes)
                .and_then(check)
                .map_err(|damage| MetastoreError::Damaged { path, damage })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => ContentV1::default(),
            Err(source) => return Err(MetastoreError::Io { operation: "reading", path, source }),
        };
        let state = Mutex::new(State { content, ..State::default() });
        Ok(Self { shared: Arc::new(Shared { directory: directory.to_owned(), _lock: lock, state }) })
    }
}

/// The metastore names every object's device: nobody else needs to read it.
fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn lock(directory: &Path) -> Result<File, MetastoreError> {
    let path = directory.join(LOCK_NAME);
    let io = |operation, source| MetastoreError::Io { operation, path: path.clone(), source };
    let file = create_private(&path).map_err(|source| io("creating", source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(MetastoreError::Locked { path: directory.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io("locking", source)),
    }
}

fn check(content: ContentV1) -> Result<ContentV1, DamageError> {
    match content.entries.iter().find(|(_, entry)| entry.revision > content.revision) {
        Some((key, _)) => Err(DamageError::Content { reason: format!("{key:?} is newer than the file") }),
        None => Ok(content),
    }
}

impl Shared {
    fn state(&self) -> Result<MutexGuard<'_, State>, MetastoreError> {
        let state = self.state.lock().expect("nothing panics while it holds the state");
        if state.failed { Err(MetastoreError::Failed) } else { Ok(state) }
    }

    /// Replaces the file; see the module.
    fn replace_file(&self, state: &mut State, content: &ContentV1) -> Result<(), MetastoreError> {
        let path = self.directory.join(TEMPORARY_NAME);
        let write = |path: &Path| -> io::Result<()> {
            let mut file = create_private(path)?;
            file.write_all(&frame::encode(content))?;
            file.sync_all()
        };
        if let Err(source) = write(&path) {
            return Err(MetastoreError::Io { operation: "writing", path, source });
        }
        let install = || {
            fs::rename(&path, self.directory.join(FILE_NAME))
                .and_then(|()| File::open(&self.directory)?.sync_all())
        };
        install().map_err(|source| {
            state.failed = true;
            MetastoreError::Io { operation: "replacing", path: self.directory.join(FILE_NAME), source }
        })
    }

    fn apply(&self, transaction: &Transaction) -> Result<Revision, MetastoreError> {
        transaction.check()?;
        let mut guard = self.state()?;
        let state = &mut *guard;
        if !transaction.compare.iter().all(|(key, expected)| state.matches(key, *expected)) {
            return Err(MetastoreError::Conflict);
        }
        let live = |lease: &LeaseId| state.leases.contains_key(&lease.0);
        if !transaction.puts.iter().filter_map(|put| put.lease.as_ref()).all(live) {
            return Err(MetastoreError::LeaseLost);
        }
        if transaction.puts.is_empty() && transaction.deletes.iter().all(|key| state.entry(key).is_none()) {
            return Ok(Revision(state.content.revision));
        }
        let mut content = state.content.clone();
        content.revision += 1;
        let revision = content.revision;
        for key in transaction.deletes.iter().chain(transaction.puts.iter().map(|put| &put.key)) {
            content.entries.remove(key);
        }
        for put in transaction.puts.iter().filter(|put| put.lease.is_none()) {
            content.entries.insert(put.key.clone(), EntryV1 { revision, value: put.value.clone() });
        }
        self.replace_file(state, &content)?;
        state.install(content, transaction);
        Ok(Revision(revision))
    }
}

impl State {
    fn entry(&self, key: &str) -> Option<&EntryV1> {
        self.content.entries.get(key).or_else(|| self.leased.get(key).map(|(_, entry)| entry))
    }

    fn matches(&self, key: &str, expected: Expected) -> bool {
        match (expected, self.entry(key)) {
            (Expected::Absent, None) => true,
            (Expected::At(revision), Some(entry)) => entry.revision == revision.0,
            _ => false,
        }
    }

    fn range(&self, prefix: &str) -> Range {
        let leased = self.leased.iter().map(|(key, (_, entry))| (key, entry));
        let mut entries: Vec<Entry> = (self.content.entries.iter().chain(leased))
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(key, entry)| to_entry(key, entry))
            .collect();
        entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Range { entries, revision: Revision(self.content.revision) }
    }

    /// Makes a durable transaction visible and tells the watchers.
    fn install(&mut self, content: ContentV1, transaction: &Transaction) {
        let revision = content.revision;
        let existed: Vec<&String> =
            transaction.deletes.iter().filter(|key| self.entry(key).is_some()).collect();
        self.content = content;
        for key in transaction.deletes.iter().chain(transaction.puts.iter().map(|put| &put.key)) {
            self.leased.remove(key);
        }
        for put in &transaction.puts {
            let entry = EntryV1 { revision, value: put.value.clone() };
            self.tell(&put.key, || WatchEvent::Put(to_entry(&put.key, &entry)));
            if let Some(lease) = put.lease {
                self.leased.insert(put.key.clone(), (lease, entry));
            }
        }
        for key in existed {
            self.tell(key, || WatchEvent::Deleted { key: key.clone(), revision: Revision(revision) });
        }
    }

    /// A watcher that is gone, or too slow, loses its channel.
    fn tell(&mut self, key: &str, event: impl Fn() -> WatchEvent) {
        self.watchers
            .retain(|watcher| !key.starts_with(&watcher.prefix) || watcher.events.try_send(event()).is_ok());
    }

    fn end_lease(&mut self, lease: LeaseId) -> bool {
        let existed = self.leases.remove(&lease.0).is_some();
        let keys: Vec<String> = (self.leased.iter().filter(|(_, (owner, _))| *owner == lease))
            .map(|(key, _)| key.clone())
            .collect();
        if !keys.is_empty() {
            self.content.revision += 1;
        }
        for key in keys {
            self.leased.remove(&key);
            let revision = Revision(self.content.revision);
            self.tell(&key, || WatchEvent::Deleted { key: key.clone(), revision });
        }
        existed
    }
}

fn to_entry(key: &str, entry: &EntryV1) -> Entry {
    Entry { key: key.to_owned(), value: entry.value.clone(), revision: Revision(entry.revision) }
}

/// Ends a lease when its deadline has passed; stops when the store or the lease is gone.
async fn expire(shared: std::sync::Weak<Shared>, lease: LeaseId) {
    loop {
        let deadline = {
            let Some(shared) = shared.upgrade() else { return };
            let Ok(mut state) = shared.state() else { return };
            let Some(deadline) = state.leases.get(&lease.0).map(|lease| lease.deadline) else { return };
            if deadline <= Instant::now() {
                state.end_lease(lease);
                return;
            }
            deadline
        };
        tokio::time::sleep_until(deadline).await;
    }
}

impl Metastore for Embedded {
    async fn get(&self, key: &str) -> Result<Option<Entry>, MetastoreError> {
        Ok(self.shared.state()?.entry(key).map(|entry| to_entry(key, entry)))
    }

    async fn range(&self, prefix: &str) -> Result<Range, MetastoreError> {
        Ok(self.shared.state()?.range(prefix))
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Revision, MetastoreError> {
        self.shared.apply(transaction)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, MetastoreError> {
        let mut state = self.shared.state()?;
        let (sender, events): (_, Receiver<WatchEvent>) = channel(WATCH_EVENTS_MAX);
        if from.0 != state.content.revision {
            sender.try_send(WatchEvent::Snapshot(state.range(prefix))).expect("the channel is new and empty");
        }
        state.watchers.push(Watcher { prefix: prefix.to_owned(), events: sender });
        Ok(Watch { events })
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, MetastoreError> {
        let lease = {
            let mut state = self.shared.state()?;
            state.last_lease += 1;
            let id = state.last_lease;
            state.leases.insert(id, Lease { ttl, deadline: Instant::now() + ttl });
            LeaseId(id)
        };
        tokio::spawn(expire(Arc::downgrade(&self.shared), lease));
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetastoreError> {
        let mut state = self.shared.state()?;
        let entry = state.leases.get_mut(&lease.0).ok_or(MetastoreError::LeaseLost)?;
        entry.deadline = Instant::now() + entry.ttl;
        Ok(())
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), MetastoreError> {
        if self.shared.state()?.end_lease(lease) { Ok(()) } else { Err(MetastoreError::LeaseLost) }
    }
}
