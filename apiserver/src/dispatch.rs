//! One request: who asks, what for, may they, and who answers.
//!
//! Guarantees: nothing but the public paths is reached without authentication and `authorize`;
//! every refusal is a Status object; every request is counted.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use api::{registry::Resource, status::Failure};
use http::{HeaderMap, HeaderValue, Method, Request, header};
use hyper::body::Incoming;

use crate::{
    app::App,
    authn,
    authz::{self, Action, Decision, User},
    body, delete, documents, list,
    negotiate::{self, Accepted},
    pods, read, request,
    request::{Location, Query, Target},
    respond::{self, Answer},
    reviews, scale, serviceaccounts, watch, write,
};

/// How long a request may take that is neither a watch nor a stream.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A request about a resource, understood and allowed.
pub(crate) struct Call {
    pub(crate) user: User,
    pub(crate) method: Method,
    pub(crate) location: Location,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) accepted: Accepted,
    pub(crate) gzip: bool,
    /// What to warn the client of.
    pub(crate) warnings: Mutex<Vec<String>>,
}

impl Call {
    pub(crate) fn warn(&self, texts: impl IntoIterator<Item = String>) {
        self.warnings.lock().expect("nobody panics with it").extend(texts);
    }
}

/// Answers one request.
pub(crate) async fn serve(
    app: Arc<App>,
    certificate: Option<Arc<User>>,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let began = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let mut label =
        Label { verb: method.as_str().to_ascii_lowercase(), resource: "", subresource: "".into() };
    let mut answer = match route(&app, certificate.as_deref(), request, &mut label).await {
        Ok(answer) => answer,
        Err(failure) => respond::failure(&failure),
    };
    let id = HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).expect("a UUID is a header value");
    answer.headers_mut().insert("audit-id", id);
    let code = answer.status().as_u16();
    app.metrics.count(&label.verb, label.resource, &label.subresource, code, began.elapsed());
    tracing::debug!(verb = label.verb, path, code, elapsed = ?began.elapsed(), "request");
    Ok(answer)
}

/// What a request is counted as.
struct Label {
    verb: String,
    resource: &'static str,
    subresource: String,
}

async fn route(
    app: &Arc<App>,
    certificate: Option<&User>,
    request: Request<Incoming>,
    label: &mut Label,
) -> Result<Answer, Failure> {
    let user = authn::authenticate(app, certificate, request.headers())?;
    let query = Query::parse(request.uri().query());
    // Who is unknown learns nothing of what exists.
    let target = match request::parse(request.uri().path()) {
        Err(_) if !user.is_known() => return Err(Failure::unauthorized()),
        other => other?,
    };
    match target {
        Target::Path(path) => {
            let verb = request.method().as_str().to_ascii_lowercase();
            allow(&user, &Action::Path { verb: &verb, path: &path })?;
            if !matches!(*request.method(), Method::GET | Method::HEAD) {
                return Err(Failure::new(405, "MethodNotAllowed", "only GET is supported at this path"));
            }
            documents::serve(app, &path, &query, request.headers()).await
        }
        Target::Resource(location) => {
            let row = location.row;
            let verb = request::verb(request.method(), &location, &query);
            (label.verb, label.resource) = (verb.to_owned(), row.plural);
            label.subresource.clone_from(&location.subresource);
            let action = Action::Resource {
                verb,
                group: row.group,
                resource: row.plural,
                subresource: &location.subresource,
                namespace: &location.namespace,
                name: &location.name,
            };
            allow(&user, &action)?;
            supported(row, &location, verb)?;
            resource(app, user, location, query, verb, request).await
        }
    }
}

fn allow(user: &User, action: &Action<'_>) -> Result<(), Failure> {
    match authz::authorize(user, action) {
        Decision::Allow => Ok(()),
        Decision::Unauthenticated => Err(Failure::unauthorized()),
        Decision::Deny(why) => Err(Failure::forbidden_path(&format!("User {:?} cannot: {why}", user.name))),
    }
}

