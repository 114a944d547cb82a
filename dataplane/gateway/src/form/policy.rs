//! The policy of a form: what its signer allows to be uploaded with it.
//!
//! Every field must be named by a condition, but for the signature, the policy itself, the file, and what begins with
//! `x-ignore-`. Conditions are about the fields after `${filename}` was replaced.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use s3s::dto::{Timestamp, TimestampFormat};
use serde_json::Value;

use super::fields::Fields;
use crate::attributes::unix_ms;

/// Fields that no condition needs to name.
const FREE: [&str; 6] = ["x-amz-signature", "signature", "awsaccesskeyid", "policy", "file", "bucket"];
const IGNORED: &str = "x-ignore-";

/// What a policy demands of a field, or of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Condition {
    Equals { field: String, value: String },
    StartsWith { field: String, prefix: String },
    Length { min_bytes: u64, max_bytes: u64 },
}

/// A policy that could be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Policy {
    expires_ms: u64,
    conditions: Vec<Condition>,
}

/// What is wrong with a policy or with a form under it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error("the policy is not valid: {problem}")]
    Malformed { problem: &'static str },
    #[error("invalid according to policy: the policy has expired")]
    Expired,
    #[error("invalid according to policy: the condition on {field:?} is not met")]
    NotMet { field: String },
    #[error("invalid according to policy: there is no condition on the field {field:?}")]
    Extra { field: String },
}

impl Policy {
    /// Reads the `policy` field.
    ///
    /// # Errors
    /// [`PolicyError::Malformed`].
    pub(crate) fn parse(encoded: &str) -> Result<Self, PolicyError> {
        let malformed = |problem| PolicyError::Malformed { problem };
        let text = BASE64.decode(encoded.trim()).map_err(|_| malformed("it is not base64"))?;
        let json: Value = serde_json::from_slice(&text).map_err(|_| malformed("it is not JSON"))?;
        let expiration = json.get("expiration").and_then(Value::as_str);
        // As S3 writes it; the parser takes more.
        let expiration = expiration.filter(|text| text.contains('T') && text.ends_with('Z'));
        let expiration = expiration.and_then(|text| Timestamp::parse(TimestampFormat::DateTime, text).ok());
        let expires_ms = expiration.map(unix_ms).ok_or_else(|| malformed("it needs an expiration"))?;
        let conditions = json.get("conditions").and_then(Value::as_array);
        let conditions = conditions.ok_or_else(|| malformed("it needs a list of conditions"))?;
        let mut all = Vec::with_capacity(conditions.len());
        for condition in conditions {
            match condition {
                Value::Object(pairs) if !pairs.is_empty() => {
                    for (field, value) in pairs {
                        let value = value.as_str().ok_or_else(|| malformed("values are texts"))?;
                        all.push(Condition::Equals {
                            field: field.to_ascii_lowercase(),
                            value: value.to_owned(),
                        });
                    }
                }
                Value::Array(items) => {
                    all.push(operator(items).ok_or_else(|| malformed("a condition is not known"))?);
                }
                _ => return Err(malformed("a condition is neither an object nor a list")),
            }
        }
        Ok(Self { expires_ms, conditions: all })
    }

    /// Whether a form may be uploaded to a bucket, but for the length of its file.
    ///
    /// # Errors
    /// What is not met first.
    pub(crate) fn check(&self, fields: &Fields, bucket: &str, now_ms: u64) -> Result<(), PolicyError> {
        if now_ms >= self.expires_ms {
            return Err(PolicyError::Expired);
        }
        for condition in &self.conditions {
            let (field, met) = match condition {
                Condition::Equals { field, value } => (field, given(fields, field, bucket) == Some(value)),
                Condition::StartsWith { field, prefix } => {
                    let text = given(fields, field, bucket).or(prefix.is_empty().then_some(""));
                    (field, text.is_some_and(|text| text.starts_with(prefix)))
                }
                Condition::Length { .. } => continue,
            };
            if !met {
                return Err(PolicyError::NotMet { field: field.clone() });
            }
        }
        let named = |name: &str| {
            self.conditions.iter().any(|condition| match condition {
                Condition::Equals { field, .. } | Condition::StartsWith { field, .. } => field == name,
                Condition::Length { .. } => false,
            })
        };
        let is_free = |name: &str| FREE.contains(&name) || name.starts_with(IGNORED);
        match fields.values.keys().find(|name| !is_free(name) && !named(name)) {
            Some(field) => Err(PolicyError::Extra { field: field.clone() }),
            None => Ok(()),
        }
    }

