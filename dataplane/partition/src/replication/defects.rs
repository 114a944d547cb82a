//! Mistakes that the simulator must catch. All absent, but in its own tests: nothing else can set one.

/// Which rules are broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Defects {
    /// Messages of lower epochs are taken, and a primary that hears of a higher one goes on.
    pub(super) no_fencing: bool,
    /// What was received counts as flushed.
    pub(super) acknowledge_before_flush: bool,
    /// Joiners are not waited for.
    pub(super) commit_without_joiners: bool,
    /// The slowest in-sync member is not waited for.
    pub(super) commit_without_slowest: bool,
    /// A member keeps its own entries where they differ from the primary's.
    pub(super) keep_differing_tails: bool,
    /// A primary answers as soon as its logs are equal, without activation.
    pub(super) serve_before_activation: bool,
    /// A joiner is reported whole when its last page was proposed, not when it is committed.
    pub(super) report_joined_early: bool,
    /// A primary serves without leases.
    pub(super) serve_without_lease: bool,
    /// A granter that restarts does not wait for what it may have granted.
    pub(super) forget_grants: bool,
    /// A new primary does not wait for what it has granted.
    pub(super) ignore_grants: bool,
    /// A primary holds a lease as long as it is granted, as if all clocks had one rate.
    pub(super) ignore_clock_rates: bool,
    /// A lease is counted from when the acknowledgement arrives.
    pub(super) lease_from_arrival: bool,
    /// A primary that hands over gives its leases back, and serves on.
    pub(super) serve_after_release: bool,
    /// The leases of joiners that are whole are not needed.
    pub(super) no_lease_of_joiners: bool,
    /// A joiner keeps rows of which it does not know that they are whole.
    pub(super) resume_in_part: bool,
    /// A joiner keeps its rows although the primary cannot send all that is missing.
    pub(super) resume_over_a_gap: bool,
    /// A joiner that keeps its rows keeps the uncommitted end of its log too.
    pub(super) resume_with_tail: bool,
}
