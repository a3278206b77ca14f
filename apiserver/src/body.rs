//! Request bodies.
//!
//! Guarantees: no more than 3 MiB are ever read; YAML becomes JSON with bounded depth and aliases;
//! protobuf of known kinds does too.

use api::status::Failure;
use bytes::Bytes;
use http::{HeaderMap, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use crate::protobuf;

/// The most a body may hold: what upstream allows.
const LIMIT: usize = 3 << 20;
/// The most a YAML document may become as JSON, aliases followed.
const EXPANDED: usize = 4 * LIMIT;

/// Reads a whole body.
pub(crate) async fn read(body: Incoming) -> Result<Bytes, Failure> {
    match Limited::new(body, LIMIT).collect().await {
        Ok(all) => Ok(all.to_bytes()),
        Err(err) if err.is::<http_body_util::LengthLimitError>() => {
            Err(Failure::too_large(format!("Request entity too large: limit is {LIMIT}")))
        }
        Err(err) => Err(Failure::bad_request(format!("the request's body broke off: {err}"))),
    }
}

/// The content type without parameters, in lower case; JSON if none is given.
pub(crate) fn content_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
    text.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// A body as JSON text, whatever it was written in; `definition` names what it should be.
pub(crate) fn to_json(headers: &HeaderMap, definition: &str, body: Bytes) -> Result<Bytes, Failure> {
    match content_type(headers).as_str() {
        "application/json" | "" => Ok(body),
        "application/vnd.kubernetes.protobuf" => protobuf::to_json(definition, &body),
        "application/yaml" | "application/x-yaml" | "text/yaml" => yaml_to_json(&body),
        _ => Err(Failure::unsupported_media_type(&["application/json", "application/yaml"])),
    }
}

/// One YAML document as JSON text.
pub(crate) fn yaml_to_json(body: &[u8]) -> Result<Bytes, Failure> {
    let value: Value = serde_yaml_ng::from_slice(body)
        .map_err(|e| Failure::bad_request(format!("the body is not valid YAML: {e}")))?;
    let json = serde_json::to_vec(&value)
        .map_err(|e| Failure::bad_request(format!("the body cannot be written as JSON: {e}")))?;
    if json.len() > EXPANDED {
        return Err(Failure::too_large("the YAML body's aliases make it too large"));
    }
    Ok(Bytes::from(json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_bombs_are_refused() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for n in 1..10 {
            let p = n - 1;
            text.push_str(&format!(
                "a{n}: &a{n} [*a{p},*a{p},*a{p},*a{p},*a{p},*a{p},*a{p},*a{p},*a{p},*a{p}]\n"
            ));
        }
        assert!(yaml_to_json(text.as_bytes()).is_err());
        let deep = "[".repeat(5000);
        assert_eq!(yaml_to_json(deep.as_bytes()).unwrap_err().code, 400);
        assert_eq!(&yaml_to_json(b"a: 1").unwrap()[..], br#"{"a":1}"#);
    }
}
