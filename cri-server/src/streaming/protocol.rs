//! Which protocol a client and we speak: decided from the request's headers. Pure.
//!
//! Guarantees: the client's order of preference decides among what we speak.

use http::HeaderMap;
use http::header;

/// What a URL was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Exec and attach.
    Command,
    /// Port-forward.
    Forward,
}

/// How the end of a command is told on the error stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusForm {
    /// A Kubernetes Status object in JSON, always (version 4 on).
    Json,
    /// A sentence, only after a failure.
    Text,
}

/// What both sides speak after the upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// SPDY frames; a terminal's size from version 3 on.
    Spdy {
        /// Form of the status.
        status: StatusForm,
        /// Whether the client opens a stream for the terminal's size.
        resize: bool,
    },
    /// WebSocket messages whose first byte is a channel.
    Channels {
        /// Form of the status.
        status: StatusForm,
        /// Text messages in base64, the channel as a digit.
        base64: bool,
        /// Channel 255 closes others (version 5 on).
        close: bool,
    },
    /// SPDY frames as bytes in WebSocket messages.
    SpdyInWebSocket,
}

/// The answer to an upgrade request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// `101` with SPDY.
    Spdy {
        /// Answered in `X-Stream-Protocol-Version`; empty when the client named none.
        name: &'static str,
        /// What is spoken.
        spoken: Spoken,
    },
    /// `101` with WebSocket.
    WebSocket {
        /// Answered in `Sec-WebSocket-Protocol`; empty when the client named none.
        name: &'static str,
        /// What is spoken.
        spoken: Spoken,
        /// The client's key.
        key: String,
    },
    /// Not an upgrade at all.
    NoUpgrade,
    /// None of the protocols that the client offered is spoken here.
    NoCommon {
        /// What is.
        spoken: Vec<&'static str>,
    },
}

/// Header in which SPDY clients name protocols.
pub const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
/// Header in which they are told what would have been accepted.
pub const ACCEPTED_PROTOCOLS: &str = "x-accepted-stream-protocol-versions";

use StatusForm::{Json, Text};

type Table = &'static [(&'static str, Spoken)];

const SPDY_COMMAND: Table = &[
    ("v4.channel.k8s.io", Spoken::Spdy { status: Json, resize: true }),
    ("v3.channel.k8s.io", Spoken::Spdy { status: Text, resize: true }),
    ("v2.channel.k8s.io", Spoken::Spdy { status: Text, resize: false }),
    ("channel.k8s.io", Spoken::Spdy { status: Text, resize: false }),
    ("v1.channel.k8s.io", Spoken::Spdy { status: Text, resize: false }),
    ("", Spoken::Spdy { status: Text, resize: false }),
];
const SPDY_FORWARD: Table = &[
    ("portforward.k8s.io", Spoken::Spdy { status: Text, resize: false }),
    ("", Spoken::Spdy { status: Text, resize: false }),
];

const fn channels(status: StatusForm, base64: bool, close: bool) -> Spoken {
    Spoken::Channels { status, base64, close }
}

const WEBSOCKET_COMMAND: Table = &[
    ("v5.channel.k8s.io", channels(Json, false, true)),
    ("v4.channel.k8s.io", channels(Json, false, false)),
    ("v4.base64.channel.k8s.io", channels(Json, true, false)),
    ("v3.channel.k8s.io", channels(Text, false, false)),
    ("v2.channel.k8s.io", channels(Text, false, false)),
    ("v1.channel.k8s.io", channels(Text, false, false)),
    ("channel.k8s.io", channels(Text, false, false)),
    ("base64.channel.k8s.io", channels(Text, true, false)),
    ("", channels(Text, false, false)),
];
const WEBSOCKET_FORWARD: Table = &[
    ("SPDY/3.1+portforward.k8s.io", Spoken::SpdyInWebSocket),
    ("v2.portforward.k8s.io", Spoken::SpdyInWebSocket),
    ("v4.channel.k8s.io", channels(Text, false, false)),
    ("v4.base64.channel.k8s.io", channels(Text, true, false)),
];

