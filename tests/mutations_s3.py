"""Rules of the S3 gateway that tests/mutations.sh takes out, one at a time: name, file, text, text in its place, who must notice.

Those of the fast front (dataplane/gateway/src/front) are the conditions under which it takes a request or leaves it to s3s, and
what it makes of signatures. A front that takes too much is wrong; one that takes too little is only slow, so rules whose absence
makes it take less are not here, nor those that only the holder of a key could get around.
"""

GATEWAY = "dataplane/gateway/src"
FRONT = f"{GATEWAY}/front"

UNIT = ("quarry-gateway", "", "--lib")
BOTH_FRONTS = ("quarry-gateway", "", "--test=front")
VERSIONS = ("quarry-gateway", "", "--test=versions")
ACCESS = ("quarry-gateway", "", "--test=access")
CONFIGURATION = ("quarry-gateway", "", "--test=configuration")
FORMS = ("quarry-gateway", "", "--test=forms")
COMMANDS = ("quarry-partition", "command", "--lib")

# Conditional deletes.
_CONDITIONS = "dataplane/partition/src/command/conditions.rs"
DELETES = [
    ("delete: x-amz-if-match-size is compared", _CONDITIONS, "if other_time || other_size {", "if other_time {", [COMMANDS, VERSIONS]),
    ("delete: x-amz-if-match-last-modified-time is compared", _CONDITIONS, "if other_time || other_size {", "if other_size {",
     [COMMANDS, VERSIONS]),
    ("delete: times are compared by seconds", _CONDITIONS, "seconds(time) != seconds(current.last_modified_ms)",
     "time != current.last_modified_ms", [COMMANDS, VERSIONS]),
    ("delete: a delete marker is nothing to If-Match", _CONDITIONS, "current.filter(|current| !current.kind.is_marker())", "current",
     [COMMANDS, VERSIONS]),
    ("delete: If-Match asks for something", _CONDITIONS, "access == Access::Read || conditions.if_match.is_some()",
     "access == Access::Read", [COMMANDS, VERSIONS]),
    ("delete: no object has a negative size", f"{GATEWAY}/conditions.rs", "u64::try_from(size).unwrap_or(u64::MAX)",
     "u64::try_from(size).unwrap_or(0)", [VERSIONS]),
    ("delete: DeleteObjects has an ETag for each", f"{GATEWAY}/object.rs", "object.e_tag.map(ETagCondition::ETag);",
     "None::<ETagCondition>;", [VERSIONS]),
    ("delete: DeleteObjects has a time for each", f"{GATEWAY}/object.rs", "on_delete(if_match, object.last_modified_time, object.size)",
     "on_delete(if_match, None, object.size)", [VERSIONS]),
    ("delete: DeleteObjects has a size for each", f"{GATEWAY}/object.rs", "on_delete(if_match, object.last_modified_time, object.size)",
     "on_delete(if_match, object.last_modified_time, None)", [VERSIONS]),
    ("write: a suspended bucket names no version", f"{GATEWAY}/versions.rs",
     "version.filter(|version| *version != VersionId::Null).map(", "version.map(", [VERSIONS, FORMS]),
]

# What is told of objects and parts.
DESCRIPTIONS = [
    ("part: its checksum is told", f"{GATEWAY}/object.rs", "if let (true, Some(sum), Some(algorithm)) =",
     "if let (false, Some(sum), Some(algorithm)) =", [VERSIONS]),
    ("part: its checksum is told to who asks", f"{GATEWAY}/object.rs", "(read.wants_checksums, part_checksum, info",
     "(true, part_checksum, info", [VERSIONS]),
    ("range: the checksum of the whole is not told", f"{GATEWAY}/object.rs", "read.wants_checksums && !partial", "read.wants_checksums",
     [VERSIONS]),
    ("GetObjectAttributes: the ETag is bare", f"{GATEWAY}/reply.rs", "*exchange.operation.borrow() == describe::OPERATION",
     "*exchange.operation.borrow() == \"\"", [VERSIONS]),
    ("missing key: s3:prefix is the key", f"{GATEWAY}/access/mod.rs", 'context.set("s3:prefix", key);', "", [ACCESS]),
    ("missing key: concealed from who may not list", f"{GATEWAY}/access/mod.rs",
     "Ok(found) if !self.may_list(caller, &found, key) => denied(),", "Ok(found) if found.name.is_empty() => denied(),", [ACCESS]),
    ("missing key: told to who may list, where its list or tags decide", f"{GATEWAY}/access/mod.rs",
     "Some(error) if self.may_list(caller, bucket, key.unwrap_or_default()) => Err(error),", "Some(error) if false => Err(error),",
     [ACCESS]),
    ("missing key: not told to others, where its list or tags decide", f"{GATEWAY}/access/mod.rs",
     "Some(error) if self.may_list(caller, bucket, key.unwrap_or_default()) => Err(error),", "Some(error) => Err(error),", [ACCESS]),
]

