//! Who asks, and whether it is allowed.
//!
//! s3s verifies the signature with the secret that [`Identities`] finds, and then asks [`Access`] before anything else is
//! done: the operation's action and resource (`operation`), what conditions may ask about (`circumstances`), the policies
//! of the user and the bucket. What else a request needs is asked on the way: the source of a copy, every key of a
//! DeleteObjects, and whether a missing key may be told.
//!
//! The root credential on a bucket without a policy is let through at once. Policies of users are parsed when the table is
//! made; those of buckets once per revision and core.
//!
//! A bucket that does not exist is answered here: nothing is done to one that appears after the decision.

pub(crate) mod acl;
pub(crate) mod blocks;
pub(crate) mod circumstances;
mod operation;
pub(crate) mod ownership;
pub(crate) mod policy;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use async_trait::async_trait;
use http::{Extensions, HeaderMap};
use quarry_identity::{
    ARN_PREFIX, Action, Context, Decision, Policy, Principal, Request, UserTable, decide, of_object_can_allow,
};
use quarry_meter::stage::{self, Stage};
use quarry_object::api::{BucketInfo, Conditions, DocumentKind, ObjectStore, Selector, Tags, VersionId};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::{CopySource, PutObjectTaggingInput};
use s3s::path::S3Path;
use s3s::{S3Error, S3ErrorCode, S3Request, S3Result};
use send_wrapper::SendWrapper;

use self::operation::Need;
use crate::backend::Core;
use crate::body::is_aws_chunked;
use crate::error::{from_api, refuse};
use crate::exchange::{Exchange, ExchangeHandle};
use crate::front::range::VerifiedHandle;

/// Policies of buckets that a core keeps parsed.
const POLICIES_CACHED_MAX: usize = 1024;
const EXPECTED_OWNER: &str = "x-amz-expected-bucket-owner";
const EXPECTED_SOURCE_OWNER: &str = "x-amz-source-expected-bucket-owner";
/// Whose bodies we decode ourselves (see `chunked`); S3 allows the framing for no other. What s3s has for it, which
/// holds a chunk whole, is never asked for a byte.
const CHUNKED_OPERATIONS: [&str; 2] = ["PutObject", "UploadPart"];

/// The root credential, and the users of this moment.
pub(crate) struct Identities {
    pub(crate) root_key: String,
    pub(crate) root_secret: SecretKey,
    pub(crate) users: Rc<dyn Fn() -> Arc<UserTable>>,
}

impl Identities {
    /// Whose an access key is, and its secret.
    ///
    /// # Errors
    /// `InvalidAccessKeyId`: nobody's, or it is disabled.
    pub(crate) fn find(&self, access_key: &str) -> S3Result<(Principal, SecretKey)> {
        if access_key == self.root_key {
            return Ok((Principal::Root, self.root_secret.clone()));
        }
        let users = (self.users)();
        match users.keys.get(access_key) {
            Some(key) if key.enabled => {
                Ok((Principal::User(key.user.clone()), SecretKey::from(key.secret.reveal())))
            }
            _ => Err(unknown_key()),
        }
    }
}

/// [`Identities`] as s3s asks for them.
pub(crate) struct Authentication(pub(crate) SendWrapper<Rc<Identities>>);

#[async_trait]
impl S3Auth for Authentication {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        begin_auth();
        self.0.find(access_key).map(|(_, secret)| secret)
    }
}

/// The request is parsed, and it is now asked who sent it and whether it is allowed.
fn begin_auth() {
    if let Some(stages) = stage::current() {
        stages.end(Stage::Parse);
        stages.begin(Stage::Auth);
    }
}

fn unknown_key() -> S3Error {
    refuse(S3ErrorCode::InvalidAccessKeyId, "the access key id does not exist or is disabled")
}

fn denied() -> S3Error {
    refuse(S3ErrorCode::AccessDenied, "access denied")
}

/// Who asks, and what conditions may ask about.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) principal: Principal,
    pub(crate) context: Context,
}

/// Who sent a request that passed [`Access`].
pub(crate) fn caller(extensions: &Extensions) -> Rc<Caller> {
    let exchange = extensions.get::<ExchangeHandle>().expect("every request carries its exchange");
    exchange.exchange.caller.borrow().clone().expect("a request is judged before it is served")
}

/// One question.
#[derive(Clone, Copy)]
struct Weighed<'a> {
    caller: &'a Caller,
    action: Action,
    bucket: &'a BucketInfo,
    key: Option<&'a str>,
}

