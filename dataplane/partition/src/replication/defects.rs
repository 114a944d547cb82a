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
}
