//! The admin listener: metrics, health, the map, the scrub, (only if enabled) fault injection, and under `/admin/`
//! what needs the admin token.

mod blocks;
mod cluster;
mod host;
mod identity;
mod operate;
mod tiers;
mod token;
mod why;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use quarry_clustermap::{ClusterMap, DeviceId};
use quarry_controller::{ControllerHandle, Published};
use quarry_identity::UserTable;
use quarry_storage::device::{FaultMode, FaultSwitch};

pub(crate) use self::token::AdminToken;
use crate::{audit::AuditSink, cluster::Progress, jobs::scrub::ScrubBoard, metrics::Metrics, runtime::clock};

/// Connections at once; a scraper and a few people need a handful.
const CONNECTIONS_MAX: usize = 64;
/// A client that sends no whole head for this long is dropped.
const HEAD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Bytes of a request's body: a policy, and room.
const BODY_BYTES_MAX: usize = 64 << 10;
/// How long a body may take.
const BODY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// What needs the token.
const GUARDED_PREFIX: &str = "/admin/";

/// Remote controls of the devices.
pub(crate) type FaultSwitches = BTreeMap<DeviceId, FaultSwitch>;

/// What the listener shows.
pub(crate) struct AdminState {
    pub(crate) metrics: Arc<Metrics>,
    /// Cores that do not take connections yet.
    starting: AtomicUsize,
    cores: usize,
    map: Mutex<Option<Arc<ClusterMap>>>,
    /// `None`: fault injection is not enabled.
    faults: Option<FaultSwitches>,
    scrub: ScrubBoard,
    users: Mutex<Arc<UserTable>>,
    access: AdminAccess,
    pace: operate::Pace,
}

/// What guarded requests need.
pub(crate) struct AdminAccess {
    pub(crate) token: AdminToken,
    /// Id of the root credential, which no user's key may have.
    pub(crate) root_key: String,
    /// How far the cores are.
    pub(crate) progress: Progress,
    /// The data directory.
    pub(crate) data: PathBuf,
    /// Told about every guarded request.
    pub(crate) audit: Option<AuditSink>,
}

impl AdminState {
    pub(crate) fn new(
        metrics: Arc<Metrics>,
        cores: usize,
        faults: Option<FaultSwitches>,
        scrub: ScrubBoard,
        access: AdminAccess,
    ) -> Arc<Self> {
        Arc::new(Self {
            metrics,
            starting: AtomicUsize::new(cores),
            cores,
            map: Mutex::default(),
            faults,
            scrub,
            users: Mutex::default(),
            access,
            pace: operate::Pace::default(),
        })
    }

    /// One more core takes connections.
    pub(crate) fn core_ready(&self) {
        self.starting.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether every core does.
    pub(crate) fn is_ready(&self) -> bool {
        self.starting.load(Ordering::Acquire) == 0
    }

    pub(super) fn set_published(&self, Published { map, users, .. }: Published) {
        let old = self.map.lock().expect("nothing panics under this lock").replace(Arc::clone(&map));
        if let Some(old) = old {
            self.pace.note(&old, &map, clock::unix_ms());
        }
        self.set_users(users);
    }

    /// Keeps the newest table.
    fn set_users(&self, users: Arc<UserTable>) {
        let mut known = self.users.lock().expect("nothing panics under this lock");
        if known.revision <= users.revision {
            *known = users;
        }
    }

    fn users(&self) -> Arc<UserTable> {
        Arc::clone(&self.users.lock().expect("nothing panics under this lock"))
    }
}

pub(super) async fn serve(
    listener: std::net::TcpListener,
    state: Arc<AdminState>,
    controller: ControllerHandle,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(event = "admin_listener_failed", %error),
    };
    let room = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await;
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(event = "admin_accept_failed", %error);
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (state, controller) = (Arc::clone(&state), controller.clone());
        tokio::task::spawn_local(async move {
            let _permit = permit;
            let service = service_fn(move |request| {
                let (state, controller) = (Arc::clone(&state), controller.clone());
                async move {
                    if !request.uri().path().starts_with(GUARDED_PREFIX) {
                        return Ok::<_, Infallible>(answer(&state, &request));
                    }
                    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
                    let answered = answer_guarded(&state, &controller, request).await;
                    if let Some(audit) = &state.access.audit {
                        audit.admin(client.ip(), method.as_str(), &path, answered.status().as_u16());
                    }
                    Ok(answered)
                }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(event = "admin_connection_failed", %error);
            }
        });
    }
}

