//! `multipart/form-data` as browsers send it: fields, then the file. No I/O, any pieces.
//!
//! Fields are held whole and bounded; the file is passed on as it comes, but for as many bytes as could be the beginning
//! of the delimiter. What follows the file means nothing, as in S3.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

/// Bytes of all fields and their headers, the file's own among them.
pub(crate) const FIELDS_BYTES_MAX: usize = 64 << 10;
/// Fields before the file.
const FIELDS_MAX: usize = 100;
/// As in RFC 2046.
const BOUNDARY_BYTES_MAX: usize = 70;
/// The field that is the file.
const FILE: &str = "file";

/// Why a form cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum FormError {
    #[error("the content type of a form must name its boundary")]
    Boundary,
    #[error("the body is not well-formed multipart/form-data")]
    Malformed,
    #[error("the fields before the file are over the limit of 64 KiB, or there are more than 100")]
    TooLarge,
    #[error("a form must have exactly one file, as its last field")]
    NoFile,
}

/// The boundary of a form, from its content type; `None`: it is no form.
pub(crate) fn boundary(content_type: &str) -> Option<Result<&str, FormError>> {
    let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let mut parameters = parameters.split(';').filter_map(|parameter| parameter.trim().split_once('='));
    let found = parameters.find(|(name, _)| name.eq_ignore_ascii_case("boundary"));
    let boundary = found.map(|(_, value)| value.trim_matches('"'));
    let is_legal = |text: &&str| {
        (1..=BOUNDARY_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
    };
    Some(boundary.filter(is_legal).ok_or(FormError::Boundary))
}

/// What came before the file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Fields {
    /// By name in lower case.
    pub(crate) values: BTreeMap<String, String>,
    /// As the browser calls the file, without folders.
    pub(crate) file_name: String,
}

impl Fields {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Begin,
    Headers,
    Value,
}

/// Reads the fields.
pub(crate) struct FieldReader {
    /// `CR LF -- boundary`.
    delimiter: Vec<u8>,
    buffer: BytesMut,
    at: At,
    name: String,
    fields: Fields,
    /// Bytes taken so far, those of the buffer not counted.
    taken: usize,
}

/// What [`FieldReader::feed`] ends with.
pub(crate) struct FileBegins {
    pub(crate) fields: Fields,
    pub(crate) file: FileReader,
    /// Bytes of the file that have come already, perhaps with the delimiter: to be fed to `file`.
    pub(crate) rest: Bytes,
    /// Bytes of the body before the file.
    pub(crate) before: usize,
}

impl FieldReader {
    pub(crate) fn new(boundary: &str) -> Self {
        Self {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            buffer: BytesMut::new(),
            at: At::Begin,
            name: String::new(),
            fields: Fields::default(),
            taken: 0,
        }
    }

    /// Takes the next bytes; answers when the file begins, and must not be fed again then.
    ///
    /// # Errors
    /// See [`FormError`].
    pub(crate) fn feed(&mut self, data: &[u8]) -> Result<Option<FileBegins>, FormError> {
        self.buffer.extend_from_slice(data);
        while let Some(is_file) = self.step()? {
            if is_file {
                let file =
                    FileReader { delimiter: self.delimiter.clone(), held: BytesMut::new(), ended: false };
                let fields = std::mem::take(&mut self.fields);
                let rest = self.buffer.split().freeze();
                return Ok(Some(FileBegins { fields, file, rest, before: self.taken }));
            }
        }
        if self.taken + self.buffer.len() > FIELDS_BYTES_MAX { Err(FormError::TooLarge) } else { Ok(None) }
    }

    fn take(&mut self, count: usize) -> BytesMut {
        self.taken += count;
        self.buffer.split_to(count)
    }

