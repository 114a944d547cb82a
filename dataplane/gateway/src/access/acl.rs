//! Access control lists, as far as they are: canned ones of buckets, and only where the ownership controls let them count.
//! Objects have none but that of their owner.
//!
//! As in S3 a list of a bucket grants listing it and writing to it, not reading objects: that is what a policy is for.

use http::{HeaderMap, StatusCode};
use quarry_identity::{Action, Principal};
use quarry_object::api::{BucketInfo, Conditions, DocumentKind, ObjectStore, Selector};
use s3s::dto::{
    BucketCannedACL, GetBucketAclInput, GetBucketAclOutput, GetObjectAclInput, GetObjectAclOutput, Grant,
    Grantee, Owner, Permission, PutBucketAclInput, PutBucketAclOutput, PutObjectAclInput, PutObjectAclOutput,
    Type,
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result};

use super::{blocks, ownership};
use crate::backend::Core;
use crate::configuration::{parse, remove, write};
use crate::error::{custom, from_api, refuse};
use crate::versions;

const ALL_USERS: &str = "http://acs.amazonaws.com/groups/global/AllUsers";
const AUTHENTICATED_USERS: &str = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers";
/// Mean the same as no list at all.
const OWNERS_ONLY: [&str; 3] = ["private", "bucket-owner-full-control", "bucket-owner-read"];
const PUBLIC: [&str; 3] = ["public-read", "public-read-write", "authenticated-read"];

fn canned(bucket: &BucketInfo) -> Option<String> {
    parse(bucket, DocumentKind::Acl).ok().flatten()
}

/// Whether the bucket has a list for others than its owner.
pub(crate) fn is_public(bucket: &BucketInfo) -> bool {
    canned(bucket).is_some_and(|acl| PUBLIC.contains(&acl.as_str()))
}

/// Whether the bucket's list allows an action.
pub(crate) fn grants(bucket: &BucketInfo, principal: &Principal, action: Action) -> bool {
    let reads = matches!(
        action,
        Action::ListBucket | Action::ListBucketVersions | Action::ListBucketMultipartUploads
    );
    let writes = matches!(action, Action::PutObject | Action::DeleteObject);
    if !(reads || writes) || bucket.config.document(DocumentKind::Acl).is_none() {
        return false;
    }
    let counts = ownership::has_lists(bucket) && !blocks::of(bucket).ignore_public_acls;
    counts
        && match canned(bucket).as_deref() {
            Some(BucketCannedACL::PUBLIC_READ) => reads,
            Some(BucketCannedACL::PUBLIC_READ_WRITE) => reads || writes,
            Some(BucketCannedACL::AUTHENTICATED_READ) => reads && *principal != Principal::Anonymous,
            _ => false,
        }
}

fn no_lists() -> S3Error {
    refuse(S3ErrorCode::AccessControlListNotSupported, "the bucket does not allow access control lists")
}

/// Checks the header `x-amz-acl` of a request on an existing bucket, or on an object in it.
///
/// # Errors
/// `AccessControlListNotSupported`, `InvalidArgument`, `AccessDenied` by the bucket's blocks, `NotImplemented`.
pub(super) fn check_header(bucket: &BucketInfo, headers: &HeaderMap, on_object: bool) -> S3Result<()> {
    match headers.get("x-amz-acl") {
        None => Ok(()),
        Some(value) => check(bucket, value.to_str().unwrap_or(""), on_object),
    }
}

fn check(bucket: &BucketInfo, acl: &str, on_object: bool) -> S3Result<()> {
    if OWNERS_ONLY[..2].contains(&acl) {
        return Ok(());
    }
    if !PUBLIC.contains(&acl) && !OWNERS_ONLY.contains(&acl) {
        return Err(refuse(
            S3ErrorCode::InvalidArgument,
            "there is no canned access control list of that name",
        ));
    }
    if !ownership::has_lists(bucket) {
        return Err(no_lists());
    }
    if PUBLIC.contains(&acl) && blocks::of(bucket).block_public_acls {
        let problem = "public access control lists are blocked by the public access block of the bucket";
        return Err(refuse(S3ErrorCode::AccessDenied, problem));
    }
    if PUBLIC.contains(&acl) && on_object {
        return Err(refuse(
            S3ErrorCode::NotImplemented,
            "access control lists of objects are not implemented; grant access by a bucket policy",
        ));
    }
    Ok(())
}

/// What a new bucket is to have: its ownership and its list.
///
/// # Errors
/// `InvalidBucketAclWithObjectOwnership`, `InvalidArgument`.
pub(crate) fn of_new_bucket(acl: Option<&str>, object_ownership: Option<&str>) -> S3Result<Option<String>> {
    let lists = object_ownership.map(ownership::checked).transpose()?.unwrap_or(false);
    match acl {
        None => Ok(None),
        Some(acl) if OWNERS_ONLY[..2].contains(&acl) => Ok(None),
        Some(acl) if !PUBLIC.contains(&acl) => {
            Err(refuse(S3ErrorCode::InvalidArgument, "there is no canned access control list of that name"))
        }
        Some(acl) if lists => Ok(Some(acl.to_owned())),
        Some(_) => Err(custom(
            "InvalidBucketAclWithObjectOwnership",
            StatusCode::BAD_REQUEST,
            "a bucket whose object ownership is BucketOwnerEnforced has no access control lists",
        )),
    }
}

