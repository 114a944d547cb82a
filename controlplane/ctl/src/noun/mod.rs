//! One file per noun.

pub(crate) mod key;
pub(crate) mod policy;
pub(crate) mod user;
