//! One replica of one metadata partition: drives the pure state machine of the partition crate with this device's
//! journal, the transport and the clock.
//!
//! Rules:
//! - outputs are carried out in the order given; journal outputs reach the store in that order;
//! - commands that may change something are evaluated one at a time (`turn`), over committed and proposed rows;
//!   replication of their entries is pipelined;
//! - a reply leaves only after the entry it depends on is committed, and for a refusal or an unchanged read of
//!   proposed rows, after everything proposed before it is.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures::{channel::oneshot, lock::Mutex};
use quarry_clustermap::{BucketId, DeviceId, Epoch, PartitionConfig, PartitionId, Sequence, Versioning};
use quarry_object::{metadata::ExecuteError, peer::PeerFault};
use quarry_partition::{
    Envelope, Input, Message, Output, Payload, Refusal, Replica, Report, Row,
    command::{
        Command, EvaluateError, EvaluationContext, List, Reply, evaluate, is_free_list_row, listed_rows,
    },
};
use quarry_storage::store::{LogEntry, Mutation, Store, StoreError};

use super::{Links, proposed::Proposed, view::RowView};
use crate::platform::Platform;

/// Rows of one backfill page.
const BACKFILL_ROWS: usize = 256;
/// Bytes of one backfill page, under the partition crate's limit of one payload.
const BACKFILL_BYTES: usize = 1 << 20;
/// How often a read is evaluated again because rows changed under it.
const READ_ATTEMPTS: usize = 8;

/// One replica on one device.
pub(crate) struct PartitionHost<P: Platform> {
    partition: PartitionId,
    device: DeviceId,
    store: Store<P::Device>,
    links: Rc<Links<P>>,
    replica: RefCell<Replica>,
    members: RefCell<Vec<DeviceId>>,
    /// Inputs that arrived while another was being carried out.
    inputs: RefCell<VecDeque<Input>>,
    stepping: Cell<bool>,
    /// Held while a command is evaluated or a backfill page is read.
    turn: Mutex<()>,
    proposed: RefCell<Proposed>,
    waiting: RefCell<HashMap<u64, oneshot::Sender<Result<Sequence, Refusal>>>>,
    next_token: Cell<u64>,
    activating: Cell<bool>,
    backfilling: Cell<bool>,
    /// Asked to hand over, and not done with it.
    handing_over: Cell<bool>,
    /// Set when committed entries have put blobs on its free list since the freer last looked.
    freed_something: Cell<bool>,
}

impl<P: Platform> PartitionHost<P> {
    pub(crate) fn new(
        partition: PartitionId,
        device: DeviceId,
        min_copies: usize,
        store: Store<P::Device>,
        links: Rc<Links<P>>,
    ) -> Rc<Self> {
        let (recovered, leases) = (store.recovered_log(partition), links.leases);
        let log = quarry_partition::RecoveredLog {
            epoch: recovered.epoch,
            applied: recovered.applied,
            tail: recovered
                .tail
                .into_iter()
                .map(|entry| quarry_partition::Entry {
                    epoch: entry.epoch,
                    sequence: entry.sequence,
                    payload: entry.payload,
                })
                .collect(),
        };
        Rc::new(Self {
            partition,
            device,
            store,
            links,
            replica: RefCell::new(Replica::recover(partition, device, min_copies, log, leases)),
            members: RefCell::default(),
            inputs: RefCell::default(),
            stepping: Cell::new(false),
            turn: Mutex::new(()),
            proposed: RefCell::default(),
            waiting: RefCell::default(),
            next_token: Cell::new(0),
            activating: Cell::new(false),
            backfilling: Cell::new(false),
            handing_over: Cell::new(false),
            freed_something: Cell::new(true),
        })
    }

    pub(crate) fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The newest epoch that it was told.
    pub(crate) fn epoch(&self) -> Epoch {
        self.replica.borrow().epoch()
    }

    pub(crate) fn is_serving_primary(&self) -> bool {
        self.replica.borrow().is_serving_primary(self.links.monotonic_ms())
    }

    /// Entries of its log that are not committed, as far as known here.
    pub(crate) fn uncommitted_entries(&self) -> u64 {
        let replica = self.replica.borrow();
        replica.last_proposed().0.saturating_sub(replica.committed().0)
    }