fn owner<S>(core: &Core<S>) -> Owner {
    Owner { display_name: Some(core.owner_name.clone()), id: Some(core.owner_id.clone()) }
}

fn owners_grant<S>(core: &Core<S>) -> Grant {
    let grantee = Grantee {
        display_name: Some(core.owner_name.clone()),
        email_address: None,
        id: Some(core.owner_id.clone()),
        type_: Type::from_static(Type::CANONICAL_USER),
        uri: None,
    };
    Grant { grantee: Some(grantee), permission: Some(Permission::from_static(Permission::FULL_CONTROL)) }
}

fn groups_grant(group: &str, permission: &'static str) -> Grant {
    let grantee = Grantee {
        display_name: None,
        email_address: None,
        id: None,
        type_: Type::from_static(Type::GROUP),
        uri: Some(group.to_owned()),
    };
    Grant { grantee: Some(grantee), permission: Some(Permission::from_static(permission)) }
}

pub(crate) async fn get_bucket<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetBucketAclInput>,
) -> S3Result<S3Response<GetBucketAclOutput>> {
    let bucket = core.store.bucket(&request.input.bucket).map_err(from_api)?;
    let mut grants = vec![owners_grant(core)];
    match canned(&bucket).as_deref() {
        Some(BucketCannedACL::PUBLIC_READ) => grants.push(groups_grant(ALL_USERS, Permission::READ)),
        Some(BucketCannedACL::PUBLIC_READ_WRITE) => {
            grants.push(groups_grant(ALL_USERS, Permission::READ));
            grants.push(groups_grant(ALL_USERS, Permission::WRITE));
        }
        Some(BucketCannedACL::AUTHENTICATED_READ) => {
            grants.push(groups_grant(AUTHENTICATED_USERS, Permission::READ));
        }
        _ => {}
    }
    Ok(S3Response::new(GetBucketAclOutput { grants: Some(grants), owner: Some(owner(core)) }))
}

pub(crate) async fn get_object<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<GetObjectAclInput>,
) -> S3Result<S3Response<GetObjectAclOutput>> {
    let input = &request.input;
    exists(core, &input.bucket, &input.key, input.version_id.as_deref()).await?;
    let grants = Some(vec![owners_grant(core)]);
    let output = GetObjectAclOutput { grants, owner: Some(owner(core)), ..GetObjectAclOutput::default() };
    Ok(S3Response::new(output))
}

async fn exists<S: ObjectStore>(
    core: &Core<S>,
    bucket: &str,
    key: &str,
    version: Option<&str>,
) -> S3Result<()> {
    let selector = Selector { version: versions::version(version)?, ..Selector::default() };
    core.store.head_object(bucket, key, selector, Conditions::default()).await.map(drop).map_err(from_api)
}

/// A list that is written out is understood if it grants nothing but to the owner.
fn is_owners_alone<S>(core: &Core<S>, grants: Option<&Vec<Grant>>) -> bool {
    grants.is_some_and(|grants| {
        grants.iter().all(|grant| {
            let id = grant.grantee.as_ref().and_then(|grantee| grantee.id.as_ref());
            id == Some(&core.owner_id)
        })
    })
}

fn written_out<S>(core: &Core<S>, bucket: &BucketInfo, grants: Option<&Vec<Grant>>) -> S3Result<()> {
    if is_owners_alone(core, grants) {
        return Ok(());
    }
    if !ownership::has_lists(bucket) {
        return Err(no_lists());
    }
    Err(refuse(S3ErrorCode::NotImplemented, "grants other than the canned lists are not implemented"))
}

pub(crate) async fn put_bucket<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<PutBucketAclInput>,
) -> S3Result<S3Response<PutBucketAclOutput>> {
    let input = request.input;
    let bucket = core.store.bucket(&input.bucket).map_err(from_api)?;
    match input.acl.as_ref().map(BucketCannedACL::as_str) {
        // Checked with the header.
        Some(acl) if PUBLIC.contains(&acl) => write(core, &input.bucket, DocumentKind::Acl, &acl).await?,
        Some(_) => remove(core, &input.bucket, DocumentKind::Acl).await?,
        None => {
            let list = input.access_control_policy.ok_or_else(|| {
                refuse(S3ErrorCode::MissingSecurityHeader, "the request has no access control list")
            })?;
            written_out(core, &bucket, list.grants.as_ref())?;
            remove(core, &input.bucket, DocumentKind::Acl).await?;
        }
    }
    Ok(S3Response::new(PutBucketAclOutput {}))
}

pub(crate) async fn put_object<S: ObjectStore>(
    core: &Core<S>,
    request: S3Request<PutObjectAclInput>,
) -> S3Result<S3Response<PutObjectAclOutput>> {
    let input = request.input;
    let bucket = core.store.bucket(&input.bucket).map_err(from_api)?;
    if input.acl.is_none() {
        let list = input.access_control_policy.ok_or_else(|| {
            refuse(S3ErrorCode::MissingSecurityHeader, "the request has no access control list")
        })?;
        written_out(core, &bucket, list.grants.as_ref())?;
    }
    exists(core, &input.bucket, &input.key, input.version_id.as_deref()).await?;
    Ok(S3Response::new(PutObjectAclOutput::default()))
}
