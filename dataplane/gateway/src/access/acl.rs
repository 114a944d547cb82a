//! Access control lists of buckets and objects: what requests say of them, where they are kept, and the operations on them.
//! They count where the ownership controls let them, and may be blocked for the public; what a list allows is decided in
//! `quarry_identity`.
//!
//! As in S3 a list of a bucket grants listing it and writing to it, not reading objects. The list of an object is one of its
//! attributes, kept with every version; the owner of the bucket may do everything to it by the policies of its owner.

use http::{HeaderMap, StatusCode};
use quarry_identity::{Acl, Action, GRANTS_MAX, Grant, Grantee, Listed, Permission, Principal};
use quarry_object::api::{
    Attributes, BucketInfo, Conditions, DocumentKind, ObjectInfo, ObjectStore, Selector,
};
use quarry_object::objects::{ACL_ATTRIBUTE, OWNER_ATTRIBUTE};
use s3s::dto;
use s3s::dto::{
    GetBucketAclInput, GetBucketAclOutput, GetObjectAclInput, GetObjectAclOutput, PutBucketAclInput,
    PutBucketAclOutput, PutObjectAclInput, PutObjectAclOutput,
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};

use super::{Caller, blocks, ownership};
use crate::backend::Core;
use crate::configuration::{parse, remove, write};
use crate::error::{custom, from_api, refuse};
use crate::versions;

const CANNED: &str = "x-amz-acl";
/// Mean the same as no list at all where lists do not count.
const OWNERS_ONLY: [&str; 2] = ["private", "bucket-owner-full-control"];
const GROUPS: [(&str, Grantee); 3] = [
    ("http://acs.amazonaws.com/groups/global/AllUsers", Grantee::Everyone),
    ("http://acs.amazonaws.com/groups/global/AuthenticatedUsers", Grantee::SignedIn),
    ("http://acs.amazonaws.com/groups/s3/LogDelivery", Grantee::LogDelivery),
];
const PERMISSIONS: [(&str, &str, Permission); 5] = [
    ("x-amz-grant-read", dto::Permission::READ, Permission::Read),
    ("x-amz-grant-write", dto::Permission::WRITE, Permission::Write),
    ("x-amz-grant-read-acp", dto::Permission::READ_ACP, Permission::ReadAcp),
    ("x-amz-grant-write-acp", dto::Permission::WRITE_ACP, Permission::WriteAcp),
    ("x-amz-grant-full-control", dto::Permission::FULL_CONTROL, Permission::FullControl),
];

/// The list of a bucket. One that cannot be read grants nothing.
fn of_bucket<S>(core: &Core<S>, bucket: &BucketInfo) -> Acl {
    match parse(bucket, DocumentKind::Acl) {
        Ok(Some(list)) => list,
        Ok(None) => private(core, &ownership::owner(bucket)),
        Err(_) => Acl::default(),
    }
}

/// The list of an object. One that cannot be read grants nothing.
fn of_object<S>(core: &Core<S>, bucket: &BucketInfo, object: &ObjectInfo) -> Acl {
    match object.attributes.headers.get(ACL_ATTRIBUTE) {
        Some(text) => serde_json::from_str(text).unwrap_or_default(),
        None => private(core, &owner_of(bucket, object)),
    }
}

fn owner_of(bucket: &BucketInfo, object: &ObjectInfo) -> Principal {
    match object.attributes.headers.get(OWNER_ATTRIBUTE) {
        Some(user) if ownership::has_lists(bucket) => Principal::User(user.clone()),
        _ => ownership::owner(bucket),
    }
}

fn private<S>(core: &Core<S>, owner: &Principal) -> Acl {
    let id = core.identity(owner).map(|(id, _)| id).unwrap_or_default();
    Acl::canned("private", &id, &id).expect("it is one of them")
}

/// Whether the bucket has a list for others than its owner.
pub(crate) fn is_shared<S>(core: &Core<S>, bucket: &BucketInfo) -> bool {
    of_bucket(core, bucket) != private(core, &ownership::owner(bucket))
}

/// Whether the list of a bucket, or of an object in it, allows an action.
pub(super) fn grants<S>(
    core: &Core<S>,
    (bucket, object): (&BucketInfo, Option<&ObjectInfo>),
    principal: &Principal,
    action: Action,
) -> bool {
    if !ownership::has_lists(bucket) {
        return false;
    }
    let (listed, list) = match object {
        Some(object) => (Listed::Object, of_object(core, bucket, object)),
        None => (Listed::Bucket, of_bucket(core, bucket)),
    };
    let list = if blocks::of(bucket).ignore_public_acls { list.without_public() } else { list };
    list.allows(listed, action, core.identity(principal).as_ref().map(|(id, _)| id.as_str()))
}

