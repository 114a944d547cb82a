//! Who signed a form: the policy, as it was sent, is what is signed.
//!
//! Version 4 (`x-amz-signature`), and the older form with HMAC-SHA1 (`signature`) that many programs which make forms
//! still use; requests of other kinds are taken in version 4 only. Signatures are compared in constant time.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use sha2::Sha256;

use super::fields::Fields;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// A signature that is not verified yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Signature<'a> {
    pub(crate) access_key: &'a str,
    kind: Kind<'a>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Kind<'a> {
    /// `date/region/s3/aws4_request`, and the signature in hexadecimal.
    V4 { scope: &'a str, signature: &'a str },
    /// In base64.
    V2 { signature: &'a str },
}

/// Why there is no signature to verify.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum SignatureError {
    /// The form has none at all.
    Unsigned,
    /// This field is missing.
    Missing(&'static str),
    /// This field makes no sense.
    Invalid(&'static str),
}

impl<'a> Signature<'a> {
    pub(crate) fn of(fields: &'a Fields) -> Result<Self, SignatureError> {
        let need = |name: &'static str| fields.get(name).ok_or(SignatureError::Missing(name));
        if fields.get("x-amz-signature").is_none() && fields.get("x-amz-algorithm").is_none() {
            return match (fields.get("awsaccesskeyid"), fields.get("signature")) {
                (None, None) => Err(SignatureError::Unsigned),
                (None, Some(_)) => Err(SignatureError::Missing("awsaccesskeyid")),
                (Some(_), None) => Err(SignatureError::Missing("signature")),
                (Some(access_key), Some(signature)) => {
                    Ok(Self { access_key, kind: Kind::V2 { signature: signature.trim() } })
                }
            };
        }
        if need("x-amz-algorithm")? != ALGORITHM {
            return Err(SignatureError::Invalid("x-amz-algorithm"));
        }
        let invalid = SignatureError::Invalid("x-amz-credential");
        // An access key id may hold slashes, so the scope is cut off from the end.
        let credential = need("x-amz-credential")?;
        let at = credential.rmatch_indices('/').nth(3).map(|(at, _)| at).ok_or(invalid.clone())?;
        let (access_key, scope) = (&credential[..at], &credential[at + 1..]);
        let parts: Vec<&str> = scope.split('/').collect();
        let [date, _region, "s3", "aws4_request"] = parts[..] else { return Err(invalid) };
        let is_date = date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit());
        if !is_date || !need("x-amz-date")?.starts_with(date) {
            return Err(SignatureError::Invalid("x-amz-date"));
        }
        Ok(Self { access_key, kind: Kind::V4 { scope, signature: need("x-amz-signature")? } })
    }

    /// Whether it is that of this secret over a policy.
    pub(crate) fn verify(&self, secret_key: &str, policy: &str) -> bool {
        match self.kind {
            Kind::V4 { scope, signature } => {
                let secret = format!("AWS4{secret_key}").into_bytes();
                let key = scope.split('/').fold(secret, |key, part| {
                    hmac_sha256(&key).chain_update(part).finalize().into_bytes().to_vec()
                });
                let Ok(signature) = hex::decode(signature) else { return false };
                hmac_sha256(&key).chain_update(policy).verify_slice(&signature).is_ok()
            }
            Kind::V2 { signature } => {
                let Ok(signature) = BASE64.decode(signature) else { return false };
                let mac = Hmac::<Sha1>::new_from_slice(secret_key.as_bytes()).expect("any length is a key");
                mac.chain_update(policy).verify_slice(&signature).is_ok()
            }
        }
    }
}

fn hmac_sha256(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("any length is a key")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        let values = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Fields { values, file_name: String::new() }
    }

    #[test]
    fn signatures_are_those_of_s3() {
        // Computed with an independent implementation over the policy "cG9saWN5".
        let v4 = fields(&[
            ("x-amz-algorithm", "AWS4-HMAC-SHA256"),
            ("x-amz-credential", "a/b/20260102/us-east-1/s3/aws4_request"),
            ("x-amz-date", "20260102T030405Z"),
            ("x-amz-signature", V4_SIGNATURE),
        ]);
        let signature = Signature::of(&v4).unwrap();
        assert_eq!(signature.access_key, "a/b");
        assert!(signature.verify("secret", "cG9saWN5"));
        assert!(!signature.verify("secreT", "cG9saWN5") && !signature.verify("secret", "cG9saWN4"));
        let v2 = fields(&[("awsaccesskeyid", "a"), ("signature", V2_SIGNATURE)]);
        let signature = Signature::of(&v2).unwrap();
        assert!(signature.verify("secret", "cG9saWN5") && !signature.verify("secret", "cG9saWN4"));
    }

    const V4_SIGNATURE: &str = "f8500842de2d0f748d1b8a7eb87906476fc00841e5ae3f6764dd12279e044fae";
    const V2_SIGNATURE: &str = "xjcOd3+I0tu58AF8jUmwdfvwgBU=";

    #[test]
    fn half_a_signature_is_none() {
        let scope = "a/20260102/r/s3/aws4_request";
        for (pairs, error) in [
            (vec![], SignatureError::Unsigned),
            (vec![("signature", "x")], SignatureError::Missing("awsaccesskeyid")),
            (vec![("awsaccesskeyid", "x")], SignatureError::Missing("signature")),
            (vec![("x-amz-signature", "x")], SignatureError::Missing("x-amz-algorithm")),
            (vec![("x-amz-algorithm", "none")], SignatureError::Invalid("x-amz-algorithm")),
            (vec![("x-amz-algorithm", ALGORITHM)], SignatureError::Missing("x-amz-credential")),
            (
                vec![("x-amz-algorithm", ALGORITHM), ("x-amz-credential", "a/b/c")],
                SignatureError::Invalid("x-amz-credential"),
            ),
            (
                vec![
                    ("x-amz-algorithm", ALGORITHM),
                    ("x-amz-credential", scope),
                    ("x-amz-date", "20260103T000000Z"),
                ],
                SignatureError::Invalid("x-amz-date"),
            ),
            (
                vec![
                    ("x-amz-algorithm", ALGORITHM),
                    ("x-amz-credential", scope),
                    ("x-amz-date", "20260102T000000Z"),
                ],
                SignatureError::Missing("x-amz-signature"),
            ),
        ] {
            assert_eq!(Signature::of(&fields(&pairs)).unwrap_err(), error, "{pairs:?}");
        }
    }
}
