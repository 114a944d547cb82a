//! Users, access keys and policies by JSON, for who brings the admin token.
//!
//! | request | does |
//! |---|---|
//! | `GET /admin/users`, `GET /admin/users/NAME` | lists, with keys (no secrets) and policies |
//! | `POST /admin/users` `{"name"}`, `DELETE /admin/users/NAME` | creates; deletes with the user's keys |
//! | `PUT` or `DELETE /admin/users/NAME/policies/POLICY` | attaches, detaches |
//! | `POST /admin/keys` `{"user"}` or `{"user","id","secret"}` | creates; the answer is the only one that has the secret |
//! | `PUT /admin/keys/ID` `{"enabled"}`, `DELETE /admin/keys/ID` | enables, disables, deletes |
//! | `GET /admin/policies`, `GET`, `PUT` (the document) or `DELETE /admin/policies/NAME` | policies |
//!
//! A change is answered when every core of this node acts on it.

use std::time::Duration;

use hyper::{Method, StatusCode};
use quarry_controller::{ControllerError, ControllerHandle};
use quarry_identity::{AccessKey, BUILT_IN, Change, Secret, UserError, UserTable};
use serde::Deserialize;
use serde_json::{Value, json};

use super::AdminState;
use crate::{credentials, runtime::clock};

/// How long a change may take to reach every core.
const SPREAD_FOR: Duration = Duration::from_secs(5);
const SPREAD_PAUSE: Duration = Duration::from_millis(2);

