mod format;
mod listing;
mod model;
mod scenarios;
mod versions;

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use futures::executor::block_on;
use quarry_clustermap::{BlobId, BucketId, ErasureProfile, Incarnation, NodeId, PgId, WriterCounter};

use super::{
    Command, Conditions, Content, EvaluateError, EvaluationContext, Lookup, Put, PutPart, Refusal, Reply,
    Stored, StoredAttributes, UploadId, Versioning, View, ViewError, evaluate,
};
use crate::{BlobRef, Row};

/// The rows of one partition, all committed.
#[derive(Default)]
struct Rows(BTreeMap<Vec<u8>, Vec<u8>>);

impl View for Rows {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        Ok(self.0.get(key).map(|value| Bytes::copy_from_slice(value)))
    }
    async fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit_rows: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, ViewError> {
        let copy =
            |(key, value): (&Vec<u8>, &Vec<u8>)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        let range = (Bound::Included(from), Bound::Excluded(to));
        Ok(self.0.range::<[u8], _>(range).take(limit_rows).map(copy).collect())
    }
}

#[derive(Default)]
struct Partition {
    rows: Rows,
    now_ms: u64,
    versioning: Versioning,
}

impl Partition {
    fn evaluate(&mut self, command: &Command) -> Result<(Reply, Vec<Row>), EvaluateError> {
        let context = EvaluationContext { now_ms: self.now_ms, versioning: self.versioning };
        let evaluated = block_on(evaluate(&self.rows, context, command))?;
        for row in evaluated.rows.clone() {
            match row.value {
                Some(value) => self.rows.0.insert(row.key, value),
                None => self.rows.0.remove(&row.key),
            };
        }
        Ok((evaluated.reply, evaluated.rows))
    }

    fn run(&mut self, command: &Command) -> Result<Reply, Refusal> {
        match self.evaluate(command) {
            Ok((reply, _)) => Ok(reply),
            Err(EvaluateError::Refused(refusal)) => Err(refusal),
            Err(error) => panic!("{error}"),
        }
    }

    fn stored(&mut self, command: &Command) -> Stored {
        match self.run(command) {
            Ok(Reply::Stored(stored)) => stored,
            other => panic!("{other:?}"),
        }
    }

    fn free_list(&mut self) -> Vec<BlobRef> {
        match self.run(&Command::FreeListNext { after: None, limit: 1000 }) {
            Ok(Reply::Blobs { blobs, .. }) => blobs,
            other => panic!("{other:?}"),
        }
    }
}

const BUCKET: BucketId = BucketId(7);
const MIB: u64 = 1024 * 1024;

fn blob_id(counter: u64) -> BlobId {
    BlobId { writer: NodeId(1), incarnation: Incarnation(1), counter: WriterCounter(counter) }
}

fn blob(counter: u64, size_bytes: u64) -> BlobRef {
    BlobRef {
        blob: blob_id(counter),
        pg: PgId(3),
        profile: ErasureProfile { data_shards: 4, parity_shards: 2 },
        size_bytes,
        missing_shards: 0,
    }
}

fn put(key: &str, content: Content) -> Command {
    Command::Put(Put {
        bucket: BUCKET,
        key: key.to_owned(),
        etag: "e".to_owned(),
        attributes: StoredAttributes::default(),
        tags: Vec::new(),
        checksums: Vec::new(),
        content,
        conditions: Conditions::default(),
    })
}

fn get(key: &str) -> Command {
    Command::Get(Lookup::newest(BUCKET, key))
}

fn put_part(upload: UploadId, number: u16, content: Content) -> Command {
    let md5 = [u8::try_from(number % 251).unwrap(); 16];
    Command::PutPart(PutPart {
        bucket: BUCKET,
        key: "k".to_owned(),
        upload,
        number,
        md5,
        checksums: Vec::new(),
        content,
    })
}
