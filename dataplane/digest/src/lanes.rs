//! The streams of a thread, and which of them are hashed together.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use crate::compress::{BLOCK_BYTES, LANES, START, State, has_lanes, many, one};
use crate::{MD5_BYTES, STREAM_BYTES_MAX, THREAD_BYTES_MAX};

/// A stream that has less is hashed with others only if it has to be.
const WORTH_A_LANE_BYTES: usize = 4 * 1024;

/// One stream.
struct Stream {
    state: State,
    len_bytes: u64,
    /// The beginning of a block.
    partial: [u8; BLOCK_BYTES],
    partial_bytes: usize,
    /// What is not hashed yet, after the partial block.
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    /// It stands in [`Lanes::ready`].
    is_ready: bool,
}

impl Stream {
    fn new() -> Self {
        Self {
            state: START,
            len_bytes: 0,
            partial: [0; BLOCK_BYTES],
            partial_bytes: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
            is_ready: false,
        }
    }

    /// Hashes what joins two pieces, until whole blocks lie at the front; how many.
    fn whole_blocks(&mut self) -> usize {
        while let Some(front) = self.kept.front_mut() {
            if self.partial_bytes == 0 && front.len() >= BLOCK_BYTES {
                return front.len() / BLOCK_BYTES;
            }
            let count = front.len().min(BLOCK_BYTES - self.partial_bytes);
            front.copy_to_slice(&mut self.partial[self.partial_bytes..][..count]);
            self.partial_bytes += count;
            self.kept_bytes -= count;
            if front.is_empty() {
                self.kept.pop_front();
            }
            if self.partial_bytes == BLOCK_BYTES {
                one(&mut self.state, &self.partial);
                self.partial_bytes = 0;
            }
        }
        0
    }

    fn front(&self) -> &[u8] {
        self.kept.front().map_or(&[], |front| front)
    }

    /// So many blocks of the front are hashed.
    fn pass(&mut self, blocks: usize) {
        let front = self.kept.front_mut().expect("there were blocks at the front");
        front.advance(blocks * BLOCK_BYTES);
        self.kept_bytes -= blocks * BLOCK_BYTES;
        if front.is_empty() {
            self.kept.pop_front();
        }
    }

    /// Everything is hashed but the partial block.
    fn digest(&mut self) -> [u8; MD5_BYTES] {
        let mut end = [0; 2 * BLOCK_BYTES];
        end[..self.partial_bytes].copy_from_slice(&self.partial[..self.partial_bytes]);
        end[self.partial_bytes] = 0x80;
        // The padding leaves 8 bytes of the last block for the length in bits, modulo 2^64.
        let len = if self.partial_bytes < BLOCK_BYTES - 8 { BLOCK_BYTES } else { 2 * BLOCK_BYTES };
        end[len - 8..len].copy_from_slice(&self.len_bytes.wrapping_mul(8).to_le_bytes());
        one(&mut self.state, &end[..len]);
        let mut digest = [0; MD5_BYTES];
        for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_le_bytes();
        }
        digest
    }
}

/// All streams of a thread.
#[derive(Default)]
pub(crate) struct Lanes {
    slots: Vec<Option<Stream>>,
    free: Vec<usize>,
    /// Streams that are worth a lane, or were when they came in; the oldest first.
    ready: VecDeque<usize>,
    kept_bytes: usize,
}

