//! One file per family of commands.

mod completing;
mod delete;
mod freeing;
mod get;
mod list;
mod put;
mod swap;
mod upload;

pub use list::{Walk, list_merged, listed_rows};

use super::manifest::{Manifest, Pairs, StoredAttributes};
use super::message::{Command, Refusal, Reply};
use super::state::State;
use super::{
    ATTRIBUTES_BYTES_MAX, EvaluateError, Evaluated, EvaluationContext, KEY_BYTES_MAX, LIST_ENTRIES_MAX,
    TAG_CHARS_MAX, TAGS_MAX, View, rows,
};

/// Rows of one evaluation, below the limit of a log entry. A delete makes at most 30,025 (10,000 blobs, all degraded);
/// only a Complete that overwrites such an object and leaves out such parts can make more.
const ROWS_MAX: usize = 60_000;

/// Evaluates one command over the rows that `view` shows; see the module header for what the caller must do.
///
/// # Errors
/// [`EvaluateError`]: nothing has changed.
pub async fn evaluate(
    view: &impl View,
    context: EvaluationContext,
    command: &Command,
) -> Result<Evaluated, EvaluateError> {
    let EvaluationContext { now_ms, versioning } = context;
    let mut state = State { view, now_ms, versioning, rows: Vec::new() };
    let reply = dispatch(&mut state, command).await?;
    if state.rows.len() > ROWS_MAX {
        return Err(invalid("it frees too many blobs at once: delete the object first").into());
    }
    debug_assert!(keys_are_distinct(&state.rows), "a row is changed twice by {command:?}");
    Ok(Evaluated { rows: state.rows, reply })
}

async fn dispatch<V: View>(state: &mut State<'_, V>, command: &Command) -> Result<Reply, EvaluateError> {
    match command {
        Command::Head(lookup) => get::head(state, lookup).await,
        Command::Get(lookup) => get::get(state, lookup).await,
        Command::ObjectParts { lookup, after, limit } => get::parts(state, lookup, *after, *limit).await,
        Command::SetTags { bucket, key, version, tags } => {
            put::set_tags(state, (*bucket, key), *version, tags).await
        }
        Command::SetHeader { bucket, key, version, name, value } => {
            put::set_header(state, (*bucket, key), *version, (name, value.as_deref())).await
        }
        Command::Put(put) => put::put(state, put).await,
        Command::Delete { bucket, key, version, request, conditions } => match version {
            Some(version) => delete::version(state, (*bucket, key), *version, conditions).await,
            None => delete::object(state, (*bucket, key), *request, conditions).await,
        },
        Command::CreateUpload { bucket, key, upload, attributes, tags, checksum } => {
            upload::create(state, (*bucket, key, *upload), (attributes, tags), *checksum).await
        }
        Command::PutPart(put) => upload::put_part(state, put).await,
        Command::ListParts { bucket, key, upload, after, limit } => {
            upload::list_parts(state, (*bucket, key, *upload), *after, *limit).await
        }
        Command::GetUpload { bucket, key, upload } => {
            Ok(Reply::Upload(upload::load(state, *bucket, key, *upload).await?))
        }
        Command::Complete(complete) => upload::complete(state, complete).await,
        Command::Abort { bucket, key, upload } => upload::abort(state, *bucket, key, *upload).await,
        Command::List(list) => list::list(state, list).await,
        Command::BucketIsEmpty { bucket } => list::bucket_is_empty(state, *bucket).await,
        Command::BlobStatus { blob } => freeing::blob_status(state, *blob).await,
        Command::RevokeWriter { writer, incarnation } => {
            freeing::revoke_writer(state, *writer, *incarnation).await
        }
        Command::FreeListNext { after, limit } => freeing::free_list_next(state, *after, *limit).await,
        Command::Freed { blobs } => freeing::freed(state, blobs).await,
        Command::DegradedNext { after, limit } => freeing::degraded_next(state, *after, *limit).await,
        Command::Repaired { blob, missing_shards } => freeing::repaired(state, *blob, *missing_shards).await,
        Command::SwapBlobs(swap) => swap::swap(state, swap).await,
        Command::Expire { limit } => freeing::expire(state, *limit).await,
        Command::DropBucketState { bucket, limit } => delete::drop_bucket_state(state, *bucket, *limit).await,
    }
}

fn check_key(key: &str) -> Result<(), Refusal> {
    match key.len() {
        0 => Err(invalid("the key is empty")),
        1..=KEY_BYTES_MAX if rows::escaped_len(key) > rows::ESCAPED_KEY_BYTES_MAX => {
            Err(invalid("the key holds too many zero bytes"))
        }
        1..=KEY_BYTES_MAX => Ok(()),
        _ => Err(Refusal::KeyTooLong),
    }
}

fn check_attributes(attributes: &StoredAttributes, checksums: &Pairs) -> Result<(), Refusal> {
    let checksum_bytes: usize = checksums.iter().map(|(name, value)| name.len() + value.len()).sum();
    if attributes.size_bytes() + checksum_bytes > ATTRIBUTES_BYTES_MAX {
        return Err(Refusal::AttributesTooLarge);
    }
    Ok(())
}

fn check_tags(tags: &Pairs) -> Result<(), Refusal> {
    let (key_max, value_max) = TAG_CHARS_MAX;
    let fits = |(key, value): &(String, String)| {
        key.chars().count() <= key_max && value.chars().count() <= value_max
    };
    if tags.len() > TAGS_MAX || !tags.iter().all(fits) || !tags.is_sorted_by(|(a, _), (b, _)| a < b) {
        return Err(invalid("the tags are too many or too long, or not in order"));
    }
    Ok(())
}

/// What conditions are decided on: the newest version, if it is an object.
fn visible(newest: Option<&Manifest>) -> Option<&Manifest> {
    newest.filter(|newest| !newest.kind.is_marker())
}

fn invalid(problem: &str) -> Refusal {
    Refusal::InvalidRequest { problem: problem.to_owned() }
}

/// Rows of a page as asked for, within the limit.
fn page_rows(limit: u32) -> usize {
    limit.min(LIST_ENTRIES_MAX) as usize
}

fn keys_are_distinct(rows: &[crate::Row]) -> bool {
    let mut keys: Vec<&[u8]> = rows.iter().map(|row| row.key.as_slice()).collect();
    keys.sort_unstable();
    keys.windows(2).all(|pair| pair[0] != pair[1])
}
