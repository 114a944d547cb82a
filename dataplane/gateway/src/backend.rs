//! The operations that exist, handed to one module per family. Everything else answers `NotImplemented`, which is
//! what s3s does for a method that is not overridden.
//!
//! s3s wants `Send` futures; every core runs its own gateway and nothing leaves it, so each is wrapped.

use std::rc::Rc;

use async_trait::async_trait;
use quarry_identity::Principal;
use quarry_object::api::{DocumentKind, ObjectStore};
use quarry_object::lifecycle::Lifecycle;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput, CreateBucketInput, CreateBucketOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteBucketCorsInput, DeleteBucketCorsOutput,
    DeleteBucketInput, DeleteBucketLifecycleInput, DeleteBucketLifecycleOutput, DeleteBucketOutput,
    DeleteBucketOwnershipControlsInput, DeleteBucketOwnershipControlsOutput, DeleteBucketPolicyInput,
    DeleteBucketPolicyOutput, DeleteBucketTaggingInput, DeleteBucketTaggingOutput, DeleteBucketWebsiteInput,
    DeleteBucketWebsiteOutput, DeleteObjectInput, DeleteObjectOutput, DeleteObjectTaggingInput,
    DeleteObjectTaggingOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletePublicAccessBlockInput,
    DeletePublicAccessBlockOutput, GetBucketAccelerateConfigurationInput,
    GetBucketAccelerateConfigurationOutput, GetBucketAclInput, GetBucketAclOutput, GetBucketCorsInput,
    GetBucketCorsOutput, GetBucketEncryptionInput, GetBucketEncryptionOutput,
    GetBucketLifecycleConfigurationInput, GetBucketLifecycleConfigurationOutput, GetBucketLocationInput,
    GetBucketLocationOutput, GetBucketLoggingInput, GetBucketLoggingOutput,
    GetBucketNotificationConfigurationInput, GetBucketNotificationConfigurationOutput,
    GetBucketOwnershipControlsInput, GetBucketOwnershipControlsOutput, GetBucketPolicyInput,
    GetBucketPolicyOutput, GetBucketPolicyStatusInput, GetBucketPolicyStatusOutput,
    GetBucketReplicationInput, GetBucketReplicationOutput, GetBucketRequestPaymentInput,
    GetBucketRequestPaymentOutput, GetBucketTaggingInput, GetBucketTaggingOutput, GetBucketVersioningInput,
    GetBucketVersioningOutput, GetBucketWebsiteInput, GetBucketWebsiteOutput, GetObjectAclInput,
    GetObjectAclOutput, GetObjectAttributesInput, GetObjectAttributesOutput, GetObjectInput,
    GetObjectLockConfigurationInput, GetObjectLockConfigurationOutput, GetObjectOutput,
    GetObjectTaggingInput, GetObjectTaggingOutput, GetPublicAccessBlockInput, GetPublicAccessBlockOutput,
    HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListBucketsInput,
    ListBucketsOutput, ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectVersionsInput,
    ListObjectVersionsOutput, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output,
    ListPartsInput, ListPartsOutput, Owner, PutBucketAclInput, PutBucketAclOutput, PutBucketCorsInput,
    PutBucketCorsOutput, PutBucketLifecycleConfigurationInput, PutBucketLifecycleConfigurationOutput,
    PutBucketOwnershipControlsInput, PutBucketOwnershipControlsOutput, PutBucketPolicyInput,
    PutBucketPolicyOutput, PutBucketTaggingInput, PutBucketTaggingOutput, PutBucketVersioningInput,
    PutBucketVersioningOutput, PutBucketWebsiteInput, PutBucketWebsiteOutput, PutObjectAclInput,
    PutObjectAclOutput, PutObjectInput, PutObjectOutput, PutObjectTaggingInput, PutObjectTaggingOutput,
    PutPublicAccessBlockInput, PutPublicAccessBlockOutput, UploadPartCopyInput, UploadPartCopyOutput,
    UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Request, S3Response, S3Result};
use send_wrapper::SendWrapper;
use sha2::{Digest as _, Sha256};

use crate::access::{Identities, Policies, acl, blocks, caller, ownership, policy};
use crate::configuration::{self, Cache};
use crate::cors::Cors;
use crate::front::SigningKeys;
use crate::options::{GatewayOptions, Limits, ObjectOwnership};
use crate::website::rules::Website;
use crate::{bucket, copy, describe, list, multipart, object, tags, versions};