impl Lanes {
    pub(crate) fn open(&mut self) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(Stream::new());
        slot
    }

    pub(crate) fn push(&mut self, slot: usize, data: Bytes) {
        let small = data.len() < WORTH_A_LANE_BYTES;
        let stream = self.stream(slot);
        stream.len_bytes += data.len() as u64;
        stream.kept_bytes += data.len();
        self.kept_bytes += data.len();
        let stream = self.stream(slot);
        stream.kept.push_back(data);
        // Small pieces are not kept: they may hold larger buffers, and there may be many.
        let full = stream.kept_bytes > STREAM_BYTES_MAX;
        if !stream.is_ready && stream.kept_bytes >= WORTH_A_LANE_BYTES {
            stream.is_ready = true;
            self.ready.push_back(slot);
        }
        if small || self.kept_bytes > THREAD_BYTES_MAX {
            self.hash(slot, 0);
        } else if full {
            self.hash(slot, STREAM_BYTES_MAX / 2);
        }
    }

    pub(crate) fn finish(&mut self, slot: usize) -> [u8; MD5_BYTES] {
        self.hash(slot, 0);
        self.stream(slot).digest()
    }

    pub(crate) fn close(&mut self, slot: usize) {
        if let Some(stream) = self.slots[slot].take() {
            self.kept_bytes -= stream.kept_bytes;
            if stream.is_ready {
                self.ready.retain(|ready| *ready != slot);
            }
            self.free.push(slot);
        }
    }

    fn stream(&mut self, slot: usize) -> &mut Stream {
        self.slots[slot].as_mut().expect("an open stream has its slot")
    }

    /// Hashes whole blocks of a stream until it keeps no more than that, and of others what goes with it.
    fn hash(&mut self, slot: usize, keep_bytes: usize) {
        while self.stream(slot).kept_bytes > keep_bytes {
            let before = self.stream(slot).kept_bytes;
            let blocks = self.stream(slot).whole_blocks();
            self.kept_bytes -= before - self.stream(slot).kept_bytes;
            if blocks == 0 {
                return;
            }
            let mut chosen = [slot; LANES];
            let (count, blocks) = if has_lanes() { self.choose(&mut chosen, blocks) } else { (1, blocks) };
            if count == 1 {
                let stream = self.stream(slot);
                let front = stream.kept.front().cloned().expect("there are blocks at the front");
                one(&mut stream.state, &front[..blocks * BLOCK_BYTES]);
                stream.pass(blocks);
            } else {
                self.together(&chosen[..count], blocks);
            }
            self.kept_bytes -= count * blocks * BLOCK_BYTES;
        }
    }

    /// Puts streams beside the first one; how many there are then, and blocks that all of them have.
    fn choose(&mut self, chosen: &mut [usize; LANES], mut blocks: usize) -> (usize, usize) {
        let mut count = 1;
        for _ in 0..self.ready.len() {
            if count == LANES {
                break;
            }
            let Some(slot) = self.ready.pop_front() else { break };
            let stream = self.slots[slot].as_mut().expect("a stream that closes is not ready");
            let before = stream.kept_bytes;
            let its_blocks = if slot == chosen[0] { blocks } else { stream.whole_blocks() };
            self.kept_bytes -= before - stream.kept_bytes;
            if stream.kept_bytes < WORTH_A_LANE_BYTES {
                stream.is_ready = false;
                continue;
            }
            self.ready.push_back(slot);
            if slot != chosen[0] && its_blocks > 0 {
                chosen[count] = slot;
                count += 1;
                blocks = blocks.min(its_blocks);
            }
        }
        (count, blocks)
    }

    fn together(&mut self, chosen: &[usize], blocks: usize) {
        // Lanes that are left over hash the first stream once more, for nothing.
        let slot_of = |lane: usize| chosen.get(lane).copied().unwrap_or(chosen[0]);
        let stream = |lane: usize| self.slots[slot_of(lane)].as_ref().expect("a chosen stream is open");
        let mut states: [State; LANES] = std::array::from_fn(|lane| stream(lane).state);
        many(&mut states, std::array::from_fn(|lane| stream(lane).front()), blocks);
        for (slot, state) in chosen.iter().zip(states) {
            let stream = self.stream(*slot);
            stream.state = state;
            stream.pass(blocks);
        }
    }
}

#[cfg(test)]
impl Lanes {
    /// Bytes kept back, as counted and as they are.
    pub(crate) fn kept(&self) -> (usize, usize) {
        let of = |stream: &Stream| stream.kept.iter().map(Bytes::len).sum::<usize>();
        (self.kept_bytes, self.slots.iter().flatten().map(of).sum())
    }
}
