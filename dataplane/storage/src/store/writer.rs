//! The journal's writer: the one task that writes batches and decides between them where a checkpoint begins.

use std::rc::Rc;

use super::core::Mode;
use super::{Inner, StoreError, StoreState};
use crate::device::{BLOCK_BYTES, Device, IoBuf};
use crate::format::batch;
use crate::journal::{Pending, Ring};

/// Memory of a batch is used again from this size on, and kept up to the other.
const SPARE_BYTES_MIN: usize = 64 << 10;
const SPARE_BYTES_MAX: usize = 256 << 10;

impl<D: Device + 'static> Inner<D> {
    /// Runs until the store is shut down or fails.
    pub(super) async fn run_writer(self: Rc<Self>) {
        let mut spare = None;
        loop {
            let listener = self.work.listen();
            if matches!(*self.state.borrow(), StoreState::Failed(_)) {
                break;
            }
            self.begin_checkpoint_if_wanted();
            let tail_bytes = self.core.borrow().tail_bytes;
            let batch = self.queue.borrow_mut().take_batch(&self.ring.borrow(), tail_bytes);
            self.stats.set_queued(self.queue.borrow().bytes());
            if !batch.is_empty() {
                self.writing.set(true);
                let written = self.write_batch(batch, &mut spare).await;
                self.writing.set(false);
                if let Err((error, batch)) = written {
                    self.fail(&error);
                    refuse(batch, &error);
                    break;
                }
                continue;
            }
            if self.stopping.get() && self.queue.borrow().is_empty() && !self.checkpoint_running() {
                break;
            }
            listener.await;
        }
        self.writer_stopped.set(true);
        self.progress.notify(usize::MAX);
    }

    /// One batch: write, one flush, apply in order, tell the waiters. `spare` is memory for the next one.
    async fn write_batch(
        &self,
        batch: Vec<Pending>,
        spare: &mut Option<IoBuf>,
    ) -> Result<(), (StoreError, Vec<Pending>)> {
        let payload: usize = batch.iter().map(|pending| pending.bytes.len()).sum();
        let buf = gather(&batch, payload, spare.take());
        let records = u32::try_from(batch.len()).expect("a batch is bounded by bytes");
        let ring = self.ring.borrow().clone();
        let (written, buf) = Ring::write(ring, &*self.device, buf, payload, records).await;
        *spare = Some(buf).filter(|buf| buf.capacity() <= SPARE_BYTES_MAX);
        let head = match written {
            Ok(head) => head,
            Err(error) => return Err((error.into(), batch)),
        };
        if let Err(error) = self.device.flush().await {
            return Err((error.into(), batch));
        }
        // A checkpoint may have failed the store meanwhile: then nothing counts as durable any more.
        if let StoreState::Failed(error) = &*self.state.borrow() {
            return Err((error.clone(), batch));
        }
        self.stats.count_flush();
        self.stats.count_batch(records.into(), (batch::HEADER_BYTES + payload) as u64);
        self.ring.borrow_mut().advance_head(head);
        for pending in batch {
            let Pending { record, done, hold, .. } = pending;
            if let Some(record) = record {
                let applied = self.core.borrow_mut().apply_record(record, &self.space, &Mode::Live);
                applied.expect("records are checked before they are queued");
            }
            drop(hold);
            // A caller that went away does not care.
            let _ = done.send(Ok(()));
        }
        Ok(())
    }
}

/// The blocks of a batch, all but the header, in `spare` memory if it is large enough.
fn gather(batch: &[Pending], payload_bytes: usize, spare: Option<IoBuf>) -> IoBuf {
    let total_bytes = batch::HEADER_BYTES + payload_bytes;
    let len_bytes = total_bytes.next_multiple_of(BLOCK_BYTES);
    let spare = spare.filter(|buf| buf.capacity() >= len_bytes);
    let mut buf = spare.unwrap_or_else(|| IoBuf::zeroed(len_bytes.max(SPARE_BYTES_MIN)));
    buf.set_len(len_bytes);
    let mut at = batch::HEADER_BYTES;
    for pending in batch {
        buf[at..][..pending.bytes.len()].copy_from_slice(&pending.bytes);
        at += pending.bytes.len();
    }
    // Of an earlier batch.
    buf[total_bytes..].fill(0);
    buf
}

fn refuse(batch: Vec<Pending>, error: &StoreError) {
    for pending in batch {
        let _ = pending.done.send(Err(error.clone()));
    }
}