/// Policies of buckets by name and revision.
#[derive(Default)]
pub(crate) struct Policies {
    parsed: RefCell<BTreeMap<String, (u64, Rc<Policy>)>>,
}

impl Policies {
    /// The policy of a bucket. One that is not understood denies everything.
    fn of(&self, bucket: &BucketInfo) -> Option<Rc<Policy>> {
        let document = bucket.config.document(DocumentKind::Policy)?;
        let mut parsed = self.parsed.borrow_mut();
        if let Some((revision, policy)) = parsed.get(&bucket.name)
            && *revision == bucket.revision
        {
            return Some(Rc::clone(policy));
        }
        let policy = Policy::of_bucket(document, &bucket.name).unwrap_or_else(|error| {
            tracing::error!(event = "bucket_policy_damaged", bucket = bucket.name, %error);
            Policy::deny_all()
        });
        let policy = Rc::new(policy);
        if parsed.len() >= POLICIES_CACHED_MAX {
            parsed.clear();
        }
        parsed.insert(bucket.name.clone(), (bucket.revision, Rc::clone(&policy)));
        Some(policy)
    }
}

impl<S: ObjectStore> Core<S> {
    /// What policies, and the list of the bucket, say. `tags` are those that the object has, where a policy asks for them.
    fn weigh(&self, asked: &Weighed<'_>, tags: Option<&Tags>) -> Decision {
        let Weighed { caller, action, bucket, key } = *asked;
        let policy = self.policies.of(bucket);
        if policy.is_none() && caller.principal == Principal::Root {
            return Decision::Allow;
        }
        let resource = match key {
            Some(key) => format!("{ARN_PREFIX}{}/{key}", bucket.name),
            None => format!("{ARN_PREFIX}{}", bucket.name),
        };
        let mut caller = Cow::Borrowed(caller);
        if let Principal::User(owner) = ownership::owner(bucket) {
            caller.to_mut().context.set(circumstances::BUCKET_OWNER, owner);
        }
        for (name, value) in tags.into_iter().flatten() {
            caller.to_mut().context.set(&format!("s3:ExistingObjectTag/{name}"), value.as_str());
        }
        let decision = self.decide(&caller, action, policy.as_deref(), &resource);
        let outsider = caller.principal == Principal::Anonymous;
        let restricted = outsider
            && policy.is_some_and(|policy| policy.is_public())
            && blocks::of(bucket).restrict_public_buckets;
        match decision {
            Decision::Allow if restricted => Decision::Deny,
            Decision::ImplicitDeny if acl::grants(self, (bucket, None), &caller.principal, action) => {
                Decision::Allow
            }
            other => other,
        }
    }

    /// Whether a policy that counts for a request asks for the tags that the object has.
    fn asks_tags(&self, asked: &Weighed<'_>) -> bool {
        let knows_tags = matches!(
            asked.action,
            Action::GetObject
                | Action::GetObjectVersion
                | Action::GetObjectAcl
                | Action::GetObjectVersionAcl
                | Action::PutObjectAcl
                | Action::PutObjectVersionAcl
                | Action::GetObjectTagging
                | Action::GetObjectVersionTagging
                | Action::PutObjectTagging
                | Action::PutObjectVersionTagging
                | Action::DeleteObjectTagging
                | Action::DeleteObjectVersionTagging
        );
        asked.key.is_some()
            && knows_tags
            && (self.policies.of(asked.bucket).is_some_and(|policy| policy.asks_existing_tags())
                || self.held(&asked.caller.principal).iter().any(|policy| policy.asks_existing_tags()))
    }

