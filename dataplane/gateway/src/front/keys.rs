//! Signing keys that were derived before. Deriving one takes four HMACs; a client uses one for a day.
//!
//! Invariant: only keys of verified signatures are kept, so whoever knows no secret cannot push them out; and a key is
//! used only with the secret it was derived from, so a changed secret counts at once.

use std::cell::RefCell;
use std::collections::HashMap;

use hmac::{Hmac, KeyInit as _, Mac as _};
use s3s::auth::SecretKey;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

/// Keys that a core keeps; then all are forgotten.
const KEPT_MAX: usize = 1024;

/// A keyed HMAC: a copy of it costs no hashing.
pub(crate) type SigningKey = Hmac<Sha256>;

/// See the module.
#[derive(Default)]
pub(crate) struct SigningKeys {
    /// By `access key/date/region`.
    kept: RefCell<HashMap<Box<str>, (SecretKey, SigningKey)>>,
}

impl SigningKeys {
    /// The key for a credential, whose scope is `date/region/s3/aws4_request`; the second is whether it was kept.
    pub(crate) fn get(&self, credential: &str, secret: &SecretKey, scope: &str) -> (SigningKey, bool) {
        if let Some((of, key)) = self.kept.borrow().get(credential)
            && bool::from(of.expose().as_bytes().ct_eq(secret.expose().as_bytes()))
        {
            return (key.clone(), true);
        }
        (derive(secret, scope), false)
    }

    /// Keeps a key that a signature was verified with.
    pub(crate) fn keep(&self, credential: &str, secret: &SecretKey, key: &SigningKey) {
        let mut kept = self.kept.borrow_mut();
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(credential.into(), (secret.clone(), key.clone()));
    }
}

/// The key that signs in a scope.
pub(crate) fn derive(secret: &SecretKey, scope: &str) -> SigningKey {
    let secret = format!("AWS4{}", secret.expose()).into_bytes();
    let key = scope
        .split('/')
        .fold(secret, |key, part| keyed(&key).chain_update(part.as_bytes()).finalize().into_bytes().to_vec());
    keyed(&key)
}

fn keyed(key: &[u8]) -> SigningKey {
    Hmac::new_from_slice(key).expect("a key of HMAC may have any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPE: &str = "20260102/r/s3/aws4_request";

    fn sign(key: SigningKey) -> Vec<u8> {
        key.chain_update(b"text").finalize().into_bytes().to_vec()
    }

    #[test]
    fn a_changed_secret_counts_at_once() {
        let keys = SigningKeys::default();
        let (old, new) = (SecretKey::from("old"), SecretKey::from("new"));
        let (key, kept) = keys.get("a/20260102/r", &old, SCOPE);
        assert!(!kept);
        keys.keep("a/20260102/r", &old, &key);
        assert!(keys.get("a/20260102/r", &old, SCOPE).1);
        let (other, kept) = keys.get("a/20260102/r", &new, SCOPE);
        assert!(!kept && sign(other) == sign(derive(&new, SCOPE)) && sign(key) != sign(derive(&new, SCOPE)));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let keys = SigningKeys::default();
        let secret = SecretKey::from("s");
        for region in 0..2 * KEPT_MAX + 1 {
            keys.keep(&format!("a/20260102/{region}"), &secret, &derive(&secret, SCOPE));
        }
        assert!(keys.kept.borrow().len() <= KEPT_MAX);
    }
}
