//! A connection to each member of etcd, and which member is asked.
//!
//! One is asked until it fails, then the next one in order. (A channel balanced over all of them goes on to choose a
//! member that is dead: it is the least loaded, since it refuses at once.)

use std::{
    future::Future,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use etcd_client::{Client, ConnectOptions, Error};
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout},
};

use crate::MetastoreError;

/// See the module.
pub(super) struct Members {
    endpoints: Vec<(String, OnceCell<Client>)>,
    options: ConnectOptions,
    deadline: Duration,
    /// Counts up; modulo the number of members the one that is asked.
    turn: AtomicUsize,
}

/// What may be done when a member did not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Repeat {
    /// Asking the next one does no harm.
    Anywhere,
    /// It may have been done; the caller has to look.
    Never,
}

impl Members {
    pub(super) fn new(endpoints: &[String], options: ConnectOptions, deadline: Duration) -> Self {
        let endpoints = endpoints.iter().map(|url| (url.clone(), OnceCell::new())).collect();
        // Not all processes ask the same one.
        let turn = AtomicUsize::new(std::process::id() as usize);
        Self { endpoints, options, deadline, turn }
    }

    /// The turn, and a client of the member whose turn it is.
    pub(super) async fn client(&self) -> Result<(usize, Client), Error> {
        let turn = self.turn.load(Ordering::Relaxed);
        let Some((url, client)) = self.endpoints.get(turn % self.endpoints.len().max(1)) else {
            return Err(Error::InvalidArgs("no endpoints".to_owned()));
        };
        let client = client.get_or_try_init(|| Client::connect([url], Some(self.options.clone()))).await?;
        Ok((turn, client.clone()))
    }

    #[cfg(test)]
    pub(super) fn turn_to(&self, turn: usize) {
        self.turn.store(turn, Ordering::Relaxed);
    }

    /// The member of `turn` failed: the next one is asked from now on, unless somebody has said so already.
    pub(super) fn failed(&self, turn: usize) {
        let next = turn.wrapping_add(1);
        // If it is not `turn` any more, nothing is to be done.
        let _ = self.turn.compare_exchange(turn, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The answer of the first member that gives one; all of it within the deadline.
    pub(super) async fn ask<T: Send, A: Future<Output = Result<T, Error>> + Send>(
        &self,
        operation: &'static str,
        repeat: Repeat,
        ask: impl Fn(Client) -> A + Send + Sync,
    ) -> Result<T, MetastoreError> {
        let ends = Instant::now() + self.deadline;
        let mut tries = if repeat == Repeat::Anywhere { self.endpoints.len() } else { 1 };
        loop {
            let turn = self.turn.load(Ordering::Relaxed);
            let share =
                ends.saturating_duration_since(Instant::now()) / u32::try_from(tries).unwrap_or(1).max(1);
            let asked = timeout(share, async { ask(self.client().await?.1).await });
            let reason = match asked.await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} ms", share.as_millis()),
            };
            self.failed(turn);
            tries = tries.saturating_sub(1);
            if tries == 0 {
                return Err(MetastoreError::Unavailable { operation, reason });
            }
        }
    }
}