fn no_lists() -> S3Error {
    refuse(S3ErrorCode::AccessControlListNotSupported, "the bucket does not allow access control lists")
}

fn invalid(problem: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    refuse(S3ErrorCode::InvalidArgument, problem)
}

/// Whose lists a request writes: the owner of the bucket or object, and the owner of the bucket, by canonical id.
struct Owners {
    owner: String,
    bucket_owner: String,
}

impl Owners {
    fn new<S>(core: &Core<S>, owner: &Principal, bucket_owner: &Principal) -> Self {
        let id = |principal| core.identity(principal).map(|(id, _)| id).unwrap_or_default();
        Self { owner: id(owner), bucket_owner: id(bucket_owner) }
    }
}

/// The list that the headers of a request ask for; `None`: they say nothing.
fn from_headers<S>(core: &Core<S>, headers: &HeaderMap, owners: &Owners) -> S3Result<Option<Acl>> {
    let mut grants = Vec::new();
    for (name, _, permission) in PERMISSIONS {
        for value in headers.get_all(name) {
            let value = value.to_str().map_err(|_| invalid(format!("the header {name} is not text")))?;
            for grantee in value.split(',').map(str::trim).filter(|text| !text.is_empty()) {
                grants.push(Grant { grantee: grantee_of_header(core, grantee)?, permission });
            }
        }
    }
    let canned = headers.get(CANNED).map(|value| value.to_str().unwrap_or(""));
    match canned.filter(|name| !name.is_empty()) {
        Some(_) if !grants.is_empty() => Err(refuse(
            S3ErrorCode::InvalidRequest,
            "specifying both a canned access control list and grants is not allowed",
        )),
        Some(name) => {
            let list = Acl::canned(name, &owners.owner, &owners.bucket_owner);
            list.map(Some).ok_or_else(|| invalid("there is no canned access control list of that name"))
        }
        None if grants.is_empty() => Ok(None),
        None => checked(grants).map(Some),
    }
}

fn grantee_of_header<S>(core: &Core<S>, text: &str) -> S3Result<Grantee> {
    let (kind, value) = text.split_once('=').ok_or_else(|| invalid("a grantee is written kind=\"value\""))?;
    let value = value.trim().trim_matches('"');
    match kind.trim() {
        "id" => user(core, value),
        "uri" => group(value),
        "emailAddress" => Err(by_email()),
        _ => Err(invalid("a grantee is an id, a uri or an emailAddress")),
    }
}

fn user<S>(core: &Core<S>, id: &str) -> S3Result<Grantee> {
    core.find_identity(id).map(|(id, _)| Grantee::User(id)).ok_or_else(|| invalid("invalid id"))
}

fn group(uri: &str) -> S3Result<Grantee> {
    let found = GROUPS.iter().find(|(known, _)| *known == uri);
    found.map(|(_, grantee)| grantee.clone()).ok_or_else(|| invalid("invalid group uri"))
}

/// As in S3 since October 2025, and users have no addresses here.
fn by_email() -> S3Error {
    refuse(S3ErrorCode::UnresolvableGrantByEmailAddress, "grants by e-mail address are not supported")
}

fn checked(grants: Vec<Grant>) -> S3Result<Acl> {
    if grants.len() > GRANTS_MAX {
        return Err(invalid("a list has at most 100 grants"));
    }
    Ok(Acl { grants })
}

/// The list of an AccessControlPolicy document.
fn from_document<S>(core: &Core<S>, owner: &str, document: dto::AccessControlPolicy) -> S3Result<Acl> {
    let named = document.owner.and_then(|owner| owner.id);
    if named.is_some_and(|named| named != owner) {
        return Err(refuse(S3ErrorCode::AccessDenied, "the owner cannot be changed"));
    }
    let malformed = || refuse(S3ErrorCode::MalformedACLError, "a grant needs a grantee and a permission");
    let grants = document.grants.unwrap_or_default().into_iter().map(|grant| {
        let (Some(grantee), Some(permission)) = (grant.grantee, grant.permission) else {
            return Err(malformed());
        };
        let known = PERMISSIONS.iter().find(|(_, name, _)| *name == permission.as_str());
        let permission = known.ok_or_else(malformed)?.2;
        let grantee = match (grantee.id, grantee.uri, grantee.email_address) {
            (Some(id), _, _) => user(core, &id)?,
            (None, Some(uri), _) => group(&uri)?,
            (None, None, Some(_)) => return Err(by_email()),
            (None, None, None) => return Err(malformed()),
        };
        Ok(Grant { grantee, permission })
    });
    checked(grants.collect::<S3Result<Vec<_>>>()?)
}

/// Refuses a list that the bucket does not take.
///
/// # Errors
/// `AccessDenied` by the bucket's blocks.
fn check_blocks(bucket: &BucketInfo, list: &Acl) -> S3Result<()> {
    if list.is_public() && blocks::of(bucket).block_public_acls {
        let problem = "public access control lists are blocked by the public access block of the bucket";
        return Err(refuse(S3ErrorCode::AccessDenied, problem));
    }
    Ok(())
}