    /// Refuses what the caller may not do to a bucket or, with a key, to a version of an object in it. An object is looked
    /// at only where its tags or its list decide.
    ///
    /// # Errors
    /// `AccessDenied`; that there is no such object, for who may list the bucket.
    pub(crate) async fn require(
        &self,
        caller: &Caller,
        action: Action,
        bucket: &BucketInfo,
        object: Option<(&str, Option<VersionId>)>,
    ) -> S3Result<()> {
        let (key, version) = (object.map(|(key, _)| key), object.and_then(|(_, version)| version));
        let asked = Weighed { caller, action, bucket, key };
        let asks_tags = self.asks_tags(&asked);
        let mut decision = if asks_tags { Decision::ImplicitDeny } else { self.weigh(&asked, None) };
        let by_list = ownership::has_lists(bucket) && of_object_can_allow(action);
        let (mut found, mut missing) = (None, None);
        if let Some(key) = key
            && (asks_tags || decision == Decision::ImplicitDeny && by_list)
        {
            let selector = Selector { version, ..Selector::default() };
            match self.store.head_object(&bucket.name, key, selector, Conditions::default()).await {
                Ok(head) => found = Some(head.info),
                Err(error) => missing = Some(from_api(error)),
            }
        }
        if asks_tags {
            decision = self.weigh(&asked, found.as_ref().map(|info| &info.attributes.tags));
        }
        let principal = &caller.principal;
        let by_its_list =
            || found.as_ref().is_some_and(|info| acl::grants(self, (bucket, Some(info)), principal, action));
        match decision {
            Decision::Allow => Ok(()),
            Decision::ImplicitDeny if by_its_list() => Ok(()),
            Decision::ImplicitDeny | Decision::Deny => match missing {
                Some(error) if self.may_list(caller, bucket, key.unwrap_or_default()) => Err(error),
                _ => Err(denied()),
            },
        }
    }

    /// Whether a caller could list a bucket with a key as the prefix, and so may know whether there is such a key.
    fn may_list(&self, caller: &Caller, bucket: &BucketInfo, key: &str) -> bool {
        let mut context = caller.context.clone();
        context.set("s3:prefix", key);
        let caller = &Caller { principal: caller.principal.clone(), context };
        let asked = Weighed { caller, action: Action::ListBucket, bucket, key: None };
        self.weigh(&asked, None) == Decision::Allow
    }

    /// Whether a bucket is shown to who lists buckets.
    pub(crate) fn shows(&self, caller: &Caller, bucket: &BucketInfo) -> bool {
        let mut context = caller.context.clone();
        if let Principal::User(owner) = ownership::owner(bucket) {
            context.set(circumstances::BUCKET_OWNER, owner);
        }
        let caller = Caller { principal: caller.principal.clone(), context };
        self.require_account(&caller, Action::ListAllMyBuckets).is_ok()
    }

    fn held(&self, principal: &Principal) -> Vec<Arc<Policy>> {
        match principal {
            Principal::User(name) => (self.identities.users)().policies_of(name).collect(),
            Principal::Root | Principal::Anonymous => Vec::new(),
        }
    }

    fn decide(&self, caller: &Caller, action: Action, policy: Option<&Policy>, resource: &str) -> Decision {
        let held = self.held(&caller.principal);
        let request = Request { principal: &caller.principal, action, resource, context: &caller.context };
        decide(held.iter().map(Arc::as_ref), policy, &request)
    }

    /// As S3: who may not list a bucket is not told that a key is missing.
    pub(crate) fn conceal(&self, caller: &Caller, (bucket, key): (&str, &str), error: S3Error) -> S3Error {
        let tells = matches!(error.code(), S3ErrorCode::NoSuchKey | S3ErrorCode::NoSuchVersion);
        if !tells || caller.principal == Principal::Root {
            return error;
        }
        match self.store.bucket(bucket) {
            Ok(found) if !self.may_list(caller, &found, key) => denied(),
            _ => error,
        }
    }

    fn require_account(&self, caller: &Caller, action: Action) -> S3Result<()> {
        let decision = self.decide(caller, action, None, &format!("{ARN_PREFIX}*"));
        if decision == Decision::Allow { Ok(()) } else { Err(denied()) }
    }

    /// The caller where what is asked for is, or will be, the caller's own.
    fn as_owner(&self, caller: &Caller) -> Caller {
        let mut context = caller.context.clone();
        if let Principal::User(name) = &caller.principal {
            context.set(circumstances::BUCKET_OWNER, name.as_str());
        }
        Caller { principal: caller.principal.clone(), context }
    }

    fn denies(&self, caller: &Caller, action: Action, bucket: &BucketInfo, key: Option<&str>) -> bool {
        self.weigh(&Weighed { caller, action, bucket, key }, None) == Decision::Deny
    }

    /// A bucket that does not exist has no policy: only the caller's own count.
    fn require_creation(&self, caller: &Caller, bucket: &str, needs: &[Need]) -> S3Result<()> {
        let resource = format!("{ARN_PREFIX}{bucket}");
        let caller = &self.as_owner(caller);
        let allowed = |need: &Need| self.decide(caller, need.action, None, &resource) == Decision::Allow;
        if needs.iter().all(allowed) { Ok(()) } else { Err(denied()) }
    }
}