/// Whether the resource, or its subresource, has the verb.
fn supported(row: &Resource, location: &Location, verb: &str) -> Result<(), Failure> {
    let has = match row.subresource(&location.subresource) {
        Some(sub) => sub.verbs.contains(&verb) || verb == "create" && sub.verbs.contains(&"get"),
        None if location.name.is_empty() => matches!(verb, "list" | "watch" | "create" | "deletecollection"),
        None => matches!(verb, "get" | "watch" | "update" | "patch" | "delete"),
    };
    let known = !location.subresource.is_empty() || row.allows(verb);
    if has && known { Ok(()) } else { Err(Failure::method_not_allowed(row, verb)) }
}

async fn resource(
    app: &Arc<App>,
    user: User,
    location: Location,
    query: Query,
    verb: &'static str,
    request: Request<Incoming>,
) -> Result<Answer, Failure> {
    let headers = request.headers();
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    let streams =
        matches!(location.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy");
    let accepted = if streams { Accepted::JSON } else { negotiate::accept(accept)? };
    let gzip = respond::takes_gzip(headers);
    let call = Call {
        user,
        method: request.method().clone(),
        headers: headers.clone(),
        location,
        query,
        accepted,
        gzip,
        warnings: Mutex::default(),
    };
    if streams {
        return pods::connect(app, &call, request).await;
    }
    if verb == "watch" {
        return watch::watch(app, &call).await;
    }
    let _slot = app.slots.try_acquire().map_err(|_| {
        Failure::too_many_requests("the server has too many requests; please try again later", 1)
    })?;
    let work = async {
        let body = match *request.method() {
            Method::GET | Method::HEAD => bytes::Bytes::new(),
            _ => body::read(request.into_body()).await?,
        };
        plain(app, &call, verb, body).await
    };
    let mut answer = tokio::time::timeout(TIME_LIMIT, work)
        .await
        .unwrap_or_else(|_| Err(Failure::timeout("the request took too long")))?;
    respond::warn(&mut answer, &call.warnings.lock().expect("nobody panics with it"));
    Ok(answer)
}

/// Requests that read a body and answer once.
async fn plain(app: &Arc<App>, call: &Call, verb: &str, body: bytes::Bytes) -> Result<Answer, Failure> {
    let row = call.location.row;
    match (call.location.subresource.as_str(), verb) {
        ("", "create") if !row.stored() && row.kind == "Binding" => pods::bind(app, call, body, None).await,
        ("", "create") if !row.stored() => reviews::review(app, call, body).await,
        ("", "create") => write::create(app, call, body).await,
        ("", "list") => list::list(app, call).await,
        ("", "get") => read::get(app, call).await,
        ("", "delete") => delete::one(app, call, body).await,
        ("", "deletecollection") => delete::collection(app, call, body).await,
        ("scale", "get") => scale::get(app, call).await,
        ("scale", _) => scale::write(app, call, body).await,
        ("binding", "create") => pods::bind(app, call, body, Some(&call.location.name)).await,
        ("eviction", "create") => delete::evict(app, call, body).await,
        ("token", "create") => serviceaccounts::token(app, call, body).await,
        (_, "get") => read::get(app, call).await,
        ("ephemeralcontainers", _) => Err(unsupported(
            call,
            "ephemeral containers are not supported by this node yet; use kubectl exec in one of its containers",
        )),
        ("resize", _) => Err(unsupported(
            call,
            "resizing a running pod is not supported yet; change the resources in its template, so that it is replaced",
        )),
        (_, "update" | "patch") => write::change(app, call, body).await,
        _ => Err(Failure::method_not_allowed(row, verb)),
    }
}

fn unsupported(call: &Call, why: &str) -> Failure {
    Failure::forbidden(call.location.row, &call.location.name, why)
}
