//! Requests beyond plain PUT, GET, DELETE and LIST: HEAD, ranges, conditions, copies, listings from a key on.

use hyper::header::{CONTENT_LENGTH, SERVER};
use hyper::{Method, StatusCode};

use super::{Call, Client, ContentBody, Failure, Page, Read, element, read_text, within};
use crate::expect::Expected;
use crate::sigv4::EMPTY_SHA256;

/// What must hold for a PUT to take effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// There is no object.
    Absent,
    /// The object has this entity tag.
    Tag(String),
}

impl Client {
    /// PUT of one object in one request, perhaps on a condition (whose failure is HTTP 412): its entity tag.
    pub(crate) async fn put_if(
        &mut self,
        key: &str,
        body: ContentBody,
        payload_hash: &str,
        condition: Option<&Condition>,
    ) -> Result<Option<String>, Failure> {
        let path = self.path(Some(key));
        let headers: Vec<_> = condition
            .map(|condition| match condition {
                Condition::Absent => ("if-none-match", "*".to_owned()),
                Condition::Tag(tag) => ("if-match", tag.clone()),
            })
            .into_iter()
            .collect();
        let call = Call { body, payload_hash, headers: &headers, ..Call::bare(Method::PUT, &path) };
        self.answer(call).await.map(|(tag, _)| tag)
    }

    /// Copies an object of the bucket within the server: the entity tag of the copy.
    pub(crate) async fn copy(&mut self, source: &str, key: &str) -> Result<Option<String>, Failure> {
        let (path, source) = (self.path(Some(key)), self.path(Some(source)));
        let call = Call { copy_source: Some(&source), ..Call::bare(Method::PUT, &path) };
        let (_, text) = self.answer(call).await?;
        // Like the completion of an upload, this answer may carry an error in a body with status 200.
        if !text.contains("<CopyObjectResult") {
            let code = element(&text, "Code").unwrap_or_default().to_owned();
            return Err(Failure::Http { status: StatusCode::INTERNAL_SERVER_ERROR, code });
        }
        Ok(element(&text, "ETag").map(|tag| tag.replace("&quot;", "\"").replace("&#34;", "\"")))
    }

    /// Reads the range (offset, length above 0), which must lie within the object, and checks every byte of it.
    pub(crate) async fn get_range(
        &mut self,
        key: &str,
        expected: &Expected,
        range: (u64, u64),
    ) -> Result<Read, Failure> {
        self.get_part(key, expected, Some(range)).await
    }

    /// Size of an object; None when there is none.
    pub(crate) async fn head(&mut self, key: &str) -> Result<Option<u64>, Failure> {
        let path = self.path(Some(key));
        let timeout = self.target.timeout;
        let result = within(timeout, async {
            let response = self.send(Call::bare(Method::HEAD, &path)).await?;
            let size =
                response.headers().get(CONTENT_LENGTH).and_then(|size| size.to_str().ok()?.parse().ok());
            match read_text(response).await {
                Ok(_) => size.map(Some).ok_or(Failure::Protocol("no Content-Length in the answer to a HEAD")),
                Err(Failure::Http { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
                Err(failure) => Err(failure),
            }
        })
        .await;
        if result.as_ref().is_err_and(|failure| !matches!(failure, Failure::Http { .. })) {
            self.connection = None;
        }
        result
    }

    /// Entity tag of an object; None when there is none.
    pub(crate) async fn head_tag(&mut self, key: &str) -> Result<Option<String>, Failure> {
        match self.text(Method::HEAD, Some(key), &[], ContentBody::empty(), EMPTY_SHA256).await {
            Ok((tag, _)) => tag.map(Some).ok_or(Failure::Protocol("no ETag in the answer to a HEAD")),
            Err(Failure::Http { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Keys and entity tags of all objects under a prefix that has at most 1,000.
    pub(crate) async fn list_tags(&mut self, prefix: &str) -> Result<Vec<(String, String)>, Failure> {
        let query = [("list-type", "2"), ("max-keys", "1000"), ("prefix", prefix)];
        let (_, text) = self.text(Method::GET, None, &query, ContentBody::empty(), EMPTY_SHA256).await?;
        if element(&text, "IsTruncated") != Some("false") {
            return Err(Failure::Protocol("no whole listing"));
        }
        let entries = text.split("<Contents>").skip(1).map(|entry| {
            let tag = element(entry, "ETag")?.replace("&quot;", "\"").replace("&#34;", "\"");
            Some((element(entry, "Key")?.to_owned(), tag))
        });
        entries.collect::<Option<_>>().ok_or(Failure::Protocol("no key or tag in a listing"))
    }

    /// One page of ListObjectsV2 with the keys that follow `after`.
    pub(crate) async fn list_after(
        &mut self,
        prefix: &str,
        keys_max: u32,
        after: &str,
    ) -> Result<Page, Failure> {
        self.page(prefix, keys_max, Some(("start-after", after))).await
    }

    /// What the server calls itself.
    pub(crate) async fn server_name(&mut self) -> Result<Option<String>, Failure> {
        let path = self.path(None);
        let timeout = self.target.timeout;
        within(timeout, async {
            let response = self.send(Call::bare(Method::HEAD, &path)).await?;
            let name = response.headers().get(SERVER).and_then(|name| name.to_str().ok()).map(str::to_owned);
            let _ = read_text(response).await;
            Ok(name)
        })
        .await
    }
}