    /// One step. `None`: more bytes are needed; true: the file begins.
    fn step(&mut self) -> Result<Option<bool>, FormError> {
        match self.at {
            At::Begin => {
                let first = self.delimiter.len() - 2;
                if self.buffer.len() < first + 2 {
                    return Ok(None);
                }
                if self.buffer[..first] != self.delimiter[2..] {
                    return Err(FormError::Malformed);
                }
                self.take(first);
                self.next_part()
            }
            At::Headers => {
                let Some(end) = find(&self.buffer, b"\r\n\r\n") else { return Ok(None) };
                let head = self.take(end + 4);
                let disposition = Disposition::of(&head).ok_or(FormError::Malformed)?;
                self.name = disposition.name.to_ascii_lowercase();
                if self.name == FILE {
                    self.fields.file_name = disposition.file_name;
                    return Ok(Some(true));
                }
                self.at = At::Value;
                Ok(Some(false))
            }
            At::Value => {
                let Some(end) = find(&self.buffer, &self.delimiter) else { return Ok(None) };
                if self.buffer.len() < end + self.delimiter.len() + 2 {
                    return Ok(None);
                }
                let value = self.take(end);
                self.take(self.delimiter.len());
                let value = std::str::from_utf8(&value).map_err(|_| FormError::Malformed)?.to_owned();
                if self.fields.values.len() >= FIELDS_MAX {
                    return Err(FormError::TooLarge);
                }
                if self.fields.values.insert(std::mem::take(&mut self.name), value).is_some() {
                    return Err(FormError::Malformed);
                }
                self.next_part()
            }
        }
    }

    /// After a delimiter: another part, or the end.
    fn next_part(&mut self) -> Result<Option<bool>, FormError> {
        match &*self.take(2) {
            b"\r\n" => {
                self.at = At::Headers;
                Ok(Some(false))
            }
            b"--" => Err(FormError::NoFile),
            _ => Err(FormError::Malformed),
        }
    }
}

/// Finds the end of the file.
pub(crate) struct FileReader {
    delimiter: Vec<u8>,
    /// What may be the beginning of the delimiter.
    held: BytesMut,
    ended: bool,
}

impl FileReader {
    /// The bytes of the file that are certain by now.
    pub(crate) fn feed(&mut self, data: &[u8]) -> Bytes {
        if self.ended {
            return Bytes::new();
        }
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(data);
        if let Some(end) = find(&all, &self.delimiter) {
            self.ended = true;
            all.truncate(end);
            return all.freeze();
        }
        // The delimiter begins with a CR that it has nowhere else, so only a last one can begin it.
        let from = all.len().saturating_sub(self.delimiter.len() - 1);
        if let Some(at) = all[from..].iter().position(|byte| *byte == b'\r') {
            self.held = all.split_off(from + at);
        }
        all.freeze()
    }

    /// Whether the delimiter has come.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = text[from..].iter().position(|byte| *byte == what[0]) {
        if text[from + at..].starts_with(what) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// `Content-Disposition` of a part.
struct Disposition {
    name: String,
    file_name: String,
}

impl Disposition {
    fn of(head: &[u8]) -> Option<Self> {
        let head = std::str::from_utf8(head).ok()?;
        let line = head.split("\r\n").find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
        })?;
        let (mut name, mut file_name) = (None, String::new());
        let mut rest = line.split_once(';')?.1;
        while let Some((key, after)) = rest.split_once('=') {
            let (value, after) = value(after.trim_start())?;
            match key.trim().to_ascii_lowercase().as_str() {
                "name" => name = Some(value),
                "filename" => file_name = value,
                _ => {}
            }
            rest = after.trim_start().strip_prefix(';').unwrap_or("");
        }
        let without_folders = file_name.rsplit(['/', '\\']).next().unwrap_or("").to_owned();
        Some(Self { name: name?, file_name: without_folders })
    }
}

