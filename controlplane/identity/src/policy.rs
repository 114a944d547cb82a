//! A parsed policy, and whether one of its statements applies to a request.

use crate::action::ActionSet;
use crate::condition::Condition;
use crate::decide::Request;
use crate::parse::{self, PolicyError};
use crate::pattern::Pattern;
use crate::principal::Principals;

/// A policy, understood whole.
#[derive(Clone, PartialEq, Debug)]
pub struct Policy {
    pub(crate) statements: Vec<Statement>,
    pub(crate) asks_existing_tags: bool,
}

/// One statement.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Statement {
    pub(crate) denies: bool,
    pub(crate) principals: Principals,
    /// `NotAction` is turned into the other actions.
    pub(crate) actions: ActionSet,
    pub(crate) resources: Resources,
    pub(crate) conditions: Vec<Condition>,
}

/// What a statement is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Resources {
    These(Vec<Pattern>),
    AllBut(Vec<Pattern>),
}

impl Policy {
    /// Parses a policy that is attached to users.
    ///
    /// # Errors
    /// The first thing that is not understood.
    pub fn of_user(document: &str) -> Result<Self, PolicyError> {
        parse::policy(document, None)
    }

    /// Parses the policy of a bucket.
    ///
    /// # Errors
    /// The first thing that is not understood, or that cannot concern this bucket.
    pub fn of_bucket(document: &str, bucket: &str) -> Result<Self, PolicyError> {
        parse::policy(document, Some(bucket))
    }

    /// What stands in for a stored policy that cannot be understood: everything is denied.
    pub fn deny_all() -> Self {
        let everything = Statement {
            denies: true,
            principals: Principals::Holder,
            actions: ActionSet::matching("*").expect("a wildcard is an action"),
            resources: Resources::These(vec![Pattern::wildcards("*")]),
            conditions: Vec::new(),
        };
        Self { statements: vec![everything], asks_existing_tags: false }
    }

    /// Whether a condition asks for the tags that the object has, so that they are read before the decision.
    pub fn asks_existing_tags(&self) -> bool {
        self.asks_existing_tags
    }
}

impl Statement {
    /// All but the effect.
    pub(crate) fn applies(&self, request: &Request<'_>) -> bool {
        self.actions.contains(request.action)
            && self.principals.name(request.principal, self.denies)
            && self.resources.contain(request)
            && self.conditions.iter().all(|condition| condition.holds(request.context))
    }
}

impl Resources {
    fn contain(&self, request: &Request<'_>) -> bool {
        let any = |patterns: &[Pattern]| {
            patterns.iter().any(|pattern| pattern.matches_in(request.resource, request.context))
        };
        match self {
            Self::These(patterns) => any(patterns),
            Self::AllBut(patterns) => !any(patterns),
        }
    }
}
