//! A small consistent key-value store for what the control plane decides: etcd, or an embedded twin for one node.
//!
//! Both behave alike behind [`Metastore`] and pass the same conformance tests:
//! - a transaction applies whole or not at all, and only if every compared key is as expected;
//! - a transaction that returned `Ok` survives power loss;
//! - one that failed with [`MetastoreError::Unavailable`] may or may not have been applied: read again, compare again;
//! - a watch misses nothing: either every change is delivered in order, or a [`WatchEvent::Snapshot`] replaces all of it.
//!
//! [`Revision`] is an opaque token: compare with it and watch from it, nothing else.
//! Values are small (the limits below hold for both); nothing per object is ever kept here.

mod embedded;
mod error;
mod etcd;
mod frame;
mod lazy;

use std::{future::Future, time::Duration};

pub use embedded::Embedded;
pub use error::{DamageError, MetastoreError};
pub use etcd::{Etcd, EtcdOptions, EtcdTls, EtcdUser};
pub use lazy::LazyEtcd;

/// Longest key, bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Largest value, bytes: etcd refuses requests over 1.5 MiB.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes of keys and values of one transaction: below the 1.5 MiB at which etcd refuses a request.
pub const TRANSACTION_BYTES_MAX: usize = 1024 * 1024 + 64 * 1024;
/// Most comparisons, and most changes, of one transaction: etcd's own limit.
pub const TRANSACTION_OPERATIONS_MAX: usize = 128;
/// Events that may wait for one watcher before its watch is ended.
pub const WATCH_EVENTS_MAX: usize = 1024;

/// When a key was last changed, or the state that a range or transaction saw. Meaningless outside the store it is from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Revision(pub(crate) i64);

impl Revision {
    /// That of nothing: no entry has it.
    pub const UNKNOWN: Self = Self(-1);
}

/// A lease: keys put under it vanish when it is not kept alive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LeaseId(pub(crate) i64);

/// A key and its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// When it was put.
    pub revision: Revision,
}

/// All entries under a prefix at one moment, in key order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// The entries.
    pub entries: Vec<Entry>,
    /// The moment: a watch from here continues without a gap.
    pub revision: Revision,
}

/// What a transaction expects of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// It does not exist.
    Absent,
    /// It was last put at this revision.
    At(Revision),
}

/// A value to write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Put {
    /// The key.
    pub key: String,
    /// Its new value.
    pub value: Vec<u8>,
    /// The lease it depends on; the embedded twin keeps such keys in RAM only.
    pub lease: Option<LeaseId>,
}

/// Comparisons, and the changes to make if all hold. No key may be changed twice.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Transaction {
    /// What must hold.
    pub compare: Vec<(String, Expected)>,
    /// What to write.
    pub puts: Vec<Put>,
    /// What to remove; a missing key is no error.
    pub deletes: Vec<String>,
}

impl Transaction {
    /// Adds a comparison: with the revision of an entry read before, or with its absence.
    #[must_use]
    pub fn expect(mut self, key: &str, entry: Option<&Entry>) -> Self {
        let expected = entry.map_or(Expected::Absent, |entry| Expected::At(entry.revision));
        self.compare.push((key.to_owned(), expected));
        self
    }

    /// Adds a write.
    #[must_use]
    pub fn put(mut self, key: &str, value: Vec<u8>) -> Self {
        self.puts.push(Put { key: key.to_owned(), value, lease: None });
        self
    }

    /// Adds a write under a lease.
    #[must_use]
    pub fn put_leased(mut self, key: &str, value: Vec<u8>, lease: LeaseId) -> Self {
        self.puts.push(Put { key: key.to_owned(), value, lease: Some(lease) });
        self
    }

    /// Adds a removal.
    #[must_use]
    pub fn delete(mut self, key: &str) -> Self {
        self.deletes.push(key.to_owned());
        self
    }

    /// Bytes of keys and values; at most [`TRANSACTION_BYTES_MAX`].
    pub fn bytes(&self) -> usize {
        let compared = self.compare.iter().map(|(key, _)| key.len());
        let put = self.puts.iter().map(|put| put.key.len() + put.value.len());
        compared.chain(put).chain(self.deletes.iter().map(String::len)).sum()
    }

