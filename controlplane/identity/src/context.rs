//! What conditions are asked about: the values of condition keys in one request, and which keys there are.

/// Values of the condition keys of one request. A key that is not set is absent. Names are as in a policy; their case
/// does not matter, but that of a tag's name behind the `/` does.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Context {
    values: Vec<(String, Vec<String>)>,
}

impl Context {
    /// Adds a value.
    pub fn set(&mut self, key: &str, value: impl Into<String>) {
        let key = normal(key);
        match self.values.iter_mut().find(|(known, _)| *known == key) {
            Some((_, values)) => values.push(value.into()),
            None => self.values.push((key, vec![value.into()])),
        }
    }

    /// The values of a key in its normal form; empty if it is absent.
    pub(crate) fn get(&self, key: &str) -> &[String] {
        let found = self.values.iter().find(|(known, _)| known == key);
        found.map_or(&[], |(_, values)| values)
    }
}

/// What the values of a key are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Text,
    Number,
    Date,
    Bool,
    Address,
    Arn,
    /// Text, any number of values.
    Set,
}

const KEYS: [(&str, Kind); 35] = [
    ("aws:currenttime", Kind::Date),
    ("aws:epochtime", Kind::Number),
    ("aws:principalaccount", Kind::Text),
    ("aws:principalarn", Kind::Arn),
    ("aws:principaltype", Kind::Text),
    ("aws:referer", Kind::Text),
    ("aws:securetransport", Kind::Bool),
    ("aws:sourceip", Kind::Address),
    ("aws:useragent", Kind::Text),
    ("aws:userid", Kind::Text),
    ("aws:username", Kind::Text),
    ("quarry:bucketowner", Kind::Text),
    ("s3:authtype", Kind::Text),
    ("s3:delimiter", Kind::Text),
    ("s3:if-match", Kind::Text),
    ("s3:if-none-match", Kind::Text),
    ("s3:max-keys", Kind::Number),
    ("s3:prefix", Kind::Text),
    ("s3:requestobjecttagkeys", Kind::Set),
    ("s3:resourceaccount", Kind::Text),
    ("s3:signatureversion", Kind::Text),
    ("s3:versionid", Kind::Text),
    ("s3:x-amz-acl", Kind::Text),
    ("s3:x-amz-content-sha256", Kind::Text),
    ("s3:x-amz-copy-source", Kind::Text),
    ("s3:x-amz-grant-full-control", Kind::Text),
    ("s3:x-amz-grant-read", Kind::Text),
    ("s3:x-amz-grant-read-acp", Kind::Text),
    ("s3:x-amz-grant-write", Kind::Text),
    ("s3:x-amz-grant-write-acp", Kind::Text),
    ("s3:x-amz-metadata-directive", Kind::Text),
    ("s3:x-amz-object-ownership", Kind::Text),
    ("s3:x-amz-server-side-encryption", Kind::Text),
    ("s3:x-amz-server-side-encryption-aws-kms-key-id", Kind::Arn),
    ("s3:x-amz-storage-class", Kind::Text),
];

/// Keys that end with the name of a tag.
const TAG_KEYS: [&str; 2] = ["s3:existingobjecttag/", "s3:requestobjecttag/"];

/// Needs the tags of the object before the decision.
pub(crate) const EXISTING_TAG: &str = TAG_KEYS[0];

/// Lower case, but for the name of a tag.
pub(crate) fn normal(key: &str) -> String {
    match key.split_once('/') {
        Some((name, tag)) => format!("{}/{tag}", name.to_ascii_lowercase()),
        None => key.to_ascii_lowercase(),
    }
}

/// The kind of a key in its normal form, if there is such a key.
pub(crate) fn kind_of(key: &str) -> Option<Kind> {
    let tagged = TAG_KEYS.iter().any(|prefix| key.strip_prefix(prefix).is_some_and(|tag| !tag.is_empty()));
    if tagged {
        return Some(Kind::Text);
    }
    KEYS.iter().find(|(name, _)| *name == key).map(|(_, kind)| *kind)
}