/// What every operation works with.
pub(crate) struct Core<S> {
    pub(crate) store: Rc<S>,
    pub(crate) owner_id: String,
    pub(crate) owner_name: String,
    pub(crate) region: String,
    pub(crate) object_ownership: ObjectOwnership,
    pub(crate) limits: Limits,
    pub(crate) unix_ms: Rc<dyn Fn() -> u64>,
    pub(crate) identities: Rc<Identities>,
    pub(crate) policies: Policies,
    pub(crate) signing_keys: SigningKeys,
    pub(crate) cors: Cache<Cors>,
    pub(crate) websites: Cache<Website>,
    pub(crate) lifecycles: Cache<Lifecycle>,
}

/// The canonical id of the root: 64 hex digits that say nothing, as those of S3.
pub(crate) fn owner_id(access_key: &str) -> String {
    canonical_id(b"quarry owner ", access_key)
}

fn canonical_id(prefix: &[u8], name: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(prefix);
    hasher.update(name);
    hex::encode(hasher.finalize())
}

/// [`Core`] as s3s wants it.
pub(crate) struct Backend<S> {
    core: SendWrapper<Rc<Core<S>>>,
}

impl<S> Core<S> {
    /// Canonical id and display name; `None` for anonymous requests. No user has the id of the root, whatever the name.
    pub(crate) fn identity(&self, principal: &Principal) -> Option<(String, String)> {
        match principal {
            Principal::Root => Some((self.owner_id.clone(), self.owner_name.clone())),
            Principal::User(name) => Some((canonical_id(b"quarry user ", name), name.clone())),
            Principal::Anonymous => None,
        }
    }

    /// As answers show an owner.
    pub(crate) fn shown(&self, principal: &Principal) -> Owner {
        let (id, display_name) = self.identity(principal).unzip();
        Owner { display_name, id }
    }

    /// Canonical id and name of somebody with this id.
    pub(crate) fn find_identity(&self, id: &str) -> Option<(String, String)> {
        if id == self.owner_id {
            return self.identity(&Principal::Root);
        }
        let users = (self.identities.users)();
        let all = users.users.keys().map(|name| self.identity(&Principal::User(name.clone())));
        all.flatten().find(|(known, _)| known == id)
    }

    pub(crate) fn new(store: Rc<S>, owner_id: String, options: &GatewayOptions) -> Self {
        Self {
            store,
            owner_id,
            owner_name: options.access_key.clone(),
            region: options.region.clone(),
            object_ownership: options.object_ownership,
            limits: options.limits,
            unix_ms: Rc::clone(&options.unix_ms),
            identities: Rc::new(Identities {
                root_key: options.access_key.clone(),
                root_secret: options.secret_key.clone().into(),
                users: Rc::clone(&options.users),
            }),
            policies: Policies::default(),
            signing_keys: SigningKeys::default(),
            cors: Cache::new(DocumentKind::Cors),
            websites: Cache::new(DocumentKind::Website),
            lifecycles: Cache::new(DocumentKind::Lifecycle),
        }
    }
}

impl<S> Backend<S> {
    pub(crate) fn new(core: Rc<Core<S>>) -> Self {
        Self { core: SendWrapper::new(core) }
    }
}

type Answer<T> = S3Result<S3Response<T>>;

#[async_trait]
impl<S: ObjectStore> S3 for Backend<S> {
    async fn create_bucket(&self, request: S3Request<CreateBucketInput>) -> Answer<CreateBucketOutput> {
        SendWrapper::new(bucket::create(&self.core, request)).await
    }