_LIFECYCLE = f"{GATEWAY}/configuration/lifecycle.rs"
LIFECYCLE = [
    ("lifecycle: conditions may stand beside each other", _LIFECYCLE, "if is_and && (one_conditions > 0",
     "if one_conditions > 1 || is_and && (one_conditions > 0", [UNIT]),
    ("lifecycle: And stands alone", _LIFECYCLE, "(one_conditions > 0 || filter.conditions() == 0)", "(filter.conditions() == 0)", [UNIT]),
    ("lifecycle: And has conditions", _LIFECYCLE, "(one_conditions > 0 || filter.conditions() == 0)", "(one_conditions > 0)", [UNIT]),
    ("lifecycle: sizes are in order", _LIFECYCLE, "&& larger >= smaller", "&& larger > smaller", [UNIT]),
    ("lifecycle: a date is judged before the class", f"{GATEWAY}/configuration/transitions.rs",
     """let date = given.date.map(|date| midnight(unix_ms(date))).transpose()?;
        let class = class(given.storage_class)?;""",
     """let class = class(given.storage_class)?;
        let date = given.date.map(|date| midnight(unix_ms(date))).transpose()?;""", [UNIT]),
]

RANGES = [
    ("range: several lines are several ranges", f"{FRONT}/range.rs", "lines.next().filter(|_| lines.next().is_none())?", "lines.next()?",
     [UNIT, BOTH_FRONTS, CONFIGURATION]),
    ("range: s3s does not see what it misreads", f"{FRONT}/range.rs", "lines.next().is_some() || !line.to_str().is_ok_and(is_read)",
     "false", [BOTH_FRONTS]),
    ("range: several lines are kept from s3s", f"{FRONT}/range.rs", "lines.next().is_some() || !line", "!line", [BOTH_FRONTS]),
    ("range: s3s may read another range than was meant", f"{FRONT}/range.rs",
     "Range::parse(text).is_ok_and(|read| parse(text) == Some(range_request(read)))", "Range::parse(text).is_ok()", [BOTH_FRONTS]),
    ("range: a verified request is judged by its signer", f"{GATEWAY}/access/mod.rs",
     "Some(verified) => verified.access_key.clone(),", "Some(_) => None,", [BOTH_FRONTS]),
    ("range: a verified request is judged by the headers it was sent with", f"{GATEWAY}/access/mod.rs",
     "verified.as_ref().map_or(request.headers(), |verified| &verified.headers)", "request.headers()", [BOTH_FRONTS]),
    ("range: only what s3s has verified is served", f"{FRONT}/range.rs", "let refusal = service.call(request).await?;",
     """given.0.replace(Some(S3Request {
        input: Body::empty(),
        method: request.method().clone(),
        uri: request.uri().clone(),
        headers: request.headers().clone(),
        extensions: request.extensions().clone(),
        credentials: None,
        region: None,
        service: None,
        trailing_headers: None,
    }));
    let refusal = service.call(request).await?;""", [BOTH_FRONTS]),
    ("range: the signature is taken off the query", f"{FRONT}/range.rs", "*mended.uri_mut() = without_signature(uri);", "*mended.uri_mut() = uri;",
     [BOTH_FRONTS]),
    ("range: the signature is taken off the headers", f"{FRONT}/range.rs", "changed.remove(AUTHORIZATION);", "", [BOTH_FRONTS]),
]