    /// Committed rows from a key on, keys without the partition's prefix: for the scrub.
    pub(crate) async fn committed_rows(
        &self,
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.store.rows(self.partition, from, None, limit).await
    }

    /// Whether anything may have been put on the free list since the last call.
    pub(crate) fn take_freed_something(&self) -> bool {
        self.freed_something.replace(false)
    }

    /// Makes the freer look again.
    pub(crate) fn set_freed_something(&self) {
        self.freed_something.set(true);
    }

    pub(crate) fn configure(self: &Rc<Self>, config: &PartitionConfig) {
        if config.epoch > self.replica.borrow().epoch() {
            self.links.epoch_changes.set(self.links.epoch_changes.get() + 1);
        }
        *self.members.borrow_mut() = config.members().collect();
        self.input(Input::Configure(config.clone()));
    }

    pub(crate) fn tick(self: &Rc<Self>) {
        self.input(Input::Tick);
    }

    /// What a replica on another device says.
    pub(crate) fn receive(self: &Rc<Self>, from: DeviceId, message: Message) {
        self.input(Input::Receive { from, message });
    }

    /// Stops to serve, if another one can follow. Known to be done when [`PartitionHost::is_handing_over`] says no.
    pub(crate) fn hand_over(self: &Rc<Self>) {
        self.handing_over.set(true);
        self.input(Input::HandOver { wanted: true });
    }

    pub(crate) fn is_handing_over(&self) -> bool {
        self.handing_over.get()
    }

    /// Whether its rows are of use although it is no member now.
    pub(crate) fn may_return(&self) -> bool {
        self.replica.borrow().may_return(self.links.monotonic_ms())
    }

    /// Evaluates a command on the serving primary; returns when its outcome is durable.
    pub(crate) async fn execute(self: &Rc<Self>, command: &Command) -> Result<Reply, ExecuteError> {
        if is_read(command) { self.read(command).await } else { self.write(command).await }
    }

    fn context(&self, command: &Command) -> EvaluationContext {
        let versioning = command.bucket().map(|bucket| self.links.versioning(bucket)).unwrap_or_default();
        EvaluationContext { now_ms: self.links.unix_ms(), versioning }
    }

    /// Reads see committed rows only, so they wait for nothing.
    async fn read(&self, command: &Command) -> Result<Reply, ExecuteError> {
        for _ in 0..READ_ATTEMPTS {
            if !self.is_serving_primary() {
                return Err(PeerFault::NotPrimary.into());
            }
            let before = self.replica.borrow().committed();
            let view = RowView::committed(&self.store, self.partition);
            let result = evaluate(&view, self.context(command), command).await;
            let unchanged = self.replica.borrow().committed() == before;
            // Whatever the answer is: that there is no such key may be out of date too.
            if !self.is_serving_primary() {
                return Err(PeerFault::NotPrimary.into());
            }
            match result {
                Ok(evaluated) => return Ok(evaluated.reply),
                // A row that another row names may be gone because a commit came between the two reads.
                Err(EvaluateError::Damaged { .. }) if !unchanged => {}
                Err(error) => return Err(self.evaluation_failed(error, view.device_is_bad())),
            }
        }
        Err(PeerFault::Busy.into())
    }