/// Refuses a request that says who owns the bucket, and is wrong.
fn check_expected_owner<S>(
    core: &Core<S>,
    bucket: &BucketInfo,
    headers: &HeaderMap,
    name: &str,
) -> S3Result<()> {
    let Some(expected) = headers.get(name) else { return Ok(()) };
    let owner = core.identity(&ownership::owner(bucket)).map(|(id, _)| id).unwrap_or_default();
    if expected.as_bytes() == owner.as_bytes() {
        return Ok(());
    }
    Err(refuse(S3ErrorCode::AccessDenied, "the bucket has another owner"))
}

/// What is judged of a request, whichever front has read it.
pub(crate) struct Asked<'a> {
    pub(crate) operation: &'a str,
    pub(crate) is_signed: bool,
    pub(crate) bucket: Option<&'a str>,
    pub(crate) key: Option<&'a str>,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) query: &'a str,
}

/// The access key whose signature s3s has verified, in this call or in the one before (see `front::range`).
fn signer(request: &mut S3AccessContext<'_>) -> Option<String> {
    match request.extensions_mut().get::<VerifiedHandle>() {
        Some(verified) => verified.access_key.clone(),
        None => request.credentials().map(|found| found.access_key.clone()),
    }
}

/// Judges every request that comes through s3s.
pub(crate) struct Access<S>(pub(crate) SendWrapper<Rc<Core<S>>>);

impl<S: ObjectStore> Access<S> {
    async fn judge(&self, request: &mut S3AccessContext<'_>) -> S3Result<()> {
        let core = &*self.0;
        let handle = request.extensions_mut().get::<ExchangeHandle>().cloned();
        let handle = handle.expect("every request carries its exchange");
        let verified = request.extensions_mut().get::<VerifiedHandle>().cloned();
        let access_key = signer(request);
        let principal = match &access_key {
            None => Principal::Anonymous,
            Some(found) => core.identities.find(found)?.0,
        };
        let (bucket, key) = match request.s3_path() {
            S3Path::Root => (None, None),
            S3Path::Bucket { bucket } => (Some(&**bucket), None),
            S3Path::Object { bucket, key } => (Some(&**bucket), Some(&**key)),
        };
        let asked = Asked {
            operation: request.s3_op().name(),
            is_signed: access_key.is_some(),
            bucket,
            key,
            headers: verified.as_ref().map_or(request.headers(), |verified| &verified.headers),
            query: request.uri().query().unwrap_or(""),
        };
        core.judge(&asked, principal, &handle.exchange).await.map(drop)
    }
}

impl<S: ObjectStore> Core<S> {
    /// Judges a request, and tells its operation and its caller to the exchange.
    ///
    /// # Errors
    /// `NoSuchBucket`, `AccessDenied`, and what is wrong with a list or a copy source.
    pub(crate) async fn judge(
        &self,
        asked: &Asked<'_>,
        principal: Principal,
        exchange: &Exchange,
    ) -> S3Result<Rc<Caller>> {
        let &Asked { operation, bucket, key, headers, .. } = asked;
        exchange.operation.replace(operation.to_owned());
        if is_aws_chunked(headers) && !CHUNKED_OPERATIONS.contains(&operation) {
            return Err(refuse(
                S3ErrorCode::NotImplemented,
                "aws-chunked bodies are taken by PutObject and UploadPart only",
            ));
        }
        let found = match bucket {
            Some(name) if operation != "CreateBucket" => Some(self.store.bucket(name).map_err(from_api)?),
            _ => None,
        };
        exchange.bucket_exists.set(found.is_some());
        let unrestricted = principal == Principal::Root
            && found.as_ref().is_none_or(|bucket| bucket.config.document(DocumentKind::Policy).is_none())
            && !headers.contains_key(circumstances::COPY_SOURCE);
        let context = if unrestricted {
            Context::default()
        } else {
            circumstances::of(asked, exchange, &principal, (self.unix_ms)())
        };
        let caller = Rc::new(Caller { principal, context });
        exchange.caller.replace(Some(Rc::clone(&caller)));
        if let Some(bucket) = &found {
            check_expected_owner(self, bucket, headers, EXPECTED_OWNER)?;
            acl::check_headers(self, bucket, headers)?;
        }
        if unrestricted {
            return Ok(caller);
        }
        let needs = operation::needs(operation, headers, asked.query);
        let allowed = match (found, bucket, needs) {
            // Each key is judged where it is deleted.
            (Some(_), _, _) if operation == "DeleteObjects" => Ok(()),
            // Judged with the tags, which are in the body.
            (Some(_), _, _) if operation == "PutObjectTagging" => Ok(()),
            (Some(bucket), _, Some(needs)) => {
                let version = circumstances::parameter(asked.query, "versionId");
                // What is no version is refused by the operation.
                let version = version.and_then(|text| VersionId::parse(&text));
                for need in needs {
                    let writes = need.comes_with_writing
                        && acl::grants(self, (&bucket, None), &caller.principal, Action::PutObject)
                        && !self.denies(&caller, need.action, &bucket, key);
                    if !writes {
                        let object = key.map(|key| (key, version));
                        self.require(&caller, need.action, &bucket, object).await?;
                    }
                }
                self.require_source(&caller, headers).await
            }
            (None, Some(name), Some(needs)) => self.require_creation(&caller, name, &needs),
            (None, None, Some(needs)) => {
                let caller = self.as_owner(&caller);
                needs.iter().try_for_each(|need| self.require_account(&caller, need.action))
            }
            // There is no such operation here; the root credential is told so.
            (_, _, None) if caller.principal == Principal::Root => Ok(()),
            (_, _, None) => Err(denied()),
        };
        allowed.map(|()| caller)
    }