/// A token or a quoted text, and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return Some((text[..end].trim().to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            // Only a quote is escaped: a backslash elsewhere is one of a path.
            '\\' if quoted[at + 1..].starts_with('"') => {
                characters.next();
                value.push('"');
            }
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &[u8], piece: usize) -> Result<(Fields, Vec<u8>, bool), FormError> {
        let mut reader = FieldReader::new("XX");
        let mut found: Option<(Fields, FileReader)> = None;
        let mut content = Vec::new();
        for data in body.chunks(piece) {
            match &mut found {
                Some((_, file)) => content.extend(file.feed(data)),
                None => {
                    if let Some(FileBegins { fields, mut file, rest, .. }) = reader.feed(data)? {
                        content.extend(file.feed(&rest));
                        found = Some((fields, file));
                    }
                }
            }
        }
        let (fields, file) = found.ok_or(FormError::NoFile)?;
        Ok((fields, content, file.has_ended()))
    }

    const FORM: &[u8] = b"--XX\r\nContent-Disposition: form-data; name=\"Key\"\r\n\r\na/${filename}\r\n\
        --XX\r\ncontent-disposition: form-data; name=acl\r\nX: y\r\n\r\n\r\n\
        --XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"C:\\d\\a \\\"b\\\".txt\"\r\nContent-Type: text/plain\r\n\r\n\
        one\r\n--X\r\r\n--\r\ntwo\r\n--XX\r\nContent-Disposition: form-data; name=\"submit\"\r\n\r\nGo\r\n--XX--\r\n";

    #[test]
    fn forms_are_read_in_any_pieces() {
        for piece in 1..=FORM.len() {
            let (fields, content, ended) = read(FORM, piece).unwrap();
            assert_eq!(fields.get("key"), Some("a/${filename}"));
            assert_eq!((fields.get("acl"), fields.values.len()), (Some(""), 2));
            assert_eq!(fields.file_name, "a \"b\".txt");
            assert_eq!(content, b"one\r\n--X\r\r\n--\r\ntwo", "pieces of {piece}");
            assert!(ended);
        }
        let (_, content, ended) = read(&FORM[..FORM.len() - 80], 7).unwrap();
        assert!(!ended && content.starts_with(b"one"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_in_any_pieces_do_harm(
            tokens in proptest::collection::vec(proptest::sample::select(TOKENS.to_vec()), 0..40),
            piece in 1_usize..30,
        ) {
            let body = tokens.concat().into_bytes();
            let in_pieces = read(&body, piece);
            proptest::prop_assert_eq!(&in_pieces, &read(&body, body.len().max(1)));
            if let Ok((fields, content, _)) = in_pieces {
                let size = fields.values.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
                proptest::prop_assert!(size + content.len() <= body.len());
            }
        }
    }

    /// What forms are made of, and what nearly is.
    const TOKENS: [&str; 14] = [
        "--XX\r\n",
        "\r\n--XX\r\n",
        "\r\n--XX--",
        "\r\n",
        "\r",
        "--X",
        "content-disposition: form-data; name=\"a\"\r\n\r\n",
        "content-disposition: form-data; name=b; filename=\"c\"\r\n\r\n",
        "content-disposition: form-data; name=\"file\"; filename=\"\\\"\"\r\n\r\n",
        "content-disposition: form-data; name=\"",
        "x: y\r\n",
        "value",
        "\u{fc}",
        "\"; =;",
    ];

    #[test]
    fn what_is_no_form_is_refused() {
        let part =
            |name: &str| format!("--XX\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\nv\r\n");
        let twice = part("a") + &part("a");
        let many: String = (0..=FIELDS_MAX).map(|i| part(&format!("f{i}"))).collect();
        for (body, error) in [
            ("--XY\r\n\r\n\r\n".to_owned(), FormError::Malformed),
            (part("a") + "--XX--\r\n", FormError::NoFile),
            (part("a") + "--XX??", FormError::Malformed),
            (part("a") + "--XX\r\nno: disposition\r\n\r\n", FormError::Malformed),
            (twice + "--XX--", FormError::Malformed),
            (many + "--XX--", FormError::TooLarge),
            (part("a").replace('v', &"v".repeat(FIELDS_BYTES_MAX)), FormError::TooLarge),
            (part("a").replace("=\"a\"", "=\"a"), FormError::Malformed),
        ] {
            assert_eq!(read(body.as_bytes(), 50).unwrap_err(), error, "{}", &body[..body.len().min(200)]);
        }
        assert_eq!(boundary("text/plain"), None);
        assert_eq!(boundary("Multipart/Form-Data; charset=x; boundary=\"a b\""), Some(Ok("a b")));
        for none in
            ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=\"\""]
        {
            assert_eq!(boundary(none), Some(Err(FormError::Boundary)));
        }
    }
}