    /// The least and the most bytes that the file may have.
    pub(crate) fn length_range(&self) -> (u64, u64) {
        self.conditions.iter().fold((0, u64::MAX), |(min, max), condition| match condition {
            Condition::Length { min_bytes, max_bytes } => (min.max(*min_bytes), max.min(*max_bytes)),
            _ => (min, max),
        })
    }
}

/// The value of a field. The bucket is that of the request, whatever a field says.
fn given<'a>(fields: &'a Fields, name: &str, bucket: &'a str) -> Option<&'a str> {
    if name == "bucket" { Some(bucket) } else { fields.get(name) }
}

fn operator(items: &[Value]) -> Option<Condition> {
    let [operator, first, second] = items else { return None };
    let field = || first.as_str()?.strip_prefix('$').map(str::to_ascii_lowercase);
    let text = || second.as_str().map(str::to_owned);
    let bytes = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
    Some(match operator.as_str()?.to_ascii_lowercase().as_str() {
        "eq" => Condition::Equals { field: field()?, value: text()? },
        "starts-with" => Condition::StartsWith { field: field()?, prefix: text()? },
        "content-length-range" => {
            let (min_bytes, max_bytes) = (bytes(first)?, bytes(second)?);
            (min_bytes <= max_bytes).then_some(Condition::Length { min_bytes, max_bytes })?
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(conditions: &str) -> Result<Policy, PolicyError> {
        let text = format!(r#"{{"expiration": "2030-01-01T00:00:00.000Z", "conditions": [{conditions}]}}"#);
        Policy::parse(&BASE64.encode(text))
    }

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        let values = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Fields { values, file_name: String::new() }
    }

    const NOW: u64 = 1_800_000_000_000;

    #[test]
    fn every_field_and_condition_counts() {
        let given = [("key", "user/a"), ("acl", "private"), ("x-ignore-me", "1"), ("policy", "p")];
        for (conditions, outcome) in [
            (r#"{"bucket": "b"}, ["starts-with", "$key", "user/"], {"ACL": "private"}"#, Ok(())),
            (r#"["eq", "$Key", "user/a"], ["starts-with", "$acl", ""]"#, Ok(())),
            (
                r#"["starts-with", "$key", ""], ["starts-with", "$acl", ""], ["starts-with", "$none", ""]"#,
                Ok(()),
            ),
            (r#"["starts-with", "$key", "other/"], {"acl": "private"}"#, Err("key")),
            (r#"["eq", "$key", "user/"], {"acl": "private"}"#, Err("key")),
            (r#"["starts-with", "$key", ""]"#, Err("acl")),
            (r#"["starts-with", "$key", ""], {"acl": "private"}, {"bucket": "c"}"#, Err("bucket")),
            (r#"["starts-with", "$key", ""], {"acl": "private"}, {"none": ""}"#, Err("none")),
        ] {
            let checked = policy(conditions).unwrap().check(&fields(&given), "b", NOW);
            let field = checked.map_err(|error| match error {
                PolicyError::NotMet { field } | PolicyError::Extra { field } => field,
                other => other.to_string(),
            });
            assert_eq!(field, outcome.map_err(str::to_owned), "{conditions}");
        }
        let open = policy("").unwrap();
        assert_eq!(open.check(&fields(&[]), "b", NOW), Ok(()));
        assert_eq!(open.check(&fields(&[]), "b", 1_893_456_000_000), Err(PolicyError::Expired));
    }

    #[test]
    fn lengths_narrow_and_nonsense_is_refused() {
        let both = r#"["content-length-range", 5, "100"], ["content-length-range", 0, 50]"#;
        assert_eq!(policy(both).unwrap().length_range(), (5, 50));
        assert_eq!(policy("").unwrap().length_range(), (0, u64::MAX));
        for bad in [
            "7",
            "{}",
            r#"{"key": 1}"#,
            r#"["eq", "key", "x"]"#,
            r#"["like", "$key", "x"]"#,
            r#"["content-length-range", 9, 3]"#,
            r#"["content-length-range", -1, 3]"#,
            r#"["eq", "$key"]"#,
        ] {
            assert!(matches!(policy(bad), Err(PolicyError::Malformed { .. })), "{bad}");
        }
        for bad in [
            "{}",
            r#"{"conditions": []}"#,
            r#"{"expiration": "tomorrow", "conditions": []}"#,
            r#"{"expiration": "2030-01-01 00:00:00+00:00", "conditions": []}"#,
            r#"{"expiration": "2030-01-01T00:00:00Z"}"#,
            r#"{"expiration": "2030-01-01T00:00:00Z", "CONDITIONS": []}"#,
            "[",
        ] {
            assert!(Policy::parse(&BASE64.encode(bad)).is_err(), "{bad}");
        }
        assert!(Policy::parse("*").is_err());
    }
}