    /// What a listing reads: committed rows, of a serving primary only.
    pub(super) fn committed_view(&self) -> RowView<'_, P::Device> {
        RowView::committed(&self.store, self.partition)
    }

    /// The rows of a listing, keys without the partition's prefix.
    pub(super) async fn listed_rows(
        &self,
        view: &RowView<'_, P::Device>,
        list: &List,
    ) -> Result<(Vec<u8>, Vec<u8>), PeerFault> {
        for _ in 0..READ_ATTEMPTS {
            let before = self.replica.borrow().committed();
            match listed_rows(view, list).await {
                Ok(rows) => return Ok(rows),
                // As for other reads.
                Err(EvaluateError::Damaged { .. }) if self.replica.borrow().committed() != before => {}
                Err(error) => return Err(self.listing_failed(view, error)),
            }
        }
        Err(PeerFault::Busy)
    }

    pub(super) fn listing_failed(&self, view: &RowView<'_, P::Device>, error: EvaluateError) -> PeerFault {
        match self.evaluation_failed(error, view.device_is_bad()) {
            ExecuteError::Fault(fault) => fault,
            ExecuteError::Refused(refusal) => PeerFault::Damaged { detail: refusal.to_string() },
        }
    }

    async fn write(self: &Rc<Self>, command: &Command) -> Result<Reply, ExecuteError> {
        let turn = self.turn.lock().await;
        if !self.is_serving_primary() {
            return Err(PeerFault::NotPrimary.into());
        }
        // Before anything is proposed: a replica that cannot journal an entry is lost until the next epoch.
        if self.members.borrow().iter().any(|member| self.links.is_busy(*member)) {
            return Err(PeerFault::Busy.into());
        }
        if let Some(bucket) = written_bucket(command) {
            if !self.links.bucket_is_open(bucket) {
                return Err(PeerFault::BucketGone.into());
            }
            if self.members.borrow().iter().any(|member| self.links.is_full(*member)) {
                return Err(PeerFault::Full.into());
            }
        }
        // A delete marker in a bucket that has been found empty would stay for ever.
        if let Command::Delete { bucket, version: None, .. } = command
            && self.links.versioning(*bucket) != Versioning::Unversioned
            && !self.links.bucket_is_open(*bucket)
        {
            return Err(PeerFault::BucketGone.into());
        }
        let view = RowView::proposed(&self.store, self.partition, &self.proposed);
        let mut evaluated = evaluate(&view, self.context(command), command).await;
        let (token, outcome) = self.new_waiter();
        match &mut evaluated {
            Ok(evaluated) if !evaluated.rows.is_empty() => {
                self.propose(token, std::mem::take(&mut evaluated.rows))?;
            }
            _ => self.input(Input::Barrier { token }),
        }
        drop(turn);
        match outcome.await {
            Ok(Ok(_)) => {}
            Ok(Err(refusal)) => return Err(refusal_to_fault(refusal).into()),
            Err(oneshot::Canceled) => return Err(PeerFault::OutcomeUnknown.into()),
        }
        let bad = view.device_is_bad();
        evaluated.map(|evaluated| evaluated.reply).map_err(|error| self.evaluation_failed(error, bad))
    }

    /// A primary that cannot read its rows is of no use: its device is reported, another replica takes over, and the
    /// caller tries again there.
    fn evaluation_failed(&self, error: EvaluateError, device_is_bad: bool) -> ExecuteError {
        if device_is_bad {
            self.links.index_damaged(&self.store, error.to_string());
            return PeerFault::DeviceOut.into();
        }
        to_execute_error(error)
    }

    fn propose(self: &Rc<Self>, token: u64, rows: Vec<Row>) -> Result<(), PeerFault> {
        let mutations = Payload::Mutations(rows);
        let payload = mutations.encode().map_err(|error| {
            self.waiting.borrow_mut().remove(&token);
            PeerFault::Damaged { detail: format!("the change does not fit one log entry: {error}") }
        })?;
        let before = self.replica.borrow().last_proposed();
        self.input(Input::Propose { token, payload });
        let sequence = self.replica.borrow().last_proposed();
        // Refused, or committed already (one replica whose flush is immediate): nothing is pending.
        if sequence > before && sequence > self.replica.borrow().committed() {
            self.proposed.borrow_mut().insert(sequence, mutations.into_rows());
        }
        Ok(())
    }

    fn new_waiter(&self) -> (u64, oneshot::Receiver<Result<Sequence, Refusal>>) {
        let token = self.next_token.get();
        self.next_token.set(token + 1);
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(token, sender);
        (token, receiver)
    }

    /// Feeds the state machine and carries out what it asks for, one input after another.
    fn input(self: &Rc<Self>, input: Input) {
        self.inputs.borrow_mut().push_back(input);
        if self.stepping.replace(true) {
            return;
        }
        let mut outputs = Vec::new();
        loop {
            let Some(input) = self.inputs.borrow_mut().pop_front() else { break };
            self.replica.borrow_mut().step(self.links.monotonic_ms(), input, &mut outputs);
            for output in outputs.drain(..) {
                self.carry_out(output);
            }
        }
        self.stepping.set(false);
    }

    fn carry_out(self: &Rc<Self>, output: Output) {
        match output {
            Output::RaiseEpoch { epoch, through } => {
                let partition = self.partition;
                self.journal(Input::Persisted { epoch, through }, async move |store| {
                    store.raise_partition_epoch(partition, epoch).await
                });
            }
            Output::Append { epoch, entry, committed } => {
                let entry = LogEntry {
                    partition: self.partition,
                    epoch: entry.epoch,
                    sequence: entry.sequence,
                    committed,
                    payload: entry.payload,
                };
                let sequence = entry.sequence;
                self.journal(Input::Persisted { epoch, through: sequence }, async move |store| {
                    store.append(epoch, entry).await
                });
            }
            Output::Truncate { epoch, after } => {
                self.proposed.borrow_mut().forget_after(after);
                let partition = self.partition;
                self.journal(Input::Persisted { epoch, through: after }, async move |store| {
                    store.truncate(partition, epoch, after).await
                });
            }
            Output::Reset { epoch, base } => self.reset(epoch, base),
            Output::Apply { sequence, payload } => self.apply(sequence, &payload),
            Output::Send { to, message } => self.send(to, message),
            Output::Resolve { token, result } => {
                if let Some(waiting) = self.waiting.borrow_mut().remove(&token) {
                    // The caller may have gone away; its change stands all the same.
                    let _gone = waiting.send(result);
                }
            }
            Output::Activate { epoch } => {
                if !self.activating.replace(true) {
                    let host = Rc::clone(self);
                    (self.links.spawn)(Box::pin(async move {
                        let activated = host.links.activate(host.partition, epoch).await;
                        host.activating.set(false);
                        if activated {
                            host.input(Input::Activated { epoch });
                        }
                    }));
                }
            }
            Output::ReadBackfill { epoch, cursor } => {
                if !self.backfilling.replace(true) {
                    let host = Rc::clone(self);
                    (self.links.spawn)(Box::pin(async move {
                        let page = host.read_backfill(cursor).await;
                        host.backfilling.set(false);
                        if let Some((rows, next)) = page {
                            host.input(Input::BackfillRows { epoch, rows, next });
                        }
                    }));
                }
            }
            Output::Report(report) => self.report(report),
        }
    }

    /// Starts a journal operation now, so that operations reach the journal in order, and waits for it in a task.
    fn journal(
        self: &Rc<Self>,
        done: Input,
        operation: impl AsyncFnOnce(&Store<P::Device>) -> Result<(), StoreError> + 'static,
    ) {
        let (host, store) = (Rc::clone(self), self.store.clone());
        let mut operation = Box::pin(async move { operation(&store).await });
        // The store gives an operation its place in the journal when it is polled first.
        let first = operation.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        (self.links.spawn)(Box::pin(async move {
            let result = match first {
                Poll::Ready(result) => result,
                Poll::Pending => operation.await,
            };
            match result {
                Ok(()) => host.input(done),
                // A newer epoch has overtaken it: no fault of the device, and nobody waits for it any more.
                Err(error @ StoreError::StaleEpoch { .. }) => {
                    tracing::debug!(event = "journal_overtaken", partition = %host.partition, %error);
                }
                Err(error) => {
                    tracing::error!(event = "journal_failed", partition = %host.partition, device = %host.device, %error);
                    host.input(Input::PersistFailed);
                }
            }
        }));
    }

    fn reset(self: &Rc<Self>, epoch: Epoch, base: Sequence) {
        let partition = self.partition;
        self.journal(Input::ResetDone { epoch }, async move |store| {
            store.reset(partition, epoch, base).await
        });
    }

    fn apply(self: &Rc<Self>, sequence: Sequence, payload: &Bytes) {
        let rows = Payload::decode_rows(payload).expect("the state machine hands out checked payloads only");
        let mutations: Vec<_> = rows.into_iter().map(|(key, value)| Mutation { key, value }).collect();
        // Now, not when it was proposed: the freer sees committed rows only.
        if mutations.iter().any(|row| row.value.is_some() && is_free_list_row(&row.key)) {
            self.freed_something.set(true);
        }
        self.store.apply(self.partition, sequence, mutations);
        self.proposed.borrow_mut().forget_through(sequence);
    }

    fn send(&self, to: DeviceId, message: Message) {
        let envelope = Envelope { partition: self.partition, from: self.device, to, message };
        match envelope.encode() {
            Ok(frame) => self.links.send(to, frame),
            Err(error) => {
                tracing::error!(event = "replication_frame_too_large", partition = %self.partition, %error)
            }
        }
    }

    fn report(&self, report: Report) {
        match report {
            Report::Joined { device, epoch } => self.links.control.joined(self.partition, epoch, device),
            Report::Lagging { device, epoch } if self.links.leases.is_some() => {
                self.links.control.lagging(self.partition, epoch, (self.device, device));
            }
            // Replicas of one process share its fate and its scheduler: a device that stalls fails by its own error.
            Report::Lagging { device, epoch } => {
                tracing::debug!(event = "replica_lagging", partition = %self.partition, %device, %epoch);
            }
            // The map is pushed to every core, and a start brings new epochs.
            Report::Outdated { epoch } | Report::NewEpochNeeded { epoch } => {
                tracing::debug!(event = "replica_outdated", partition = %self.partition, %epoch);
            }
            Report::ReadyToHandOver { epoch } | Report::NotHandedOver { epoch } => {
                self.handing_over.set(false);
                tracing::debug!(event = "replica_handing_over", partition = %self.partition, %epoch);
            }
        }
    }

    /// A page of rows, exact with respect to the log: nothing is evaluated while it is read.
    async fn read_backfill(&self, cursor: Option<Vec<u8>>) -> Option<(Vec<Row>, Option<Vec<u8>>)> {
        let _turn = self.turn.lock().await;
        let view = RowView::proposed(&self.store, self.partition, &self.proposed);
        let from = cursor.unwrap_or_default();
        match view.page(&from, BACKFILL_ROWS, BACKFILL_BYTES).await {
            Ok(page) => Some(page),
            Err(error) => {
                tracing::error!(event = "backfill_read_failed", partition = %self.partition, %error);
                if view.device_is_bad() {
                    self.links.index_damaged(&self.store, error.to_string());
                }
                None
            }
        }
    }
}

