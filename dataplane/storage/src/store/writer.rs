//! The journal's writer: the one task that writes batches and decides between them where a checkpoint begins.

use std::rc::Rc;

use super::core::Mode;
use super::{Inner, StoreError, StoreState};
use crate::device::Device;
use crate::format::batch;
use crate::journal::{Pending, Ring};

impl<D: Device + 'static> Inner<D> {
    /// Runs until the store is shut down or fails.
    pub(super) async fn run_writer(self: Rc<Self>) {
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
                let written = self.write_batch(batch).await;
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

    /// One batch: write, one flush, apply in order, tell the waiters.
    async fn write_batch(&self, batch: Vec<Pending>) -> Result<(), (StoreError, Vec<Pending>)> {
        let payload: usize = batch.iter().map(|pending| pending.bytes.len()).sum();
        let mut bytes = Vec::with_capacity(batch::HEADER_BYTES + payload);
        bytes.resize(batch::HEADER_BYTES, 0);
        batch.iter().for_each(|pending| bytes.extend_from_slice(&pending.bytes));
        let records = u32::try_from(batch.len()).expect("a batch is bounded by bytes");
        let ring = self.ring.borrow().clone();
        let head = match Ring::write(ring, &*self.device, bytes, records).await {
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

fn refuse(batch: Vec<Pending>, error: &StoreError) {
    for pending in batch {
        let _ = pending.done.send(Err(error.clone()));
    }
}