PLAN = [
    ("front: names in a query are distinct", f"{FRONT}/plan.rs", "if !distinct || query.contains('+')", "if query.contains('+')",
     [BOTH_FRONTS]),
    ("front: a + in a query is left to s3s", f"{FRONT}/plan.rs", "!distinct || query.contains('+') ||", "!distinct ||", [BOTH_FRONTS]),
    ("front: encoded names in a query are left to s3s", f"{FRONT}/plan.rs", " || !pairs.iter().all(|(name, _)| plain(name))", "",
     [UNIT]),
    ("front: a bucket's name is checked", f"{FRONT}/plan.rs", "!has_object || !s3s::path::check_bucket_name(&place.bucket)", "!has_object",
     [BOTH_FRONTS]),
    ("front: a key has a length", f"{FRONT}/plan.rs", " && place.key.len() <= KEY_BYTES_MAX", "", [BOTH_FRONTS]),
    ("front: a bucket is not an object", f"{FRONT}/plan.rs", " && !place.key.is_empty()", "", [BOTH_FRONTS]),
    ("front: headers are distinct", f"{FRONT}/plan.rs", "headers.len() != headers.keys_len() || ", "", [BOTH_FRONTS]),
    ("front: a body in pieces is left to s3s", f"{FRONT}/plan.rs", " || headers.contains_key(TRANSFER_ENCODING)", "", [BOTH_FRONTS]),
    ("front: encoded words are left to s3s", f"{FRONT}/plan.rs", '!text.contains("=?")', "true", [BOTH_FRONTS]),
    ("front: unknown x-amz headers are left to s3s", f"{FRONT}/plan.rs", "HEADERS.binary_search(&name).is_ok()", "true", [BOTH_FRONTS]),
    ("front: parameters are known", f"{FRONT}/plan.rs", "if query.pairs.iter().all(understood) { Ok(()) }", "if true { Ok(()) }",
     [BOTH_FRONTS]),
    ("front: x-id names the operation", f"{FRONT}/plan.rs", '*name == "x-id" && *value == operation', '*name == "x-id"', [BOTH_FRONTS]),
    ("front: a PUT says its length", f"{FRONT}/plan.rs", "!length.is_some_and(is_number)", "false", [BOTH_FRONTS]),
    ("front: Expires is a date", f"{FRONT}/plan.rs", "        date(headers, &EXPIRES)?;\n", "", [BOTH_FRONTS]),
    ("front: a GET with a body is left to s3s", f"{FRONT}/plan.rs", 'is_some_and(|length| length != "0")', "is_some_and(|_| false)",
     [BOTH_FRONTS]),
    ("front: checksums are told in mode ENABLED", f"{FRONT}/plan.rs", 'text("x-amz-checksum-mode") == Some("ENABLED")',
     'text("x-amz-checksum-mode").is_some()', [BOTH_FRONTS]),
    ("front: unknown overrides are left to s3s", f"{FRONT}/plan.rs", "            _ => return Err(Fallback::Query),\n        };\n        let value",
     "            _ => continue,\n        };\n        let value", [BOTH_FRONTS]),
]