pub(crate) fn into_mutations(payload: Payload) -> Vec<Mutation> {
    payload
        .into_rows()
        .into_iter()
        .map(|row| Mutation { key: row.key.into(), value: row.value.map(Bytes::from) })
        .collect()
}

fn is_read(command: &Command) -> bool {
    matches!(
        command,
        Command::Head(_)
            | Command::Get(_)
            | Command::ObjectParts { .. }
            | Command::List(_)
            | Command::ListParts { .. }
            | Command::GetUpload { .. }
            | Command::FreeListNext { .. }
            | Command::DegradedNext { .. }
    )
}

/// The bucket that a command adds something to: it must exist and not be about to go.
fn written_bucket(command: &Command) -> Option<BucketId> {
    match command {
        Command::Put(put) => Some(put.bucket),
        Command::PutPart(part) => Some(part.bucket),
        Command::Complete(complete) => Some(complete.bucket),
        Command::CreateUpload { bucket, .. }
        | Command::SetTags { bucket, .. }
        | Command::SetHeader { bucket, .. } => Some(*bucket),
        _ => None,
    }
}

fn to_execute_error(error: EvaluateError) -> ExecuteError {
    match error {
        EvaluateError::Refused(refusal) => refusal.into(),
        EvaluateError::View(error) => PeerFault::Device { detail: error.detail }.into(),
        damaged @ EvaluateError::Damaged { .. } => PeerFault::Damaged { detail: damaged.to_string() }.into(),
    }
}

fn refusal_to_fault(refusal: Refusal) -> PeerFault {
    match refusal {
        Refusal::NotPrimary | Refusal::NotServing => PeerFault::NotPrimary,
        Refusal::TooFewCopies => PeerFault::TooFewCopies,
        Refusal::Overloaded => PeerFault::Busy,
        Refusal::Invalid => PeerFault::Damaged { detail: "the proposal is not a valid payload".into() },
        Refusal::Superseded | Refusal::DeviceFailed => PeerFault::OutcomeUnknown,
    }
}
