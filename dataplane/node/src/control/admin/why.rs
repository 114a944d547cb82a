//! What `quarryctl why` asks: `POST /admin/why` `{"bucket", "key", "version_id"}`.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::json;

use super::{AdminState, identity::Answer};
use crate::jobs::why::Question;

/// How long cores may take: each shard may have to time out.
const PATIENCE: Duration = Duration::from_secs(50);
const LOOK: Duration = Duration::from_millis(20);

/// Answers a request whose token was verified; `None`: it is about something else.
pub(super) async fn answer(state: &AdminState, method: &str, path: &str, body: &[u8]) -> Option<Answer> {
    if (method, path) != ("POST", "why") {
        return None;
    }
    let error = |status, text: String| Some((status, json!({ "error": text })));
    let question: Question = match serde_json::from_slice(body) {
        Ok(question) => question,
        Err(problem) => return error(StatusCode::BAD_REQUEST, problem.to_string()),
    };
    let board = &state.metrics.why;
    let Some(number) = board.ask(question) else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "too many questions at once".to_owned());
    };
    let answered = async {
        loop {
            if let Some(answer) = board.fetch(number) {
                return answer;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    match tokio::time::timeout(PATIENCE, answered).await {
        Ok(Ok(told)) => Some((StatusCode::OK, told)),
        Ok(Err(problem)) => error(StatusCode::NOT_FOUND, problem),
        Err(_) => {
            board.forget(number);
            error(StatusCode::SERVICE_UNAVAILABLE, "no core answered in time".to_owned())
        }
    }
}
