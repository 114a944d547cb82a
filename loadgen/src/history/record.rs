//! One line of a history.

use hyper::StatusCode;
use serde::Serialize;

use crate::client::Failure;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Put,
    Create,
    Replace,
    Delete,
    Get,
    Head,
    List,
}

impl Kind {
    pub(super) fn stores(self) -> bool {
        matches!(self, Self::Put | Self::Create | Self::Replace)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Ok,
    Refused,
    Failed,
    Unknown,
}

impl Outcome {
    /// Of an attempt that was not acknowledged.
    pub(super) fn of(failure: &Failure, kind: Kind) -> Self {
        match failure {
            Failure::Http { status: StatusCode::PRECONDITION_FAILED, .. } if kind.stores() => Self::Refused,
            // The object that it would replace is not there.
            Failure::Http { status: StatusCode::NOT_FOUND, code }
                if kind == Kind::Replace && code == "NoSuchKey" =>
            {
                Self::Refused
            }
            Failure::Connect(_) => Self::Failed,
            Failure::Http { status, .. }
                if status.is_client_error() || matches!(status.as_u16(), 503 | 507) =>
            {
                Self::Failed
            }
            Failure::Http { .. } | Failure::Lost(_) | Failure::Timeout(_) | Failure::Protocol(_) => {
                Self::Unknown
            }
        }
    }
}

/// An attempt, or what a listing said of one key. Times are microseconds since the start.
#[derive(Clone, Serialize)]
pub(super) struct Record<'a> {
    pub(super) client: u32,
    pub(super) call: u64,
    pub(super) attempt: u32,
    pub(super) node: usize,
    pub(super) key: &'a str,
    pub(super) kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) replaces: Option<u64>,
    pub(super) intended: u64,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) outcome: Outcome,
    pub(super) read: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) wrong: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::{Failure, Kind, Outcome};

    #[test]
    fn what_may_have_happened() {
        let http = |status: u16, code: &str| Failure::Http {
            status: status.try_into().unwrap(),
            code: code.to_owned(),
        };
        let of = |failure: &Failure, kind| Outcome::of(failure, kind);
        assert_eq!(of(&http(412, "PreconditionFailed"), Kind::Create), Outcome::Refused);
        assert_eq!(of(&http(404, "NoSuchKey"), Kind::Replace), Outcome::Refused);
        assert_eq!(of(&http(404, "NoSuchBucket"), Kind::Replace), Outcome::Failed);
        assert_eq!(of(&http(503, "ServiceUnavailable"), Kind::Put), Outcome::Failed);
        assert_eq!(of(&http(500, "InternalError"), Kind::Put), Outcome::Unknown);
        assert_eq!(of(&Failure::Timeout(std::time::Duration::ZERO), Kind::Delete), Outcome::Unknown);
        assert_eq!(of(&Failure::Connect(std::io::ErrorKind::TimedOut.into()), Kind::Put), Outcome::Failed);
    }
}