/// Looks at the token before anything else of the request.
async fn answer_guarded(
    state: &AdminState,
    controller: &ControllerHandle,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let authorization = request.headers().get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes);
    if !state.access.token.is_brought_by(authorization) {
        return respond(
            StatusCode::UNAUTHORIZED,
            "application/json",
            "{\"error\":\"the admin token is missing or wrong\"}\n",
        );
    }
    let (parts, body) = request.into_parts();
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    let Ok(Ok(body)) = body else {
        return respond(
            StatusCode::BAD_REQUEST,
            "application/json",
            "{\"error\":\"the body is too long or incomplete\"}\n",
        );
    };
    let path = parts.uri.path().strip_prefix(GUARDED_PREFIX).unwrap_or_default();
    let body = body.to_bytes();
    let (status, value) = route(state, controller, &parts.method, path, &body).await;
    respond(status, "application/json", format!("{value}\n"))
}

/// Each file says which paths are its own.
async fn route(
    state: &AdminState,
    controller: &ControllerHandle,
    verb: &Method,
    path: &str,
    body: &[u8],
) -> identity::Answer {
    let method = verb.as_str();
    if let Some(answer) = cluster::answer(controller, method, path).await {
        return answer;
    }
    if let Some(answer) = operate::answer(state, controller, (method, path, body)).await {
        return answer;
    }
    if let Some(answer) = tiers::answer(state, method, path).await {
        return answer;
    }
    if let Some(answer) = why::answer(state, method, path, body).await {
        return answer;
    }
    if let Some(answer) = host::answer(state, method, path) {
        return answer;
    }
    identity::answer(state, controller, verb, path, body).await
}

fn answer(state: &AdminState, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match state.metrics.render() {
            Ok(text) => respond(StatusCode::OK, "text/plain; version=0.0.4", text),
            Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
        },
        (&Method::GET, "/health/live") => respond(StatusCode::OK, "text/plain", "live\n"),
        (&Method::GET, "/health/ready") if state.is_ready() => {
            respond(StatusCode::OK, "text/plain", "ready\n")
        }
        (&Method::GET, "/health/ready") => {
            respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "starting\n")
        }
        (&Method::GET, "/map") => {
            let map = state.map.lock().expect("nothing panics under this lock").clone();
            match map.map(|map| serde_json::to_vec(map.as_ref())) {
                Some(Ok(json)) => respond(StatusCode::OK, "application/json", json),
                Some(Err(error)) => {
                    respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string())
                }
                None => respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "no map yet\n"),
            }
        }
        (&Method::POST, "/scrub") => {
            let pass = state.scrub.ask();
            respond(StatusCode::ACCEPTED, "application/json", format!("{{\"pass\":{pass}}}\n"))
        }
        (&Method::GET, "/scrub") => {
            let (wanted, finished) = (state.scrub.wanted(), state.scrub.finished());
            let text = format!("{{\"wanted\":{wanted},\"finished\":{finished}}}\n");
            respond(StatusCode::OK, "application/json", text)
        }
        (&Method::POST, "/debug/fault") => inject(state, request.uri().query().unwrap_or_default()),
        _ => respond(StatusCode::NOT_FOUND, "text/plain", "not found\n"),
    }
}

/// What `/debug/fault` is to be asked.
const FAULT_USAGE: &str =
    "device=<16 hex digits>&mode=none|read|write|flush|all, or mode=slow&delay-ms=<up to 60000>\n";
/// Longer than anything waits for a device: beyond, it is as good as gone.
const FAULT_DELAY_MS_MAX: u32 = 60_000;

/// See [`FAULT_USAGE`].
fn inject(state: &AdminState, query: &str) -> Response<Full<Bytes>> {
    let Some(switches) = &state.faults else {
        return respond(StatusCode::FORBIDDEN, "text/plain", "fault injection is not enabled\n");
    };
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let device = value("device").and_then(|text| u64::from_str_radix(text, 16).ok()).map(DeviceId);
    let mode = match value("mode") {
        Some("none") => Some(FaultMode::None),
        Some("read") => Some(FaultMode::Read),
        Some("write") => Some(FaultMode::Write),
        Some("flush") => Some(FaultMode::Flush),
        Some("all") => Some(FaultMode::All),
        Some("slow") => value("delay-ms")
            .and_then(|text| text.parse().ok())
            .filter(|delay_ms| *delay_ms <= FAULT_DELAY_MS_MAX)
            .map(|delay_ms| FaultMode::Slow { delay_ms }),
        _ => None,
    };
    match (device.and_then(|device| switches.get(&device)), mode) {
        (Some(switch), Some(mode)) => {
            switch.set(mode);
            respond(StatusCode::OK, "text/plain", "set\n")
        }
        _ => respond(StatusCode::BAD_REQUEST, "text/plain", FAULT_USAGE),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
