//! Peer leases: why a deposed primary answers no read, although it may not know that it is deposed.
//!
//! Fencing alone keeps a deposed primary from committing. Its reads need time: a primary answers, and commits, only
//! while it holds a lease of *every* in-sync peer, and of every joiner from the moment it calls it whole.
//!
//! - **Asking.** Each message of a primary carries its own clock. A peer that takes the message grants
//!   [`LeaseTimes::grant_ms`] from then on by its own clock, and echoes the reading in its acknowledgements. The
//!   primary counts [`LeaseTimes::hold_ms`] from the reading, so from before the grant began. No two clocks are
//!   compared; only their rates must differ by less than [`CLOCK_RATE_PERCENT`].
//! - **Waiting.** A new primary asks for activation only when everything it granted to others has run out by its
//!   own clock. The others need not wait.
//! - **Restart.** A replica that starts again has forgotten what it granted, so it counts one whole grant from its
//!   first step.
//! - **Giving back.** A primary that hands over stops for good, or until it has asked anew, and says so by `Release`.
//!   If nobody takes over in time it asks anew by itself; a granter that became primary refuses it by its epoch. One that
//!   is told of a new epoch with another primary has stopped for good, and says the same. Nothing depends on that it is heard.
//!
//! **Argument.** Claim: once the primary N of epoch f serves, the primary O of an epoch e < f (another device) does
//! not serve any more. By induction over f. N is in-sync in f.
//! 1. N was in-sync in e, or O had called it whole in e: O needs N's lease, granted in e, so before N made a higher
//!    epoch its own; N grants nothing in e after that, and has waited until its grants ran out, or O had given them back.
//! 2. Else N became in-sync in between, because the primary Q of an epoch g, e < g < f, called it whole after
//!    committing its last page. Q served then, and by the claim for g, O did not any more. If Q and O are one device,
//!    it had left e for g. (g = e is case 1.)
//!
//! A reconfiguration may therefore remove any granter: whoever is electable is a granter itself, or was made whole by
//! a primary after the leases of all earlier ones. What must not be done is to name a primary that no primary made
//! whole.

use quarry_clustermap::{DeviceId, Epoch};

/// By how much the rates of two machines' monotonic clocks may differ.
pub const CLOCK_RATE_PERCENT: u64 = 10;

/// How long leases last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseTimes {
    /// How long a granter keeps its word, in milliseconds of its clock.
    pub grant_ms: u64,
    /// How long a primary trusts it, counted from when it asked, in milliseconds of its clock.
    pub hold_ms: u64,
}

impl LeaseTimes {
    /// Leases of `grant_ms`, held for what is safe between clocks of the bounded rates. Two milliseconds are taken
    /// off because clocks are read in whole ones.
    pub fn new(grant_ms: u64) -> Self {
        Self { grant_ms, hold_ms: (grant_ms * 100 / (100 + CLOCK_RATE_PERCENT)).saturating_sub(2) }
    }

    /// An idle primary asks again after this, in milliseconds: three messages may get lost.
    pub(super) fn renew_ms(self) -> u64 {
        self.hold_ms / 4
    }
}

/// The newest grant.
#[derive(Clone, Copy, Debug)]
struct Grant {
    to: DeviceId,
    epoch: Epoch,
    /// The asker's clock, to echo.
    asked_ms: u64,
    until_ms: u64,
}

/// What one replica has granted.
#[derive(Debug, Default)]
pub(super) struct Grants {
    newest: Option<Grant>,
    /// When everything before `newest` has run out.
    older_until_ms: u64,
}

impl Grants {
    /// Counts what an earlier run may have granted.
    pub(super) fn restarted(&mut self, until_ms: u64) {
        self.older_until_ms = until_ms;
    }

    /// Grants to the primary of the epoch in force. A message that was overtaken extends nothing.
    pub(super) fn grant(&mut self, to: DeviceId, epoch: Epoch, asked_ms: u64, until_ms: u64) {
        match &mut self.newest {
            Some(grant) if grant.to == to && grant.epoch == epoch => {
                if asked_ms > grant.asked_ms {
                    grant.asked_ms = asked_ms;
                    grant.until_ms = grant.until_ms.max(until_ms);
                }
            }
            newest => {
                if let Some(old) = newest.replace(Grant { to, epoch, asked_ms, until_ms }) {
                    self.older_until_ms = self.older_until_ms.max(old.until_ms);
                }
            }
        }
    }

    /// What to echo to the primary of an epoch; 0: nothing was granted.
    pub(super) fn echo(&self, epoch: Epoch) -> u64 {
        self.newest.filter(|grant| grant.epoch == epoch).map_or(0, |grant| grant.asked_ms)
    }

    /// The holder gives back what it asked for up to a reading of its clock.
    pub(super) fn released(&mut self, by: DeviceId, epoch: Epoch, asked_ms: u64) {
        let given_back =
            |grant: &mut Grant| grant.to == by && grant.epoch == epoch && grant.asked_ms <= asked_ms;
        if let Some(grant) = self.newest.as_mut()
            && given_back(grant)
        {
            grant.until_ms = 0;
            // A message that the release has overtaken asks for nothing any more.
            grant.asked_ms = asked_ms;
        }
    }

    /// Whether all grants have run out.
    pub(super) fn are_over(&self, now_ms: u64) -> bool {
        let newest_ms = self.newest.map_or(0, |grant| grant.until_ms);
        // A reading of whole milliseconds may be almost one behind.
        now_ms > newest_ms.max(self.older_until_ms)
    }
}
