//! One file per noun.

pub(crate) mod device;
pub(crate) mod doctor;
pub(crate) mod job;
pub(crate) mod key;
pub(crate) mod map;
pub(crate) mod metastore;
pub(crate) mod node;
pub(crate) mod partition;
pub(crate) mod policy;
mod rebuild;
pub(crate) mod status;
pub(crate) mod tier;
pub(crate) mod user;
pub(crate) mod what_if;
pub(crate) mod why;
