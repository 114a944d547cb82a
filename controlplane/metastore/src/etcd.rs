//! The metastore of a cluster: etcd.
//!
//! All keys stand under one prefix, so that clusters can share an etcd. Every call has a deadline; a call that misses
//! it, or loses its connection, is [`MetastoreError::Unavailable`] and its outcome unknown.
//!
//! Members are asked in turn: one that fails is not asked again before all others have failed (`members`).
//!
//! The connection may be TLS, with a certificate of our own, and may name a user; its token is renewed when it expires. A
//! member that has lost the others refuses what it is asked (`require leader`), so that watches move on to one that has
//! not.
//!
//! A watch is a task that follows etcd's stream: it reconnects from the revision after the last event it delivered, and
//! when etcd has compacted that revision away it reads everything again and delivers it as one snapshot. A slow watcher
//! holds back its own task only.

mod members;

use std::{sync::Arc, time::Duration};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, EventType, GetOptions, Identity,
    KeyValue, PutOptions, TlsOptions, Txn, TxnOp, WatchOptions,
};
use members::{Members, Repeat};
use tokio::sync::mpsc::{Sender, channel};
use tracing::warn;

use crate::{
    Entry, Expected, LeaseId, Metastore, MetastoreError, Range, Revision, Transaction, WATCH_EVENTS_MAX,
    Watch, WatchEvent,
};

/// Pause before a broken watch is tried again; doubles up to [`WATCH_RETRY_MAX`].
const WATCH_RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest pause between two tries of a watch.
const WATCH_RETRY_MAX: Duration = Duration::from_secs(2);
/// Silence on a connection after which it is probed, and then given up.
const CONNECTION_PROBE: Duration = Duration::from_secs(5);

/// Largest answer that is read: all keys of a cluster of a thousand nodes are a few MiB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Where etcd is, and how to talk to it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EtcdOptions {
    /// Client URLs, for example `http://127.0.0.1:2379`; `https` if there is TLS.
    pub endpoints: Vec<String>,
    /// Stands before every key, for example `quarry/CLUSTER/`.
    pub prefix: String,
    /// Longest wait for one call.
    pub deadline: Duration,
    /// `None`: no TLS.
    pub tls: Option<EtcdTls>,
    /// `None`: etcd asks for no user.
    pub user: Option<EtcdUser>,
}

/// Certificates, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// Whom to trust.
    pub authority: Vec<u8>,
    /// Our own certificate and its key, if etcd asks for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Who we are to an etcd with authentication.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdUser {
    /// Name.
    pub name: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdTls").field("identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for EtcdUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdUser").field("name", &self.name).finish_non_exhaustive()
    }
}

impl EtcdOptions {
    fn connect_options(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.deadline)
            .with_keep_alive(CONNECTION_PROBE, CONNECTION_PROBE)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(tls) = &self.tls {
            let mut with = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.authority));
            if let Some((certificate, key)) = &tls.identity {
                with = with.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(with);
        }
        if let Some(user) = &self.user {
            options = options.with_user(&user.name, &user.password).with_auto_token_refresh(true);
        }
        options
    }
}

