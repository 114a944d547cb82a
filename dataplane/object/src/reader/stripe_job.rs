//! Reads what a range needs of one stripe, decoding what cannot be read, or not in time.
//!
//! ```text
//! Idle ----> Reading ----> Good          read and verified
//!               |  \-----> Lost          failed; not asked again in this stripe
//!               \--> Late --> Good, Lost (hedge: others are asked too, whichever comes first counts)
//! ```
//!
//! A healthy stripe costs one read per shard touched, of the units touched. As soon as a wanted shard is lost
//! or late, k shards are read over the hull of all wanted units (those that were read so far count if they
//! cover it), and what is wanted and not good is decoded from them. Hedges use memory that is free at once,
//! or do not happen: a budget by itself. If decoded bytes contradict the checksums of the shard they replace,
//! the read fails: which is right is never guessed.
//!
//! Memory: with no read in flight a shard holds at most one buffer, for its own bytes read or decoded. So k+m
//! buffers always suffice; a job that was given fewer may answer [`Outcome::NeedsBuffers`] and is started
//! again with all.

use std::{collections::BTreeMap, ops::Range, pin::pin, rc::Rc};

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    channel::oneshot,
    future::{Either, select},
    stream::FuturesUnordered,
};
use quarry_clustermap::ShardIndex;
use quarry_storage::device::IoBuf;

use super::{
    ReadError,
    source::{Loss, Source},
};
use crate::{
    cluster::Cluster,
    stripe::{Piece, StripeRead, shard_index},
};

/// How a job begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Start {
    /// With the buffers that will do if nothing new fails.
    Thrifty,
    /// With k+m buffers, after a thrifty start did not do: reads the hull at once.
    Whole,
}

/// How a job ended.
pub(super) enum Outcome {
    /// The bytes asked for, in order.
    Pieces(Vec<Bytes>),
    /// Something failed, and there was no memory to decode. Start over with k+m buffers.
    NeedsBuffers,
    /// There is no way.
    Failed(ReadError),
}

enum State {
    Idle,
    Reading(Range<usize>),
    Late,
    Good(Range<usize>, IoBuf),
    Lost(Loss),
}

struct Done {
    shard: ShardIndex,
    units: Range<usize>,
    result: Result<(), Loss>,
    buf: IoBuf,
}

pub(super) struct StripeJob<C: Cluster> {
    source: Rc<Source<C>>,
    plan: StripeRead,
    hull: Range<usize>,
    start: Start,
    spare: Vec<IoBuf>,
    states: Vec<State>,
    reads: FuturesUnordered<oneshot::Receiver<Done>>,
}

impl<C: Cluster> StripeJob<C> {
    pub(super) fn new(source: Rc<Source<C>>, plan: StripeRead, spare: Vec<IoBuf>, start: Start) -> Self {
        let states = (0..source.blob().profile.total()).map(|_| State::Idle).collect();
        let hull = plan.hull();
        Self { source, plan, hull, start, spare, states, reads: FuturesUnordered::new() }
    }

    pub(super) async fn run(mut self) -> Outcome {
        let source = Rc::clone(&self.source);
        self.start_wanted();
        let delay = source.cluster().read_latency().hedge_delay();
        let mut hedge_timer = pin!(source.cluster().sleep(delay).fuse());
        let mut hedged = false;
        loop {
            match self.advance() {
                Some(outcome) => return outcome,
                None if hedged => {
                    let done = self.reads.next().await;
                    self.finish(done);
                }
                None => match select(self.reads.next(), &mut hedge_timer).await {
                    Either::Left((done, _)) => self.finish(done),
                    Either::Right(_) => {
                        hedged = true;
                        self.mark_late(delay);
                    }
                },
            }
        }
    }