/// Decides what to speak with a client.
pub fn negotiate(purpose: Purpose, headers: &HeaderMap) -> Answer {
    let words = |name: &str| -> Vec<String> {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|word| word.trim().to_owned())
            .filter(|word| !word.is_empty())
            .collect()
    };
    let has = |name: &str, wanted: &str| words(name).iter().any(|word| word.eq_ignore_ascii_case(wanted));
    if !has("connection", "upgrade") {
        return Answer::NoUpgrade;
    }
    let websocket = has("upgrade", "websocket");
    if !websocket && !has("upgrade", "SPDY/3.1") {
        return Answer::NoUpgrade;
    }
    let (table, offer) = match (websocket, purpose) {
        (true, Purpose::Command) => (WEBSOCKET_COMMAND, header::SEC_WEBSOCKET_PROTOCOL.as_str()),
        (true, Purpose::Forward) => (WEBSOCKET_FORWARD, header::SEC_WEBSOCKET_PROTOCOL.as_str()),
        (false, Purpose::Command) => (SPDY_COMMAND, STREAM_PROTOCOL),
        (false, Purpose::Forward) => (SPDY_FORWARD, STREAM_PROTOCOL),
    };
    let mut offered = words(offer);
    if offered.is_empty() {
        offered.push(String::new());
    }
    let chosen = offered.iter().find_map(|name| table.iter().find(|(ours, _)| ours == name));
    let Some((name, spoken)) = chosen else {
        return Answer::NoCommon {
            spoken: table.iter().map(|(n, _)| *n).filter(|n| !n.is_empty()).collect(),
        };
    };
    if !websocket {
        return Answer::Spdy { name, spoken: *spoken };
    }
    match headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()) {
        Some(key) => Answer::WebSocket { name, spoken: *spoken, key: key.to_owned() },
        None => Answer::NoUpgrade,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use http::HeaderValue;

    use super::*;

    fn check(purpose: Purpose, headers: &[(&'static str, &'static str)], expected: Expect) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        expected.assert_eq(&format!("{:?}", negotiate(purpose, &map)));
    }

    #[test]
    fn the_clients_order_decides() {
        let upgrade = |to| [("connection", "keep-alive, Upgrade"), ("upgrade", to)];
        let [c, s] = upgrade("SPDY/3.1");
        let protocol = |value| (STREAM_PROTOCOL, value);
        check(
            Purpose::Command,
            &[c, s, protocol("v9.channel.k8s.io"), protocol("v4.channel.k8s.io, v3.channel.k8s.io")],
            expect![[r#"Spdy { name: "v4.channel.k8s.io", spoken: Spdy { status: Json, resize: true } }"#]],
        );
        check(
            Purpose::Command,
            &[c, s],
            expect![[r#"Spdy { name: "", spoken: Spdy { status: Text, resize: false } }"#]],
        );
        check(
            Purpose::Forward,
            &[c, s, protocol("v4.channel.k8s.io")],
            expect![[r#"NoCommon { spoken: ["portforward.k8s.io"] }"#]],
        );
        let [c, w] = upgrade("websocket");
        let key = ("sec-websocket-key", "k");
        check(
            Purpose::Command,
            &[c, w, key, ("sec-websocket-protocol", "v5.channel.k8s.io,v4.channel.k8s.io")],
            expect![[
                r#"WebSocket { name: "v5.channel.k8s.io", spoken: Channels { status: Json, base64: false, close: true }, key: "k" }"#
            ]],
        );
        check(
            Purpose::Forward,
            &[c, w, key, ("sec-websocket-protocol", "SPDY/3.1+portforward.k8s.io")],
            expect![[
                r#"WebSocket { name: "SPDY/3.1+portforward.k8s.io", spoken: SpdyInWebSocket, key: "k" }"#
            ]],
        );
        check(Purpose::Command, &[c, w], expect!["NoUpgrade"]);
        check(Purpose::Command, &[("upgrade", "websocket")], expect!["NoUpgrade"]);
        check(Purpose::Command, &[c, ("upgrade", "h2c")], expect!["NoUpgrade"]);
    }
}