    /// The source of a copy is read as by a GET.
    async fn require_source(&self, caller: &Caller, headers: &HeaderMap) -> S3Result<()> {
        let Some(value) = headers.get(circumstances::COPY_SOURCE) else { return Ok(()) };
        let malformed = |_| refuse(S3ErrorCode::InvalidArgument, "the copy source cannot be parsed");
        let text = value.to_str().map_err(|_| malformed(()))?;
        let source = CopySource::parse(text).map_err(|_| malformed(()))?;
        let CopySource::Bucket { bucket, key, version_id } = source else {
            return Err(refuse(S3ErrorCode::NotImplemented, "there are no access points"));
        };
        let found = self.store.bucket(&bucket).map_err(from_api)?;
        check_expected_owner(self, &found, headers, EXPECTED_SOURCE_OWNER)?;
        let action = if version_id.is_some() { Action::GetObjectVersion } else { Action::GetObject };
        let version = version_id.as_deref().and_then(VersionId::parse);
        self.require(caller, action, &found, Some((&key, version))).await
    }

    /// An upload by an HTML form.
    ///
    /// # Errors
    /// `AccessDenied`.
    pub(crate) async fn require_form(
        &self,
        principal: Principal,
        headers: &HeaderMap,
        exchange: &Exchange,
        bucket: &BucketInfo,
        key: &str,
    ) -> S3Result<Caller> {
        let mut context = circumstances::of_connection(headers, exchange, &principal, (self.unix_ms)());
        context.set("s3:authType", "POST");
        let caller = Caller { principal, context };
        self.require(&caller, Action::PutObject, bucket, Some((key, None))).await?;
        Ok(caller)
    }

    async fn require_tagging(&self, request: &S3Request<PutObjectTaggingInput>) -> S3Result<()> {
        let caller = caller(&request.extensions);
        let input = &request.input;
        let mut context = caller.context.clone();
        for tag in &input.tagging.tag_set {
            let key = tag.key.as_deref().unwrap_or("");
            circumstances::add_tag(&mut context, key, tag.value.as_deref().unwrap_or(""));
        }
        let bucket = self.store.bucket(&input.bucket).map_err(from_api)?;
        let action = match input.version_id {
            Some(_) => Action::PutObjectVersionTagging,
            None => Action::PutObjectTagging,
        };
        let caller = Caller { principal: caller.principal.clone(), context };
        let version = input.version_id.as_deref().and_then(VersionId::parse);
        self.require(&caller, action, &bucket, Some((&input.key, version))).await
    }
}

#[async_trait]
impl<S: ObjectStore> S3Access for Access<S> {
    async fn check(&self, request: &mut S3AccessContext<'_>) -> S3Result<()> {
        if signer(request).is_none() {
            begin_auth();
        }
        let judged = SendWrapper::new(self.judge(request)).await;
        if let Some(stages) = stage::current() {
            stages.end(Stage::Auth);
        }
        judged
    }

    async fn put_object_tagging(&self, request: &mut S3Request<PutObjectTaggingInput>) -> S3Result<()> {
        SendWrapper::new(self.0.require_tagging(request)).await
    }
}