/// Checks the headers of a request on an existing bucket, or on an object in it, that ask for a list.
///
/// # Errors
/// `AccessControlListNotSupported`, `InvalidArgument`, `InvalidRequest`, `AccessDenied` by the bucket's blocks.
pub(crate) fn check_headers<S>(core: &Core<S>, bucket: &BucketInfo, headers: &HeaderMap) -> S3Result<()> {
    let owner = ownership::owner(bucket);
    let owners = Owners::new(core, &owner, &owner);
    let Some(list) = from_headers(core, headers, &owners)? else { return Ok(()) };
    let canned = headers.get(CANNED).and_then(|value| value.to_str().ok());
    if !ownership::has_lists(bucket) {
        let harmless = canned.is_some_and(|canned| OWNERS_ONLY.contains(&canned));
        return if harmless { Ok(()) } else { Err(no_lists()) };
    }
    check_blocks(bucket, &list)
}

/// What a new bucket is to have: its list, if it is not its owner's alone.
///
/// # Errors
/// `InvalidBucketAclWithObjectOwnership`, `InvalidArgument`, `InvalidRequest`.
pub(crate) fn of_new_bucket<S>(
    core: &Core<S>,
    headers: &HeaderMap,
    owner: &Principal,
    object_ownership: &str,
) -> S3Result<Option<Acl>> {
    let lists = ownership::checked(object_ownership)?;
    let list = from_headers(core, headers, &Owners::new(core, owner, owner))?;
    let list = list.filter(|list| *list != private(core, owner));
    if list.is_some() && !lists {
        return Err(custom(
            "InvalidBucketAclWithObjectOwnership",
            StatusCode::BAD_REQUEST,
            "a bucket whose object ownership is BucketOwnerEnforced has no access control lists",
        ));
    }
    Ok(list)
}

/// Notes with a new object who owns it and what list it is given. Every write of an object calls it; in a bucket without
/// lists it does nothing.
///
/// # Errors
/// As of the headers; `NoSuchBucket`.
pub(crate) fn add_to_object<S: ObjectStore>(
    core: &Core<S>,
    caller: &Caller,
    bucket: &str,
    headers: &HeaderMap,
    attributes: &mut Attributes,
) -> S3Result<()> {
    let bucket = core.store.bucket(bucket).map_err(from_api)?;
    if !ownership::has_lists(&bucket) {
        return Ok(());
    }
    let bucket_owner = ownership::owner(&bucket);
    let canned = headers.get(CANNED).and_then(|value| value.to_str().ok());
    let given_away = canned == Some("bucket-owner-full-control") && ownership::prefers_bucket_owner(&bucket);
    let writer = match &caller.principal {
        Principal::Anonymous => &bucket_owner,
        _ if given_away => &bucket_owner,
        signed => signed,
    };
    let list = from_headers(core, headers, &Owners::new(core, writer, &bucket_owner))?;
    // The root's objects in the bucket of a user are that user's: the root needs no list.
    match writer {
        Principal::User(name) if *writer != bucket_owner => {
            attributes.headers.insert(OWNER_ATTRIBUTE.to_owned(), name.clone());
        }
        _ => {}
    }
    if let Some(list) = list.filter(|list| *list != private(core, writer)) {
        check_blocks(&bucket, &list)?;
        attributes.headers.insert(ACL_ATTRIBUTE.to_owned(), to_text(&list));
    }
    Ok(())
}

fn to_text(list: &Acl) -> String {
    serde_json::to_string(list).expect("plain data with text keys")
}

fn described<S>(core: &Core<S>, list: Acl) -> Vec<dto::Grant> {
    let grantee = |grantee: &Grantee| match grantee {
        Grantee::User(id) => dto::Grantee {
            // Who was deleted since has no name any more.
            display_name: core.find_identity(id).map(|(_, name)| name),
            email_address: None,
            id: Some(id.clone()),
            type_: dto::Type::from_static(dto::Type::CANONICAL_USER),
            uri: None,
        },
        group => dto::Grantee {
            display_name: None,
            email_address: None,
            id: None,
            type_: dto::Type::from_static(dto::Type::GROUP),
            uri: GROUPS.iter().find(|(_, known)| known == group).map(|(uri, _)| (*uri).to_owned()),
        },
    };
    let permission = |wanted: Permission| {
        let found = PERMISSIONS.iter().find(|(_, _, permission)| *permission == wanted);
        found.map(|(_, name, _)| dto::Permission::from_static(name))
    };
    let (users, groups): (Vec<_>, Vec<_>) =
        list.grants.into_iter().partition(|grant| matches!(grant.grantee, Grantee::User(_)));
    // Groups first: some clients look for the owner behind them.
    groups
        .into_iter()
        .chain(users)
        .map(|grant| dto::Grant {
            grantee: Some(grantee(&grant.grantee)),
            permission: permission(grant.permission),
        })
        .collect()
}