    /// Checks the limits, so that both stores refuse the same transactions.
    fn check(&self) -> Result<(), MetastoreError> {
        let changes = self.puts.len() + self.deletes.len();
        let operations = changes.max(self.compare.len());
        if operations > TRANSACTION_OPERATIONS_MAX {
            return Err(MetastoreError::TooManyOperations { operations });
        }
        let changed = || self.puts.iter().map(|put| &put.key).chain(&self.deletes);
        for key in changed().chain(self.compare.iter().map(|(key, _)| key)) {
            if key.is_empty() || key.len() > KEY_BYTES_MAX {
                return Err(MetastoreError::KeyLength { bytes: key.len() });
            }
        }
        if let Some(put) = self.puts.iter().find(|put| put.value.len() > VALUE_BYTES_MAX) {
            return Err(MetastoreError::ValueTooLarge { key: put.key.clone(), bytes: put.value.len() });
        }
        if self.bytes() > TRANSACTION_BYTES_MAX {
            return Err(MetastoreError::TransactionTooLarge { bytes: self.bytes() });
        }
        let mut keys: Vec<&String> = changed().collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(MetastoreError::ChangedTwice { key: pair[0].clone() }),
            None => Ok(()),
        }
    }
}

/// A change under a watched prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WatchEvent {
    /// A key was written.
    Put(Entry),
    /// A key was removed, or its lease ran out.
    Deleted {
        /// The key.
        key: String,
        /// When.
        revision: Revision,
    },
    /// The changes since the last event are no longer known one by one; this is everything under the prefix now.
    Snapshot(Range),
}

/// A running watch; dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    events: tokio::sync::mpsc::Receiver<WatchEvent>,
}

impl Watch {
    /// The next event. `None`: the watcher was too slow ([`WATCH_EVENTS_MAX`]) or the store is gone; range and watch
    /// again.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        self.events.recv().await
    }
}

/// See the module. Methods are to be called on a tokio runtime.
pub trait Metastore: Send + Sync + 'static {
    /// The entry of a key, as new as every transaction acknowledged before.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Entry>, MetastoreError>> + Send;

    /// Every entry whose key starts with `prefix`.
    fn range(&self, prefix: &str) -> impl Future<Output = Result<Range, MetastoreError>> + Send;

    /// Every key that starts with `prefix`, in order.
    fn keys(&self, prefix: &str) -> impl Future<Output = Result<Vec<String>, MetastoreError>> + Send {
        async move { Ok(self.range(prefix).await?.entries.into_iter().map(|entry| entry.key).collect()) }
    }

    /// Applies a transaction; [`MetastoreError::Conflict`] if a comparison failed.
    fn transact(
        &self,
        transaction: &Transaction,
    ) -> impl Future<Output = Result<Revision, MetastoreError>> + Send;

    /// Delivers every change under `prefix` after `from`, which a range or transaction returned.
    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> impl Future<Output = Result<Watch, MetastoreError>> + Send;

    /// A new lease of `ttl` (whole seconds, at least one).
    fn grant_lease(&self, ttl: Duration) -> impl Future<Output = Result<LeaseId, MetastoreError>> + Send;

    /// Makes a lease last its full time from now; [`MetastoreError::LeaseLost`] if it ran out before.
    fn keep_alive(&self, lease: LeaseId) -> impl Future<Output = Result<(), MetastoreError>> + Send;

    /// Ends a lease: its keys vanish now.
    fn revoke_lease(&self, lease: LeaseId) -> impl Future<Output = Result<(), MetastoreError>> + Send;
}

/// A store that several tasks use.
impl<M: Metastore> Metastore for std::sync::Arc<M> {
    async fn get(&self, key: &str) -> Result<Option<Entry>, MetastoreError> {
        (**self).get(key).await
    }

    async fn range(&self, prefix: &str) -> Result<Range, MetastoreError> {
        (**self).range(prefix).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, MetastoreError> {
        (**self).keys(prefix).await
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Revision, MetastoreError> {
        (**self).transact(transaction).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, MetastoreError> {
        (**self).watch(prefix, from).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, MetastoreError> {
        (**self).grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetastoreError> {
        (**self).keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), MetastoreError> {
        (**self).revoke_lease(lease).await
    }
}

#[cfg(test)]
mod tests;
