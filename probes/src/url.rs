//! The URL of an HTTP probe, and where a redirect leads: pure functions.

use crate::model::Scheme;
use crate::words;

/// An absolute URL, as far as a probe needs one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) scheme: Scheme,
    /// Without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Begins with a slash, may have a query, and can be sent as it is.
    pub(crate) path: String,
    /// Whether the port is written; it is not after a redirect to a URL without one.
    show_port: bool,
}

impl Url {
    /// The URL that a probe asks first.
    pub(crate) fn new(scheme: Scheme, host: &str, port: u16, path: &str) -> Url {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Url { scheme, host, port, path: sendable(path), show_port: true }
    }

    /// What goes into the `Host` header.
    pub(crate) fn authority(&self) -> String {
        if self.show_port {
            return words::address(&self.host, self.port);
        }
        if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() }
    }

    /// Where a `Location` header leads, and whether it names no host; `None` if it is no HTTP URL.
    pub(crate) fn join(&self, location: &str) -> Option<(Url, bool)> {
        let location = location.trim();
        if let Some((scheme, rest)) = location.split_once("://") {
            let scheme = match scheme.to_ascii_lowercase().as_str() {
                "http" => Scheme::Http,
                "https" => Scheme::Https,
                _ => return None,
            };
            return Some((absolute(scheme, rest)?, false));
        }
        if let Some(rest) = location.strip_prefix("//") {
            return Some((absolute(self.scheme, rest)?, false));
        }
        let (own, query) =
            self.path.split_once('?').map_or((self.path.as_str(), None), |(p, q)| (p, Some(q)));
        let path = match location.chars().next() {
            Some('/') => location.to_owned(),
            Some('?') => format!("{own}{location}"),
            Some('#') | None => query.map_or(own.to_owned(), |query| format!("{own}?{query}")),
            Some(_) => {
                let directory = own.rsplit_once('/').map_or("", |(directory, _)| directory);
                format!("{directory}/{location}")
            }
        };
        Some((Url { path: sendable(&without_dots(&path)), ..self.clone() }, true))
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}{}", self.scheme.as_str(), self.authority(), self.path)
    }
}

fn absolute(scheme: Scheme, rest: &str) -> Option<Url> {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let authority = authority.rsplit_once('@').map_or(authority, |(_, authority)| authority);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    if host.is_empty() {
        return None;
    }
    let default = match scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    };
    let url = Url::new(scheme, host, port.unwrap_or(default), path);
    Some(Url { show_port: port.is_some(), ..url })
}

/// The path with a slash before it, without a fragment, and with everything escaped that a request line
/// cannot hold.
fn sendable(path: &str) -> String {
    let path = path.split_once('#').map_or(path, |(path, _)| path);
    let mut text = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        text.push('/');
    }
    for byte in path.bytes() {
        match byte {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0..=b' ' | 0x7f.. => {
                text.push_str(&format!("%{byte:02X}"));
            }
            _ => text.push(char::from(byte)),
        }
    }
    text
}

/// The path with `.` and `..` resolved.
fn without_dots(path: &str) -> String {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let mut parts: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    for (index, segment) in segments.iter().enumerate() {
        let last = index + 1 == segments.len();
        match *segment {
            "." | ".." => {
                if *segment == ".." {
                    parts.pop();
                }
                if last {
                    parts.push("");
                }
            }
            segment => parts.push(segment),
        }
    }
    let path = format!("/{}", parts.join("/"));
    query.map_or(path.clone(), |query| format!("{path}?{query}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(host: &str, path: &str) -> Url {
        Url::new(Scheme::Http, host, 8080, path)
    }

    #[test]
    fn paths_are_made_sendable() {
        assert_eq!(url("10.0.0.1", "").to_string(), "http://10.0.0.1:8080/");
        assert_eq!(url("fd42::1", "healthz?full=1#top").to_string(), "http://[fd42::1]:8080/healthz?full=1");
        assert_eq!(url("h", "/a b\u{e9}\r\nX: y").path, "/a%20b%C3%A9%0D%0AX:%20y");
        assert_eq!(url("h", "/a%20b").path, "/a%20b");
    }

    #[test]
    fn redirects_are_followed_as_written() {
        let joined = |location: &str| {
            url("h", "/a/b?q").join(location).map_or("none".to_owned(), |(url, same)| format!("{url} {same}"))
        };
        assert_eq!(joined("/c"), "http://h:8080/c true");
        assert_eq!(joined("c?x"), "http://h:8080/a/c?x true");
        assert_eq!(joined("../../c/./d/.."), "http://h:8080/c/ true");
        assert_eq!(joined("?r"), "http://h:8080/a/b?r true");
        assert_eq!(joined("https://h/c"), "https://h/c false");
        assert_eq!(joined("//other:81"), "http://other:81/ false");
        assert_eq!(joined("http://user:pass@[fd42::1]:81/x"), "http://[fd42::1]:81/x false");
        assert_eq!(joined("ftp://h/"), "none");
        assert_eq!(joined("http://:80/"), "none");
    }
}
