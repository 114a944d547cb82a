//! HTML forms: what anybody may post to a bucket, before and after its signature was looked at.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quarry_gateway::reads_form;

use crate::{Random, Target};

const TYPE: &str = "multipart/form-data; boundary=XX";
const NAMES: [&str; 8] = [
    "key",
    "acl",
    "x-amz-meta-a",
    "Content-Type",
    "success_action_status",
    "X-Amz-Signature",
    "tagging",
    "é",
];
const VALUES: [&str; 8] = [
    "a/${filename}",
    "public-read",
    "text/plain",
    "201",
    "--X",
    "\r\n--X",
    "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>",
    "",
];
const CONDITIONS: [&str; 4] = [
    r#"["starts-with","$key",""]"#,
    r#"{"acl":"public-read"}"#,
    r#"["content-length-range",0,10]"#,
    r#"["eq","$x-amz-meta-a","\\$"]"#,
];

/// The reader of forms, and of the policy and the tags in them.
pub(crate) const FORM: Target = Target {
    name: "html-form",
    sample,
    seal: |_, _| {},
    decode: |bytes| reads_form(TYPE, bytes),
    factor: 256,
    constant: 1 << 20,
};

fn sample(random: &mut Random) -> Vec<u8> {
    let mut form = Vec::new();
    let mut field = |name: &str, value: &str| {
        form.extend(
            format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").bytes(),
        );
    };
    for name in NAMES {
        if random.one_in(2) {
            field(name, VALUES[random.below(VALUES.len())]);
        }
    }
    let conditions: Vec<&str> =
        (0..random.below(4)).map(|_| CONDITIONS[random.below(CONDITIONS.len())]).collect();
    let conditions = conditions.join(",");
    let policy = format!(r#"{{"expiration":"2030-01-01T00:00:00.000Z","conditions":[{conditions}]}}"#);
    field("policy", &BASE64.encode(policy));
    let file =
        "Content-Disposition: form-data; name=\"file\"; filename=\"f\"\r\nContent-Type: text/plain\r\n\r\n";
    form.extend(format!("--XX\r\n{file}").bytes());
    form.extend(random.bytes(300));
    form.extend(b"\r\n--XX--\r\n");
    form
}