pub(crate) async fn get_bucket<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketAclInput>,
) -> S3Result<S3Response<GetBucketAclOutput>> {
    let bucket = core.store.bucket(&request.input.bucket).map_err(from_api)?;
    let owner = ownership::owner(&bucket);
    let list = if ownership::has_lists(&bucket) { of_bucket(core, &bucket) } else { private(core, &owner) };
    let grants = Some(described(core, list));
    Ok(S3Response::new(GetBucketAclOutput { grants, owner: Some(core.shown(&owner)) }))
}

async fn head<S: ObjectStore>(
    core: &Core<S>,
    bucket: &str,
    key: &str,
    version: Option<&str>,
) -> S3Result<ObjectInfo> {
    let selector = Selector { version: versions::version(version)?, ..Selector::default() };
    let head = core.store.head_object(bucket, key, selector, Conditions::default()).await;
    Ok(head.map_err(from_api)?.info)
}

pub(crate) async fn get_object<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetObjectAclInput>,
) -> S3Result<S3Response<GetObjectAclOutput>> {
    let input = &request.input;
    let bucket = core.store.bucket(&input.bucket).map_err(from_api)?;
    let object = head(core, &input.bucket, &input.key, input.version_id.as_deref()).await?;
    let owner = owner_of(&bucket, &object);
    let lists = ownership::has_lists(&bucket);
    let list = if lists { of_object(core, &bucket, &object) } else { private(core, &owner) };
    let grants = Some(described(core, list));
    let output =
        GetObjectAclOutput { grants, owner: Some(core.shown(&owner)), ..GetObjectAclOutput::default() };
    Ok(S3Response::new(output))
}

/// The list that a request puts, in its headers or its document.
fn given<S>(
    core: &Core<S>,
    (bucket, owner): (&BucketInfo, &Principal),
    headers: &HeaderMap,
    document: Option<dto::AccessControlPolicy>,
) -> S3Result<Acl> {
    let owners = Owners::new(core, owner, &ownership::owner(bucket));
    let asked = from_headers(core, headers, &owners)?;
    let list = match (asked, document) {
        (Some(_), Some(document)) if document.grants.is_some() => {
            let problem = "the list is either in the headers or in the document";
            return Err(refuse(S3ErrorCode::UnexpectedContent, problem));
        }
        (Some(list), _) => list,
        (None, Some(document)) => from_document(core, &owners.owner, document)?,
        (None, None) => {
            let problem = "the request has no access control list";
            return Err(refuse(S3ErrorCode::MissingSecurityHeader, problem));
        }
    };
    let canned = headers.get(CANNED).and_then(|value| value.to_str().ok());
    let is_private = list == private(core, owner) || canned.is_some_and(|name| OWNERS_ONLY.contains(&name));
    if !ownership::has_lists(bucket) && !is_private {
        return Err(no_lists());
    }
    check_blocks(bucket, &list)?;
    Ok(list)
}

pub(crate) async fn put_bucket<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<PutBucketAclInput>,
) -> S3Result<S3Response<PutBucketAclOutput>> {
    let input = request.input;
    let bucket = core.store.bucket(&input.bucket).map_err(from_api)?;
    let owner = ownership::owner(&bucket);
    let list = given(core, (&bucket, &owner), &request.headers, input.access_control_policy)?;
    if list == private(core, &owner) || !ownership::has_lists(&bucket) {
        remove(core, &input.bucket, DocumentKind::Acl).await?;
    } else {
        write(core, &input.bucket, DocumentKind::Acl, &list).await?;
    }
    Ok(S3Response::new(PutBucketAclOutput {}))
}

pub(crate) async fn put_object<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<PutObjectAclInput>,
) -> S3Result<S3Response<PutObjectAclOutput>> {
    let input = request.input;
    let bucket = core.store.bucket(&input.bucket).map_err(from_api)?;
    let object = head(core, &input.bucket, &input.key, input.version_id.as_deref()).await?;
    let owner = owner_of(&bucket, &object);
    let list = given(core, (&bucket, &owner), &request.headers, input.access_control_policy)?;
    if ownership::has_lists(&bucket) {
        let text = (list != private(core, &owner)).then(|| to_text(&list));
        // The version that was looked at, whatever was written since.
        let version = object.version;
        let set = core.store.set_header(&input.bucket, &input.key, version, (ACL_ATTRIBUTE, text));
        set.await.map_err(from_api)?;
    }
    Ok(S3Response::new(PutObjectAclOutput::default()))
}
