//! Clients: a seeded mix of everything S3 does to objects, several at a time.

use std::rc::Rc;

use futures::future::join_all;
use quarry_object::api::{
    ApiError, Attributes, CompletedPart, Completion, Conditions, CopyChanges, CopySource, ObjectStore,
};

use super::{
    Random,
    history::{Content, History},
    machine::{INLINE_BELOW_BYTES, NodeParts},
    verify,
};

pub(super) const BUCKET: &str = "lake";
/// More than one stripe of 4+2.
pub(super) const LARGE_BYTES: usize = 700_000;

/// How much is done.
#[derive(Clone, Copy)]
pub(super) struct Mix {
    pub(super) clients: u64,
    pub(super) keys_per_client: u64,
    pub(super) operations_per_client: u64,
}

/// Runs all clients to their ends; each has keys of its own. Their errors are in the history.
pub(super) async fn run(node: Rc<NodeParts>, history: Rc<History>, mix: Mix, seed: u64) -> Vec<ApiError> {
    let clients = (0..mix.clients).map(|number| {
        let random = Random::new(seed ^ (number << 32));
        let client = Client { node: Rc::clone(&node), history: Rc::clone(&history), random, number, mix };
        client.run()
    });
    join_all(clients).await.into_iter().flatten().collect()
}

struct Client {
    node: Rc<NodeParts>,
    history: Rc<History>,
    random: Random,
    number: u64,
    mix: Mix,
}

impl Client {
    async fn run(self) -> Vec<ApiError> {
        let mut errors = Vec::new();
        for _ in 0..self.mix.operations_per_client {
            let key = self.key();
            let result = match self.random.below(12) {
                0..=2 => self.put(&key, self.random.below(INLINE_BELOW_BYTES)).await,
                3 | 4 => self.put(&key, INLINE_BELOW_BYTES + self.random.below(LARGE_BYTES as u64)).await,
                5 | 6 => self.delete(&key).await,
                7 => self.copy(&key).await,
                8 => self.upload(&key, true).await,
                10 | 11 => {
                    self.get(&key).await;
                    Ok(())
                }
                _ => self.upload(&key, false).await,
            };
            errors.extend(result.err());
        }
        errors
    }

    fn key(&self) -> String {
        format!("client-{}/key-{}", self.number, self.random.below(self.mix.keys_per_client))
    }

    fn content(&self, len: u64) -> Rc<Content> {
        Rc::new(Content::new(&self.random, usize::try_from(len).expect("small")))
    }

    async fn put(&self, key: &str, len: u64) -> Result<(), ApiError> {
        let content = self.content(len);
        let put = put(&self.node, key, &content);
        self.history.note(key, Some(Rc::clone(&content)), put).await
    }

    /// A read sees what was acknowledged before, whatever fails meanwhile.
    async fn get(&self, key: &str) {
        let allowed = self.history.allowed_of(key);
        let found = verify::read(&self.node, key, None).await;
        verify::check_state(key, &allowed, found.as_ref());
    }

    async fn delete(&self, key: &str) -> Result<(), ApiError> {
        let delete = self.node.objects.delete_object(BUCKET, key, None, Conditions::default());
        self.history.note(key, None, delete).await.map(drop)
    }

    /// Copies what was just written under another key of this client.
    async fn copy(&self, key: &str) -> Result<(), ApiError> {
        let source = format!("client-{}/source", self.number);
        let content = self.content(1 + self.random.below(LARGE_BYTES as u64));
        self.history.note(&source, Some(Rc::clone(&content)), put(&self.node, &source, &content)).await?;
        let conditions = Conditions::default();
        let from = CopySource { bucket: BUCKET.into(), key: source, version: None, conditions, range: None };
        let copy =
            self.node.objects.copy_object(from, BUCKET, key, CopyChanges::default(), Conditions::default());
        // A copy's ETag is computed anew.
        let copied = Rc::new(Content { bytes: content.bytes.clone(), etag: String::new() });
        self.history.note(key, Some(copied), copy).await.map(drop)
    }

    /// Three parts, one of them twice; completed with the middle one alone, or aborted.
    async fn upload(&self, key: &str, complete: bool) -> Result<(), ApiError> {
        let objects = &self.node.objects;
        let upload = objects.create_upload(BUCKET, key, Attributes::default(), None).await?;
        self.history.note_upload(key, &upload);
        let sizes = [300_000, 1 + self.random.below(3000), 150_000, 100_000];
        let parts: Vec<_> = sizes.iter().map(|size| self.content(*size)).collect();
        for (content, number) in parts.iter().zip([1, 2, 3, 3]) {
            objects.put_part(BUCKET, key, &upload, number, content.body()).await?;
        }
        if !complete {
            return objects.abort_upload(BUCKET, key, &upload).await;
        }
        let chosen = &parts[1];
        let checksums = Default::default();
        let parts = vec![CompletedPart { number: 2, etag: chosen.etag.clone(), checksums }];
        let named = Completion { parts, ..Completion::default() };
        let whole = Rc::new(Content { bytes: chosen.bytes.clone(), etag: String::new() });
        let completed = objects.complete_upload(BUCKET, key, &upload, named, Conditions::default());
        self.history.note(key, Some(whole), completed).await.map(drop)
    }
}

/// One PUT.
pub(super) async fn put(node: &Rc<NodeParts>, key: &str, content: &Content) -> Result<(), ApiError> {
    let (attributes, conditions) = (Attributes::default(), Conditions::default());
    node.objects.put_object(BUCKET, key, attributes, conditions, content.body()).await.map(drop)
}