/// A metastore in etcd. Cheap to clone.
#[derive(Clone)]
pub struct Etcd {
    members: Arc<Members>,
    prefix: String,
    deadline: Duration,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Etcd {
    /// Connects. Needs one endpoint that answers; later losses are survived.
    ///
    /// # Errors
    /// [`MetastoreError::Unavailable`].
    pub async fn connect(options: &EtcdOptions) -> Result<Self, MetastoreError> {
        let members = Members::new(&options.endpoints, options.connect_options(), options.deadline);
        members.ask("connect", Repeat::Anywhere, async |mut client| client.status().await).await?;
        Ok(Self { members: Arc::new(members), prefix: options.prefix.clone(), deadline: options.deadline })
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    #[cfg(test)]
    pub(crate) fn turn_to(&self, turn: usize) {
        self.members.turn_to(turn);
    }

    /// A client of the member that is asked at present.
    #[cfg(test)]
    pub(crate) async fn client(&self) -> etcd_client::Client {
        self.members.client().await.expect("a member of etcd").1
    }

    fn translate(&self, transaction: &Transaction) -> Txn {
        let compare = transaction.compare.iter().map(|(key, expected)| match expected {
            Expected::Absent => Compare::create_revision(self.full(key), CompareOp::Equal, 0),
            Expected::At(revision) => Compare::mod_revision(self.full(key), CompareOp::Equal, revision.0),
        });
        let puts = transaction.puts.iter().map(|put| {
            let options = put.lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(self.full(&put.key), put.value.clone(), options)
        });
        let deletes = transaction.deletes.iter().map(|key| TxnOp::delete(self.full(key), None));
        let operations: Vec<TxnOp> = puts.chain(deletes).collect();
        Txn::new().when(compare.collect::<Vec<_>>()).and_then(operations)
    }

    fn entry(&self, pair: &KeyValue) -> Result<Entry, MetastoreError> {
        let key = own_key(&self.prefix, pair)?;
        Ok(Entry { key, value: pair.value().to_vec(), revision: Revision(pair.mod_revision()) })
    }
}

/// A key without our prefix.
fn own_key(prefix: &str, pair: &KeyValue) -> Result<String, MetastoreError> {
    let foreign = || MetastoreError::ForeignKey { key: String::from_utf8_lossy(pair.key()).into_owned() };
    let key = std::str::from_utf8(pair.key()).map_err(|_| foreign())?;
    Ok(key.strip_prefix(prefix).ok_or_else(foreign)?.to_owned())
}

/// Whether etcd says that a lease does not exist.
fn lease_is_unknown(error: &Error) -> bool {
    match error {
        Error::GRpcStatus(status) => status.message().contains("requested lease not found"),
        Error::LeaseKeepAliveError(_) => true,
        _ => false,
    }
}

impl Metastore for Etcd {
    async fn get(&self, key: &str) -> Result<Option<Entry>, MetastoreError> {
        let ask = |mut client: Client| async move { client.get(self.full(key), None).await };
        let answer = self.members.ask("get", Repeat::Anywhere, ask).await?;
        answer.kvs().first().map(|pair| self.entry(pair)).transpose()
    }

    async fn range(&self, prefix: &str) -> Result<Range, MetastoreError> {
        let ask = |client: Client| async move {
            let mut client = client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
            client.get(self.full(prefix), Some(GetOptions::new().with_prefix())).await
        };
        let answer = self.members.ask("range", Repeat::Anywhere, ask).await?;
        let entries = answer.kvs().iter().map(|pair| self.entry(pair)).collect::<Result<_, _>>()?;
        Ok(Range { entries, revision: Revision(revision(answer.header())) })
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, MetastoreError> {
        let ask = |client: Client| async move {
            let mut client = client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
            client.get(self.full(prefix), Some(GetOptions::new().with_prefix().with_keys_only())).await
        };
        let answer = self.members.ask("list keys", Repeat::Anywhere, ask).await?;
        answer.kvs().iter().map(|pair| own_key(&self.prefix, pair)).collect()
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Revision, MetastoreError> {
        transaction.check()?;
        let txn = self.translate(transaction);
        let ask = |mut client: Client| {
            let txn = txn.clone();
            async move {
                match client.txn(txn).await {
                    Err(error) if lease_is_unknown(&error) => Ok(None),
                    answer => answer.map(Some),
                }
            }
        };
        let answer = self.members.ask("transact", Repeat::Never, ask).await?;
        let answer = answer.ok_or(MetastoreError::LeaseLost)?;
        if answer.succeeded() {
            Ok(Revision(revision(answer.header())))
        } else {
            Err(MetastoreError::Conflict)
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, MetastoreError> {
        let (sender, events) = channel(WATCH_EVENTS_MAX);
        let follower = Follower {
            store: self.clone(),
            prefix: prefix.to_owned(),
            next_revision: from.0 + 1,
            events: sender,
        };
        tokio::spawn(follower.run());
        Ok(Watch { events })
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, MetastoreError> {
        let seconds = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        // One that was granted unheard ends by itself.
        let ask = |mut client: Client| async move { client.lease_grant(seconds, None).await };
        Ok(LeaseId(self.members.ask("grant lease", Repeat::Anywhere, ask).await?.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetastoreError> {
        let ask = |mut client: Client| async move {
            let (mut keeper, mut answers) = match client.lease_keep_alive(lease.0).await {
                Err(error) if lease_is_unknown(&error) => return Ok(false),
                other => other?,
            };
            keeper.keep_alive().await?;
            Ok(answers.message().await?.is_some_and(|answer| answer.ttl() > 0))
        };
        let kept = self.members.ask("keep lease alive", Repeat::Anywhere, ask).await?;
        if kept { Ok(()) } else { Err(MetastoreError::LeaseLost) }
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), MetastoreError> {
        let ask = |mut client: Client| async move {
            match client.lease_revoke(lease.0).await {
                Ok(_) => Ok(true),
                Err(error) if lease_is_unknown(&error) => Ok(false),
                Err(error) => Err(error),
            }
        };
        let revoked = self.members.ask("revoke lease", Repeat::Anywhere, ask).await?;
        if revoked { Ok(()) } else { Err(MetastoreError::LeaseLost) }
    }
}

fn revision(header: Option<&etcd_client::ResponseHeader>) -> i64 {
    header.expect("etcd sends a header with every answer").revision()
}

/// The task behind one watch.
struct Follower {
    store: Etcd,
    prefix: String,
    next_revision: i64,
    events: Sender<WatchEvent>,
}

/// Why one stream of a watch ended.
enum Ended {
    /// The watcher dropped it.
    Unwanted,
    /// etcd no longer has the changes from `next_revision` on.
    Compacted,
    /// The connection or the stream broke.
    Broken(String),
}

impl Follower {
    async fn run(mut self) {
        let mut pause = WATCH_RETRY_MIN;
        loop {
            let before = self.next_revision;
            let unwanted = self.events.clone();
            let ended = tokio::select! {
                ended = self.follow() => ended,
                () = unwanted.closed() => Ended::Unwanted,
            };
            let reason = match ended {
                Ended::Unwanted => return,
                Ended::Compacted => match self.snapshot().await {
                    Ok(()) => continue,
                    Err(error) => error.to_string(),
                },
                Ended::Broken(reason) => reason,
            };
            pause =
                if self.next_revision > before { WATCH_RETRY_MIN } else { (pause * 2).min(WATCH_RETRY_MAX) };
            warn!(event = "metastore_watch_broken", prefix = self.prefix, reason);
            tokio::time::sleep(pause).await;
        }
    }

    /// Follows one stream to its end.
    async fn follow(&mut self) -> Ended {
        let broken = |error: Error| Ended::Broken(error.to_string());
        let options = WatchOptions::new().with_prefix().with_start_revision(self.next_revision);
        let members = &self.store.members;
        let (turn, mut client) = match tokio::time::timeout(self.store.deadline, members.client()).await {
            Ok(Ok(member)) => member,
            Ok(Err(error)) => return broken(error),
            Err(_) => return Ended::Broken("no connection".to_owned()),
        };
        let started = client.watch(self.store.full(&self.prefix), Some(options));
        let started = tokio::time::timeout(self.store.deadline, started).await;
        if !matches!(started, Ok(Ok(_))) {
            members.failed(turn);
        }
        let mut stream = match started {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return broken(error),
            Err(_) => return Ended::Broken("no answer to the watch request".to_owned()),
        };
        loop {
            let answer = match stream.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Ended::Broken("etcd closed the stream".to_owned()),
                Err(error) => return broken(error),
            };
            if answer.compact_revision() > 0 {
                return Ended::Compacted;
            }
            if answer.canceled() {
                return Ended::Broken(answer.cancel_reason().to_owned());
            }
            for event in answer.events() {
                let Some(event) = event.kv().and_then(|pair| self.translate(event.event_type(), pair)) else {
                    continue;
                };
                if self.events.send(event).await.is_err() {
                    return Ended::Unwanted;
                }
            }
            // Not the header's revision: while a watch catches up, that is already ahead of the events. etcd never
            // splits the events of one revision.
            let newest = answer.events().iter().filter_map(|event| Some(event.kv()?.mod_revision())).max();
            self.next_revision = newest.map_or(self.next_revision, |newest| newest + 1);
        }
    }

    fn translate(&self, kind: EventType, pair: &KeyValue) -> Option<WatchEvent> {
        // A key that is not text cannot be one of ours.
        let key = own_key(&self.store.prefix, pair).ok()?;
        let revision = Revision(pair.mod_revision());
        Some(match kind {
            EventType::Put => WatchEvent::Put(Entry { key, value: pair.value().to_vec(), revision }),
            EventType::Delete => WatchEvent::Deleted { key, revision },
        })
    }

    async fn snapshot(&mut self) -> Result<(), MetastoreError> {
        let range = self.store.range(&self.prefix).await?;
        self.next_revision = range.revision.0 + 1;
        // If the watcher is gone the next round sees it.
        let _ = self.events.send(WatchEvent::Snapshot(range)).await;
        Ok(())
    }
}
