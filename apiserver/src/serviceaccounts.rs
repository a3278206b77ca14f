//! Tokens of service accounts, on request.
//!
//! Guarantees: a token is bound to the account, and to the pod, secret or node that the request names, by uid.

use std::sync::Arc;

use api::{meta, registry, schema, status::Failure};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    app::App,
    dispatch::Call,
    read, respond,
    respond::Answer,
    token::{Bound, Claims, Private},
    write,
};

const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;
const USUAL: i64 = 3600;

/// POST of a TokenRequest.
pub(crate) async fn token(app: &Arc<App>, call: &Call, body: Bytes) -> Result<Answer, Failure> {
    let location = &call.location;
    let definition = schema::definition_of(location.row, Some("token")).ok_or_else(Failure::no_such_path)?;
    let mut request = write::decode(call, &definition, body)?;
    let dry_run = call.query.dry_run()?;
    let account = app.load(location.row, &location.namespace, &location.name).await?;
    let seconds = meta::at(&request, &["spec", "expirationSeconds"]).and_then(Value::as_i64).unwrap_or(USUAL);
    if !(SHORTEST..=LONGEST).contains(&seconds) {
        return Err(Failure::bad_request(format!(
            "spec.expirationSeconds: Invalid value: {seconds}: may not specify a duration less than 10 minutes or larger \
             than 2^32 seconds"
        )));
    }
    let audiences: Vec<String> = match meta::at(&request, &["spec", "audiences"]).and_then(Value::as_array) {
        Some(list) if !list.is_empty() => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => vec![app.config.issuer.clone()],
    };
    let bound = bound(app, call, &request)?;
    let now = Timestamp::now().as_second();
    let expires = now + seconds;
    let number = |n: i64| u64::try_from(n).unwrap_or(0);
    let claims = Claims {
        iss: String::new(),
        sub: format!("system:serviceaccount:{}:{}", location.namespace, location.name),
        aud: audiences.clone(),
        exp: number(expires),
        iat: number(now),
        nbf: number(now),
        jti: uuid::Uuid::new_v4().to_string(),
        kubernetes: Private {
            namespace: location.namespace.clone(),
            serviceaccount: Bound { name: location.name.clone(), uid: meta::uid(&account).to_owned() },
            pod: bound.pod,
            node: bound.node,
            secret: bound.secret,
        },
    };
    let signed = match dry_run {
        true => String::new(),
        false => app.tokens.sign(claims).map_err(|err| {
            tracing::error!(error = ?err, "signing a service-account token failed");
            Failure::internal("the token could not be signed; see the server's log")
        })?,
    };
    let at = Timestamp::from_second(expires).map_err(|e| Failure::bad_request(e.to_string()))?;
    request["apiVersion"] = json!("authentication.k8s.io/v1");
    request["kind"] = json!("TokenRequest");
    request["metadata"] = json!({
        "name": location.name, "namespace": location.namespace, "creationTimestamp": write::now(),
    });
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = json!(seconds);
    request["status"] = json!({"token": signed, "expirationTimestamp": meta::time(at)});
    Ok(respond::object(201, read::encode(&request), call.accepted.format, call.gzip))
}

#[derive(Default)]
struct Binding {
    pod: Option<Bound>,
    node: Option<Bound>,
    secret: Option<Bound>,
}

/// What the token is to be bound to; it must exist.
fn bound(app: &App, call: &Call, request: &Value) -> Result<Binding, Failure> {
    let Some(reference) = meta::at(request, &["spec", "boundObjectRef"]).filter(|r| !r.is_null()) else {
        return Ok(Binding::default());
    };
    let text = |key: &str| meta::str_at(reference, &[key]);
    let kind = text("kind");
    let plural = match kind {
        "Pod" => "pods",
        "Secret" => "secrets",
        "Node" => "nodes",
        other => {
            return Err(Failure::bad_request(format!(
                "cannot bind token for {} to object of type {other:?}; supported are Pod, Secret and Node",
                call.location.name
            )));
        }
    };
    let row = registry::find("", "v1", plural).expect("core resources are served");
    let object = app.cached(row, &call.location.namespace, text("name"))?;
    let uid = meta::uid(object.facts()).to_owned();
    if !text("uid").is_empty() && text("uid") != uid {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record ({uid})",
            text("uid")
        );
        return Err(Failure::conflict(row, text("name"), &why));
    }
    let here = Bound { name: text("name").to_owned(), uid };
    Ok(match kind {
        "Pod" => {
            let pod = object.value();
            let account = meta::str_at(&pod, &["spec", "serviceAccountName"]);
            if account != call.location.name {
                return Err(Failure::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name",
                    call.location.name
                )));
            }
            let node_name = meta::str_at(&pod, &["spec", "nodeName"]).to_owned();
            let nodes = registry::find("", "v1", "nodes").expect("core resources are served");
            let node = (!node_name.is_empty()).then(|| {
                let uid = app.cached(nodes, "", &node_name).map(|n| meta::uid(n.facts()).to_owned());
                Bound { name: node_name, uid: uid.unwrap_or_default() }
            });
            Binding { pod: Some(here), node, secret: None }
        }
        "Secret" => Binding { secret: Some(here), ..Binding::default() },
        _ => Binding { node: Some(here), ..Binding::default() },
    })
}