_SIGNATURE = f"{FRONT}/signature.rs"
SIGNATURES = [
    ("signature: it is compared", _SIGNATURE, "if !bool::from(computed.as_bytes().ct_eq(claim.signature.as_bytes())) {", "if false {",
     [BOTH_FRONTS]),
    ("signature: a presigned request of the future is left to s3s", _SIGNATURE, "                || age_ms < -SKEW_MAX_MS\n", "",
     [BOTH_FRONTS]),
    ("signature: a presigned request expires", _SIGNATURE, "                || age_ms > lives_ms.ok()?\n", "", [BOTH_FRONTS]),
    ("signature: a clock may be off by so much", _SIGNATURE, "if (now_ms - unix_ms(amz_date)?).abs() > SKEW_MAX_MS {", "if false {",
     [BOTH_FRONTS]),
    ("signature: an algorithm is named", _SIGNATURE, "algorithm != ALGORITHM\n                || ", "false || ", [BOTH_FRONTS]),
    ("signature: no chunks in a presigned request", _SIGNATURE, "                || framing.is_some()\n", "", [BOTH_FRONTS]),
    ("signature: no unsigned chunks without a signature", _SIGNATURE, "framing.is_none().then_some(anonymous)", "Some(anonymous)",
     [BOTH_FRONTS]),
    ("signature: a payload's digest is one", _SIGNATURE, ".filter(|value| is_payload(value))?", "?", [BOTH_FRONTS]),
    ("signature: chunks are announced with their length", _SIGNATURE, '        && headers.contains_key("x-amz-decoded-content-length")\n',
     "", [BOTH_FRONTS]),
    ("signature: trailers are announced", _SIGNATURE,
     '(framing.is_none_or(|framing| !framing.has_trailers()) || headers.contains_key("x-amz-trailer"))', "true", [BOTH_FRONTS]),
    ("signature: the scope is of the day", _SIGNATURE, "date.len() == 8 && amz_date.starts_with(date)", "date.len() == 8", [BOTH_FRONTS]),
    ("signature: regions are in lower case", _SIGNATURE, "region.is_empty() || !is_region ||", "region.is_empty() ||", [BOTH_FRONTS]),
    ("signature: a kept key is that of the secret", f"{FRONT}/keys.rs",
     "&& bool::from(of.expose().as_bytes().ct_eq(secret.expose().as_bytes()))", "&& of.expose().len() < usize::MAX", [UNIT]),
    ("signature: a key that is disabled signs nothing", f"{GATEWAY}/access/mod.rs", "Some(key) if key.enabled =>", "Some(key) =>", [ACCESS]),
    ("signature: every x-amz header is signed", f"{FRONT}/screen.rs",
     'name == "host" || ((name.starts_with("x-amz-") || name == EXPIRES_ATTRIBUTE) && !exempt(name))', 'name == "host" && !exempt(name)',
     [BOTH_FRONTS]),
    ("signature: two of them are refused", f"{FRONT}/screen.rs",
     """(Some(_), true) => Err(refuse(
            S3ErrorCode::InvalidArgument,
            "only one of the Authorization header and a presigned query is allowed",
        )),""", "(Some(_), true) => Ok(()),", [BOTH_FRONTS]),
    ("signature: a presigned request lives for a week at most", f"{FRONT}/screen.rs", "Ok(1..=PRESIGNED_SECONDS_MAX)", "Ok(1..)",
     [BOTH_FRONTS]),
]

_CHUNKED = f"{GATEWAY}/chunked.rs"
CHUNKS = [
    ("chunks: each signature is compared", f"{GATEWAY}/chunked/chain.rs", "bool::from(computed.as_bytes().ct_eq(signature))", "true", [UNIT]),
    ("chunks: a signature covers the one before", f"{GATEWAY}/chunked/chain.rs", "            self.previous = computed;\n",
     "            drop(computed);\n", [UNIT]),
    ("chunks: each has a signature", _CHUNKED, '(true, None) => return framing("a chunk has no signature"),', "(true, None) => {}", [UNIT]),
    ("chunks: the last one comes at the announced length", _CHUNKED,
     "if self.left > 0 {\n                return Err(ChunkError::Incomplete);", "if self.left > u64::MAX - 1 {\n                return Err(ChunkError::Incomplete);",
     [UNIT]),
    ("chunks: the last one is verified", _CHUNKED, "            self.end_chunk()?;\n            self.state = State::Trailers;",
     "            self.state = State::Trailers;", [UNIT]),
    ("chunks: no more than the announced length", _CHUNKED, "header.size > self.left", "header.size > u64::MAX - 1", [UNIT]),
    ("chunks: the data ends with CRLF", _CHUNKED, 'if input.split_to(1)[0] != b"\\r\\n"[seen] {', "if input.split_to(1).is_empty() {", [UNIT]),
    ("chunks: nothing follows the end", _CHUNKED, 'State::End => return framing("there are bytes after the end"),',
     "State::End => input.clear(),", [UNIT]),
    ("chunks: a body ends at its end", _CHUNKED, "if self.state != State::End {", "if self.state == State::Header && self.left > 0 {", [UNIT]),
    ("chunks: announced trailers come", _CHUNKED, "if self.announced.iter().any(|name| !self.trailers.contains_key(name)) {", "if false {",
     [UNIT]),
    ("chunks: other trailers do not come", _CHUNKED, "if !self.announced.contains(&name) || ", "if ", [UNIT]),
    ("chunks: no trailer follows the signature", _CHUNKED, "if self.trailers_verified {", "if false {", [UNIT]),
    ("chunks: signed trailers have a signature", _CHUNKED, "if self.framing != Framing::SignedTrailer || self.trailers_verified {", "if true {",
     [UNIT]),
]

RULES = DELETES + DESCRIPTIONS + LIFECYCLE + RANGES + PLAN + SIGNATURES + CHUNKS