    /// Reads what is wanted; with shards to avoid, whole hulls from the start.
    fn start_wanted(&mut self) {
        let avoided = |piece: &Piece| self.source.is_avoided(piece.shard);
        let degraded = self.start == Start::Whole || self.plan.pieces.iter().any(avoided);
        let wanted: Vec<Piece> = self.plan.pieces.iter().filter(|piece| !avoided(piece)).cloned().collect();
        for piece in wanted {
            let units = if degraded { self.hull.clone() } else { piece.units };
            let buf = self.spare.pop().expect("a job is given a buffer per piece");
            self.start_read(piece.shard, units, buf);
        }
    }

    /// Decides what comes next; `None`: wait for a read.
    fn advance(&mut self) -> Option<Outcome> {
        let undone: Vec<ShardIndex> = self.wanted().filter(|shard| !self.is_good(*shard)).collect();
        if undone.is_empty() {
            return Some(Outcome::Pieces(self.take_pieces()));
        }
        if undone.iter().all(|shard| matches!(self.state(*shard), State::Reading(_))) {
            return None;
        }
        let short_of_memory = if self.sources_good() >= self.source.blob().profile.data() {
            match self.decode(&undone) {
                Ok(outcome) => return Some(outcome),
                Err(OutOfBuffers) => true,
            }
        } else {
            self.start_sources().is_err()
        };
        if !self.reads.is_empty() {
            return None;
        }
        if short_of_memory {
            assert!(
                self.start == Start::Thrifty,
                "with no read in flight a shard holds at most one of k+m buffers"
            );
            return Some(Outcome::NeedsBuffers);
        }
        Some(Outcome::Failed(self.error()))
    }

    /// Starts reads of the hull until k sources are good or under way.
    fn start_sources(&mut self) -> Result<(), OutOfBuffers> {
        let k = self.source.blob().profile.data();
        let under_way = |state: &State| matches!(state, State::Reading(units) if *units == self.hull);
        let mut sources = self.sources_good() + self.states.iter().filter(|state| under_way(state)).count();
        while sources < k {
            let Some(shard) = self.next_candidate() else { return Ok(()) };
            let buf = match std::mem::replace(self.state_mut(shard), State::Idle) {
                State::Good(_, buf) => buf,
                _ => self.take_buffer()?,
            };
            self.start_read(shard, self.hull.clone(), buf);
            sources += 1;
        }
        Ok(())
    }

    /// Unread shards first, then those read but not over the hull, then those better not asked.
    fn next_candidate(&self) -> Option<ShardIndex> {
        let rank = |shard: &ShardIndex| match self.state(*shard) {
            State::Idle if self.source.is_avoided(*shard) => Some(2),
            State::Idle => Some(0),
            State::Good(units, _) if *units != self.hull => Some(1),
            _ => None,
        };
        let shards = (0..self.states.len()).map(shard_index);
        shards.filter_map(|shard| Some((rank(&shard)?, shard))).min().map(|(_, shard)| shard)
    }

    fn start_read(&mut self, shard: ShardIndex, units: Range<usize>, mut buf: IoBuf) {
        buf.set_len(units.len());
        *self.state_mut(shard) = State::Reading(units.clone());
        let source = Rc::clone(&self.source);
        let offset = self.plan.stripe.shard_offset + units.start as u64;
        let (sender, receiver) = oneshot::channel();
        let read = async move {
            let (result, buf) = source.read(shard, offset, buf).await;
            // Nobody may be waiting any more.
            let _ = sender.send(Done { shard, units, result, buf });
        };
        // A task of its own: a read goes on, and its time is told right, while the consumer does other
        // things.
        self.source.cluster().spawn(read.boxed_local());
        self.reads.push(receiver);
    }

    fn finish(&mut self, done: Option<Result<Done, oneshot::Canceled>>) {
        let done =
            done.expect("an undecided job has reads in flight").expect("spawned tasks run to their end");
        *self.state_mut(done.shard) = match done.result {
            Ok(()) => State::Good(done.units, done.buf),
            Err(loss) => {
                self.spare.push(done.buf);
                State::Lost(loss)
            }
        };
    }

