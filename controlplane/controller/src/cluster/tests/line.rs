//! A line to the store: slow, cut, and at times losing an answer after the store has acted.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use quarry_metastore::{
    Embedded, Entry, LeaseId, Metastore, MetastoreError, Range, Revision, Transaction, Watch,
};
use tokio::time::sleep;

/// Numbers from a seed (xorshift).
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

#[derive(Debug)]
struct State {
    random: Random,
    cut: bool,
    healed: bool,
    /// What was sent, to be sent again.
    sent: Vec<Transaction>,
}

/// Controls one user's line.
#[derive(Clone, Debug)]
pub(super) struct Line(Arc<Mutex<State>>);

impl Line {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: Random::new(seed),
            cut: false,
            healed: false,
            sent: Vec::new(),
        })))
    }

    pub(super) fn cut(&self, cut: bool) {
        self.0.lock().unwrap().cut = cut;
    }

    /// No faults any more.
    pub(super) fn heal(&self) {
        let mut state = self.0.lock().unwrap();
        (state.cut, state.healed) = (false, true);
    }

    /// Everything that was sent so far.
    pub(super) fn sent(&self) -> Vec<Transaction> {
        self.0.lock().unwrap().sent.clone()
    }

    fn roll(&self, limit: u64) -> u64 {
        let mut state = self.0.lock().unwrap();
        if state.healed { limit - 1 } else { state.random.below(limit) }
    }

    async fn pass(&self, operation: &'static str) -> Result<(), MetastoreError> {
        let milliseconds = if self.roll(20) == 0 { 1_500 } else { self.roll(10) };
        sleep(Duration::from_millis(milliseconds)).await;
        let cut = self.0.lock().unwrap().cut;
        if cut || self.roll(50) == 0 {
            sleep(Duration::from_secs(2)).await;
            return Err(MetastoreError::Unavailable { operation, reason: "cut".to_owned() });
        }
        Ok(())
    }

    /// There and back: the way back may fail after the store has acted.
    async fn around<T>(
        &self,
        operation: &'static str,
        act: impl Future<Output = Result<T, MetastoreError>>,
    ) -> Result<T, MetastoreError> {
        self.pass(operation).await?;
        let result = act.await;
        self.pass(operation).await?;
        result
    }
}

/// The store at the end of a line.
#[derive(Debug)]
pub(super) struct Store {
    store: Arc<Embedded>,
    line: Line,
}

impl Store {
    pub(super) fn new(store: Arc<Embedded>, line: Line) -> Self {
        Self { store, line }
    }
}

impl Metastore for Store {
    async fn get(&self, key: &str) -> Result<Option<Entry>, MetastoreError> {
        self.line.around("get", self.store.get(key)).await
    }

    async fn range(&self, prefix: &str) -> Result<Range, MetastoreError> {
        self.line.around("range", self.store.range(prefix)).await
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Revision, MetastoreError> {
        self.line.0.lock().unwrap().sent.push(transaction.clone());
        if self.line.roll(40) == 0 {
            // On its way for long, whatever becomes of the sender; nobody hears of the outcome.
            let (store, transaction, after) =
                (Arc::clone(&self.store), transaction.clone(), self.line.roll(25));
            tokio::spawn(async move {
                sleep(Duration::from_secs(after)).await;
                let _ = store.transact(&transaction).await;
            });
            sleep(Duration::from_secs(2)).await;
            let reason = "late".to_owned();
            return Err(MetastoreError::Unavailable { operation: "transact", reason });
        }
        self.line.around("transact", self.store.transact(transaction)).await
    }

    /// A cut is not felt by a watch: events of an etcd that is away come late, and these come when they like anyway.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, MetastoreError> {
        self.line.around("watch", self.store.watch(prefix, from)).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, MetastoreError> {
        self.line.around("grant lease", self.store.grant_lease(ttl)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetastoreError> {
        self.line.around("keep alive", self.store.keep_alive(lease)).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), MetastoreError> {
        self.line.around("revoke lease", self.store.revoke_lease(lease)).await
    }
}