    async fn delete_bucket(&self, request: S3Request<DeleteBucketInput>) -> Answer<DeleteBucketOutput> {
        SendWrapper::new(bucket::delete(&self.core, request)).await
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> Answer<HeadBucketOutput> {
        SendWrapper::new(bucket::head(&self.core, request)).await
    }

    async fn list_buckets(&self, request: S3Request<ListBucketsInput>) -> Answer<ListBucketsOutput> {
        SendWrapper::new(bucket::list(&self.core, request)).await
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> Answer<GetBucketLocationOutput> {
        SendWrapper::new(bucket::location(&self.core, request)).await
    }

    async fn get_bucket_versioning(
        &self,
        request: S3Request<GetBucketVersioningInput>,
    ) -> Answer<GetBucketVersioningOutput> {
        SendWrapper::new(configuration::versioning::get(&self.core, request)).await
    }

    async fn put_bucket_versioning(
        &self,
        request: S3Request<PutBucketVersioningInput>,
    ) -> Answer<PutBucketVersioningOutput> {
        SendWrapper::new(configuration::versioning::put(&self.core, request)).await
    }

    async fn get_bucket_tagging(
        &self,
        request: S3Request<GetBucketTaggingInput>,
    ) -> Answer<GetBucketTaggingOutput> {
        SendWrapper::new(configuration::tagging::get(&self.core, request)).await
    }

    async fn put_bucket_tagging(
        &self,
        request: S3Request<PutBucketTaggingInput>,
    ) -> Answer<PutBucketTaggingOutput> {
        SendWrapper::new(configuration::tagging::put(&self.core, request)).await
    }

    async fn delete_bucket_tagging(
        &self,
        request: S3Request<DeleteBucketTaggingInput>,
    ) -> Answer<DeleteBucketTaggingOutput> {
        SendWrapper::new(configuration::tagging::delete(&self.core, request)).await
    }

    async fn get_bucket_cors(&self, request: S3Request<GetBucketCorsInput>) -> Answer<GetBucketCorsOutput> {
        SendWrapper::new(configuration::cors::get(&self.core, request)).await
    }

    async fn put_bucket_cors(&self, request: S3Request<PutBucketCorsInput>) -> Answer<PutBucketCorsOutput> {
        SendWrapper::new(configuration::cors::put(&self.core, request)).await
    }

    async fn delete_bucket_cors(
        &self,
        request: S3Request<DeleteBucketCorsInput>,
    ) -> Answer<DeleteBucketCorsOutput> {
        SendWrapper::new(configuration::cors::delete(&self.core, request)).await
    }

    async fn get_bucket_website(
        &self,
        request: S3Request<GetBucketWebsiteInput>,
    ) -> Answer<GetBucketWebsiteOutput> {
        SendWrapper::new(configuration::website::get(&self.core, request)).await
    }

    async fn put_bucket_website(
        &self,
        request: S3Request<PutBucketWebsiteInput>,
    ) -> Answer<PutBucketWebsiteOutput> {
        SendWrapper::new(configuration::website::put(&self.core, request)).await
    }

    async fn delete_bucket_website(
        &self,
        request: S3Request<DeleteBucketWebsiteInput>,
    ) -> Answer<DeleteBucketWebsiteOutput> {
        SendWrapper::new(configuration::website::delete(&self.core, request)).await
    }

    async fn get_bucket_lifecycle_configuration(
        &self,
        request: S3Request<GetBucketLifecycleConfigurationInput>,
    ) -> Answer<GetBucketLifecycleConfigurationOutput> {
        SendWrapper::new(configuration::lifecycle::get(&self.core, request)).await
    }

    async fn put_bucket_lifecycle_configuration(
        &self,
        request: S3Request<PutBucketLifecycleConfigurationInput>,
    ) -> Answer<PutBucketLifecycleConfigurationOutput> {
        SendWrapper::new(configuration::lifecycle::put(&self.core, request)).await
    }

    async fn delete_bucket_lifecycle(
        &self,
        request: S3Request<DeleteBucketLifecycleInput>,
    ) -> Answer<DeleteBucketLifecycleOutput> {
        SendWrapper::new(configuration::lifecycle::delete(&self.core, request)).await
    }

    async fn get_bucket_encryption(
        &self,
        request: S3Request<GetBucketEncryptionInput>,
    ) -> Answer<GetBucketEncryptionOutput> {
        SendWrapper::new(configuration::absent::encryption(&self.core, request)).await
    }

    async fn get_object_lock_configuration(
        &self,
        request: S3Request<GetObjectLockConfigurationInput>,
    ) -> Answer<GetObjectLockConfigurationOutput> {
        SendWrapper::new(configuration::absent::object_lock(&self.core, request)).await
    }

    async fn get_bucket_replication(
        &self,
        request: S3Request<GetBucketReplicationInput>,
    ) -> Answer<GetBucketReplicationOutput> {
        SendWrapper::new(configuration::absent::replication(&self.core, request)).await
    }

    async fn get_bucket_logging(
        &self,
        request: S3Request<GetBucketLoggingInput>,
    ) -> Answer<GetBucketLoggingOutput> {
        SendWrapper::new(configuration::absent::logging(&self.core, request)).await
    }

    async fn get_bucket_notification_configuration(
        &self,
        request: S3Request<GetBucketNotificationConfigurationInput>,
    ) -> Answer<GetBucketNotificationConfigurationOutput> {
        SendWrapper::new(configuration::absent::notification(&self.core, request)).await
    }

    async fn get_bucket_accelerate_configuration(
        &self,
        request: S3Request<GetBucketAccelerateConfigurationInput>,
    ) -> Answer<GetBucketAccelerateConfigurationOutput> {
        SendWrapper::new(configuration::absent::acceleration(&self.core, request)).await
    }

    async fn get_bucket_request_payment(
        &self,
        request: S3Request<GetBucketRequestPaymentInput>,
    ) -> Answer<GetBucketRequestPaymentOutput> {
        SendWrapper::new(configuration::absent::request_payment(&self.core, request)).await
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        SendWrapper::new(object::put(&self.core, request)).await
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        SendWrapper::new(async {
            let caller = caller(&request.extensions);
            let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
            let answer = object::get(&self.core, request).await;
            answer.map_err(|error| self.core.conceal(&caller, (&bucket, &key), error))
        })
        .await
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        SendWrapper::new(async {
            let caller = caller(&request.extensions);
            let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
            let answer = object::head(&self.core, request).await;
            answer.map_err(|error| self.core.conceal(&caller, (&bucket, &key), error))
        })
        .await
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        SendWrapper::new(object::delete(&self.core, request)).await
    }

    async fn delete_objects(&self, request: S3Request<DeleteObjectsInput>) -> Answer<DeleteObjectsOutput> {
        SendWrapper::new(object::delete_many(&self.core, request)).await
    }

    async fn list_objects(&self, request: S3Request<ListObjectsInput>) -> Answer<ListObjectsOutput> {
        SendWrapper::new(list::v1(&self.core, request)).await
    }

    async fn list_objects_v2(&self, request: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        SendWrapper::new(list::v2(&self.core, request)).await
    }

    async fn list_object_versions(
        &self,
        request: S3Request<ListObjectVersionsInput>,
    ) -> Answer<ListObjectVersionsOutput> {
        SendWrapper::new(versions::list(&self.core, request)).await
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> Answer<ListMultipartUploadsOutput> {
        SendWrapper::new(multipart::list_uploads(&self.core, request)).await
    }

    async fn get_object_attributes(
        &self,
        request: S3Request<GetObjectAttributesInput>,
    ) -> Answer<GetObjectAttributesOutput> {
        SendWrapper::new(async {
            let caller = caller(&request.extensions);
            let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
            let answer = describe::attributes(&self.core, request).await;
            answer.map_err(|error| self.core.conceal(&caller, (&bucket, &key), error))
        })
        .await
    }

    async fn get_object_tagging(
        &self,
        request: S3Request<GetObjectTaggingInput>,
    ) -> Answer<GetObjectTaggingOutput> {
        SendWrapper::new(async {
            let caller = caller(&request.extensions);
            let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
            let answer = tags::get(&self.core, request).await;
            answer.map_err(|error| self.core.conceal(&caller, (&bucket, &key), error))
        })
        .await
    }

    async fn put_object_tagging(
        &self,
        request: S3Request<PutObjectTaggingInput>,
    ) -> Answer<PutObjectTaggingOutput> {
        SendWrapper::new(tags::put(&self.core, request)).await
    }

    async fn delete_object_tagging(
        &self,
        request: S3Request<DeleteObjectTaggingInput>,
    ) -> Answer<DeleteObjectTaggingOutput> {
        SendWrapper::new(tags::delete(&self.core, request)).await
    }

    async fn copy_object(&self, request: S3Request<CopyObjectInput>) -> Answer<CopyObjectOutput> {
        SendWrapper::new(async {
            let caller = caller(&request.extensions);
            let (bucket, key) = copy::source_place(&request.input.copy_source);
            let answer = copy::object(&self.core, request).await;
            answer.map_err(|error| self.core.conceal(&caller, (&bucket, &key), error))
        })
        .await
    }

    async fn upload_part_copy(
        &self,
        request: S3Request<UploadPartCopyInput>,
    ) -> Answer<UploadPartCopyOutput> {
        SendWrapper::new(async {
            let caller = caller(&request.extensions);
            let (bucket, key) = copy::source_place(&request.input.copy_source);
            let answer = copy::part(&self.core, request).await;
            answer.map_err(|error| self.core.conceal(&caller, (&bucket, &key), error))
        })
        .await
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        SendWrapper::new(multipart::create(&self.core, request)).await
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        SendWrapper::new(multipart::upload_part(&self.core, request)).await
    }

    async fn list_parts(&self, request: S3Request<ListPartsInput>) -> Answer<ListPartsOutput> {
        SendWrapper::new(multipart::list_parts(&self.core, request)).await
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        SendWrapper::new(multipart::complete(&self.core, request)).await
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        SendWrapper::new(multipart::abort(&self.core, request)).await
    }

    async fn delete_bucket_ownership_controls(
        &self,
        request: S3Request<DeleteBucketOwnershipControlsInput>,
    ) -> Answer<DeleteBucketOwnershipControlsOutput> {
        SendWrapper::new(ownership::delete(&self.core, request)).await
    }

    async fn get_bucket_ownership_controls(
        &self,
        request: S3Request<GetBucketOwnershipControlsInput>,
    ) -> Answer<GetBucketOwnershipControlsOutput> {
        SendWrapper::new(ownership::get(&self.core, request)).await
    }

    async fn put_bucket_ownership_controls(
        &self,
        request: S3Request<PutBucketOwnershipControlsInput>,
    ) -> Answer<PutBucketOwnershipControlsOutput> {
        SendWrapper::new(ownership::put(&self.core, request)).await
    }

    async fn delete_bucket_policy(
        &self,
        request: S3Request<DeleteBucketPolicyInput>,
    ) -> Answer<DeleteBucketPolicyOutput> {
        SendWrapper::new(policy::delete(&self.core, request)).await
    }

    async fn get_bucket_policy(
        &self,
        request: S3Request<GetBucketPolicyInput>,
    ) -> Answer<GetBucketPolicyOutput> {
        SendWrapper::new(policy::get(&self.core, request)).await
    }

    async fn put_bucket_policy(
        &self,
        request: S3Request<PutBucketPolicyInput>,
    ) -> Answer<PutBucketPolicyOutput> {
        SendWrapper::new(policy::put(&self.core, request)).await
    }

    async fn get_bucket_policy_status(
        &self,
        request: S3Request<GetBucketPolicyStatusInput>,
    ) -> Answer<GetBucketPolicyStatusOutput> {
        SendWrapper::new(policy::status(&self.core, request)).await
    }

    async fn delete_public_access_block(
        &self,
        request: S3Request<DeletePublicAccessBlockInput>,
    ) -> Answer<DeletePublicAccessBlockOutput> {
        SendWrapper::new(blocks::delete(&self.core, request)).await
    }

    async fn get_public_access_block(
        &self,
        request: S3Request<GetPublicAccessBlockInput>,
    ) -> Answer<GetPublicAccessBlockOutput> {
        SendWrapper::new(blocks::get(&self.core, request)).await
    }

    async fn put_public_access_block(
        &self,
        request: S3Request<PutPublicAccessBlockInput>,
    ) -> Answer<PutPublicAccessBlockOutput> {
        SendWrapper::new(blocks::put(&self.core, request)).await
    }

    async fn get_bucket_acl(&self, request: S3Request<GetBucketAclInput>) -> Answer<GetBucketAclOutput> {
        SendWrapper::new(acl::get_bucket(&self.core, request)).await
    }

    async fn put_bucket_acl(&self, request: S3Request<PutBucketAclInput>) -> Answer<PutBucketAclOutput> {
        SendWrapper::new(acl::put_bucket(&self.core, request)).await
    }

    async fn put_object_acl(&self, request: S3Request<PutObjectAclInput>) -> Answer<PutObjectAclOutput> {
        SendWrapper::new(acl::put_object(&self.core, request)).await
    }

    async fn get_object_acl(&self, request: S3Request<GetObjectAclInput>) -> Answer<GetObjectAclOutput> {
        SendWrapper::new(async {
            let caller = caller(&request.extensions);
            let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
            let answer = acl::get_object(&self.core, request).await;
            answer.map_err(|error| self.core.conceal(&caller, (&bucket, &key), error))
        })
        .await
    }
}
