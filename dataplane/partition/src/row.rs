//! A row mutation: what a committed log entry does to the ordered rows of its partition.

use rkyv::{Archive, Deserialize, Serialize};

/// One row set or removed. Keys are those of the partition: without the prefix that the index adds.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Row {
    /// Ordered bytewise; see `command::rows` for the layout.
    pub key: Vec<u8>,
    /// The new value; `None` removes the row.
    pub value: Option<Vec<u8>>,
}