/// What is answered.
pub(super) type Answer = (StatusCode, Value);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewUser {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKey {
    user: String,
    id: Option<String>,
    secret: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyState {
    enabled: bool,
}

/// Answers a request whose token was verified. `path` is what follows `/admin/`; names
/// need no encoding.
pub(super) async fn answer(
    state: &AdminState,
    controller: &ControllerHandle,
    method: &Method,
    path: &str,
    body: &[u8],
) -> Answer {
    let parts: Vec<&str> = path.split('/').collect();
    let users = state.users();
    let change = match (method.as_str(), parts.as_slice()) {
        ("GET", ["users"]) => {
            return ok(Value::Array(users.users.keys().map(|name| user(&users, name)).collect()));
        }
        ("GET", ["users", name]) if users.users.contains_key(*name) => return ok(user(&users, name)),
        ("GET", ["policies"]) => return ok(policies(&users)),
        ("GET", ["policies", name]) => return policy(&users, name),
        ("POST", ["users"]) => {
            parsed(body).map(|NewUser { name }| Change::CreateUser { name, now_ms: clock::unix_ms() })
        }
        ("DELETE", ["users", name]) => Ok(Change::DeleteUser { name: (*name).to_owned() }),
        ("PUT", ["users", user, "policies", policy]) => {
            Ok(Change::Attach { policy: (*policy).to_owned(), user: (*user).to_owned() })
        }
        ("DELETE", ["users", user, "policies", policy]) => {
            Ok(Change::Detach { policy: (*policy).to_owned(), user: (*user).to_owned() })
        }
        ("POST", ["keys"]) => return create_key(state, controller, body).await,
        ("PUT", ["keys", id]) => {
            parsed(body).map(|KeyState { enabled }| Change::SetKeyEnabled { id: (*id).to_owned(), enabled })
        }
        ("DELETE", ["keys", id]) => Ok(Change::DeleteKey { id: (*id).to_owned() }),
        ("PUT", ["policies", name]) => put_policy(name, body),
        ("DELETE", ["policies", name]) => Ok(Change::DeletePolicy { name: (*name).to_owned() }),
        _ => return error(StatusCode::NOT_FOUND, "not found"),
    };
    match change {
        Ok(change) => {
            commit(state, controller, change).await.map_or_else(|refused| refused, |()| ok(json!({})))
        }
        Err(refused) => refused,
    }
}

fn ok(value: Value) -> Answer {
    (StatusCode::OK, value)
}

fn error(status: StatusCode, message: &str) -> Answer {
    (status, json!({ "error": message }))
}

fn parsed<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Answer> {
    serde_json::from_slice(body).map_err(|problem| error(StatusCode::BAD_REQUEST, &problem.to_string()))
}

async fn commit(state: &AdminState, controller: &ControllerHandle, change: Change) -> Result<(), Answer> {
    let table = controller.change_users(change).await.map_err(|problem| refusal(&problem))?;
    let revision = table.revision;
    state.set_users(table);
    let deadline = tokio::time::Instant::now() + SPREAD_FOR;
    while !state.access.progress.users_reached(revision) {
        if tokio::time::Instant::now() > deadline {
            let problem = "the change is made, but has not reached every core in time";
            return Err(error(StatusCode::INTERNAL_SERVER_ERROR, problem));
        }
        tokio::time::sleep(SPREAD_PAUSE).await;
    }
    Ok(())
}

fn refusal(problem: &ControllerError) -> Answer {
    let status = match problem {
        ControllerError::User(UserError::NotFound { .. }) => StatusCode::NOT_FOUND,
        ControllerError::User(UserError::Exists { .. } | UserError::Attached { .. }) => StatusCode::CONFLICT,
        ControllerError::User(_) => StatusCode::BAD_REQUEST,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    error(status, &problem.to_string())
}

async fn create_key(state: &AdminState, controller: &ControllerHandle, body: &[u8]) -> Answer {
    let NewKey { user, id, secret } = match parsed(body) {
        Ok(new) => new,
        Err(refused) => return refused,
    };
    let (id, secret) = match (id, secret) {
        (Some(id), Some(secret)) => (id, secret),
        (None, None) => match (credentials::random::<9>(), credentials::random::<20>()) {
            (Ok(id), Ok(secret)) => (format!("QK{}", hex::encode_upper(id)), hex::encode(secret)),
            _ => return error(StatusCode::INTERNAL_SERVER_ERROR, "there are no random numbers"),
        },
        _ => return error(StatusCode::BAD_REQUEST, "give both id and secret, or neither"),
    };
    if id == state.access.root_key {
        return error(StatusCode::CONFLICT, "the access key id is that of the root credential");
    }
    let key = AccessKey {
        user: user.clone(),
        secret: Secret::new(secret.clone()),
        enabled: true,
        created_ms: clock::unix_ms(),
    };
    match commit(state, controller, Change::CreateKey { id: id.clone(), key }).await {
        Ok(()) => (StatusCode::CREATED, json!({ "user": user, "id": id, "secret": secret })),
        Err(refused) => refused,
    }
}

fn put_policy(name: &str, body: &[u8]) -> Result<Change, Answer> {
    let refuse = |problem: &str| error(StatusCode::BAD_REQUEST, problem);
    let document = std::str::from_utf8(body).map_err(|_| refuse("the document is not UTF-8"))?.to_owned();
    Ok(Change::PutPolicy { name: name.to_owned(), document, now_ms: clock::unix_ms() })
}

fn user(table: &UserTable, name: &str) -> Value {
    let keys = table
        .keys_of(name)
        .map(|(id, key)| json!({ "id": id, "enabled": key.enabled, "created_ms": key.created_ms }));
    let found = &table.users[name];
    json!({
        "name": name,
        "created_ms": found.created_ms,
        "policies": found.policies,
        "keys": keys.collect::<Vec<_>>(),
    })
}

fn policies(table: &UserTable) -> Value {
    let built_in = BUILT_IN.iter().map(|(name, _)| json!({ "name": name, "built_in": true }));
    let stored = table
        .policies
        .iter()
        .map(|(name, policy)| json!({ "name": name, "built_in": false, "updated_ms": policy.updated_ms() }));
    Value::Array(built_in.chain(stored).collect())
}

fn policy(table: &UserTable, name: &str) -> Answer {
    let built_in = BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, document)| *document);
    match built_in.or_else(|| table.policies.get(name).map(|policy| policy.document())) {
        Some(document) => ok(json!({ "name": name, "document": document })),
        None => error(StatusCode::NOT_FOUND, "the policy does not exist"),
    }
}