    fn mark_late(&mut self, delay: std::time::Duration) {
        for state in &mut self.states {
            if matches!(state, State::Reading(_)) {
                *state = State::Late;
                // If it is never seen to end, it must teach patience all the same.
                self.source.cluster().read_latency().observe(delay);
            }
        }
    }

    fn decode(&mut self, undone: &[ShardIndex]) -> Result<Outcome, OutOfBuffers> {
        let mut decoded = BTreeMap::new();
        for shard in undone {
            let Ok(mut buf) = self.take_buffer() else {
                self.spare.extend(decoded.into_values());
                return Err(OutOfBuffers);
            };
            buf.set_len(self.hull.len());
            decoded.insert(*shard, buf);
        }
        let sources: Vec<(ShardIndex, &[u8])> = self
            .states
            .iter()
            .enumerate()
            .filter_map(|(index, state)| match state {
                State::Good(units, buf) if *units == self.hull => Some((shard_index(index), &**buf)),
                _ => None,
            })
            .collect();
        let mut targets: Vec<(ShardIndex, &mut [u8])> =
            decoded.iter_mut().map(|(shard, buf)| (*shard, &mut **buf)).collect();
        let codec = self.source.codec();
        codec.decode(&sources, &mut targets).expect("k distinct sources over one hull");
        let offset = self.plan.stripe.shard_offset + self.hull.start as u64;
        if decoded.iter().any(|(shard, buf)| self.source.contradicts(*shard, offset, buf)) {
            // Verified sources and verified checksums that do not agree: never guess which is right.
            return Ok(Outcome::Failed(self.data_loss()));
        }
        for (shard, buf) in decoded {
            if matches!(self.state(shard), State::Late) {
                // It has lost the race once: the next stripes do not wait for it.
                self.source.avoid(shard);
            }
            *self.state_mut(shard) = State::Good(self.hull.clone(), buf);
        }
        Ok(Outcome::Pieces(self.take_pieces()))
    }

    fn take_pieces(&mut self) -> Vec<Bytes> {
        let pieces = std::mem::take(&mut self.plan.pieces);
        pieces.iter().map(|piece| self.take_piece(piece)).collect()
    }

    fn take_piece(&mut self, piece: &Piece) -> Bytes {
        let state = std::mem::replace(self.state_mut(piece.shard), State::Idle);
        let State::Good(units, buf) = state else { unreachable!("pieces are taken when all are good") };
        assert!(units.start <= piece.units.start && piece.units.end <= units.end, "verified what is served");
        buf.into_bytes().slice(piece.bytes.start - units.start..piece.bytes.end - units.start)
    }

    fn take_buffer(&mut self) -> Result<IoBuf, OutOfBuffers> {
        self.spare.pop().or_else(|| self.source.take_extra()).ok_or(OutOfBuffers)
    }

    /// Every way has been tried.
    fn error(&self) -> ReadError {
        let gone = self.states.iter().filter(|state| matches!(state, State::Lost(Loss::Permanent))).count();
        if gone > self.source.blob().profile.parity() {
            return self.data_loss();
        }
        ReadError::Unavailable { blob: self.source.blob().blob, stripe: self.plan.index }
    }

    fn data_loss(&self) -> ReadError {
        ReadError::DataLoss { blob: self.source.blob().blob, stripe: self.plan.index }
    }

    fn wanted(&self) -> impl Iterator<Item = ShardIndex> + '_ {
        self.plan.pieces.iter().map(|piece| piece.shard)
    }

    fn sources_good(&self) -> usize {
        self.states
            .iter()
            .filter(|state| matches!(state, State::Good(units, _) if *units == self.hull))
            .count()
    }

    fn is_good(&self, shard: ShardIndex) -> bool {
        matches!(self.state(shard), State::Good(..))
    }

    fn state(&self, shard: ShardIndex) -> &State {
        &self.states[usize::from(shard.0)]
    }

    fn state_mut(&mut self, shard: ShardIndex) -> &mut State {
        &mut self.states[usize::from(shard.0)]
    }
}

/// Neither spare nor free at once.
struct OutOfBuffers;
