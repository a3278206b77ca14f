//! Names, keys and values: what may be written where, in Kubernetes' words.
//!
//! Guarantees: each function answers with every complaint about the text, or with none.

/// What is wrong with a text; empty when nothing is.
pub type Complaints = Vec<String>;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// Lower-case alphanumerics with `inner` between them.
fn is_dns_part(text: &str) -> bool {
    let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let b = text.as_bytes();
    !b.is_empty() && ok(b[0]) && ok(b[b.len() - 1]) && b.iter().all(|c| ok(*c) || *c == b'-')
}

/// Alphanumerics of either case with `-`, `_` and `.` between them.
fn is_word(text: &str) -> bool {
    let b = text.as_bytes();
    !b.is_empty()
        && b[0].is_ascii_alphanumeric()
        && b[b.len() - 1].is_ascii_alphanumeric()
        && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// RFC 1123 subdomain, at most 253 bytes: names of most objects.
pub fn dns1123_subdomain(text: &str) -> Complaints {
    let mut out = Vec::new();
    if text.len() > 253 {
        out.push(too_long(253));
    }
    if !text.split('.').all(is_dns_part) {
        out.push(SUBDOMAIN.to_owned());
    }
    out
}

/// RFC 1123 label, at most 63 bytes: namespaces, containers, volumes.
pub fn dns1123_label(text: &str) -> Complaints {
    let mut out = Vec::new();
    if text.len() > 63 {
        out.push(too_long(63));
    }
    if !is_dns_part(text) {
        out.push(LABEL.to_owned());
    }
    out
}

/// RFC 1035 label, at most 63 bytes: services.
pub fn dns1035_label(text: &str) -> Complaints {
    let mut out = Vec::new();
    if text.len() > 63 {
        out.push(too_long(63));
    }
    if !is_dns_part(text) || text.as_bytes()[0].is_ascii_digit() {
        out.push(LABEL_1035.to_owned());
    }
    out
}

/// `prefix/name` or `name`: keys of labels, annotations, taints, finalizers, resources.
pub fn qualified_name(text: &str) -> Complaints {
    let mut out = Vec::new();
    let name = match text.split('/').collect::<Vec<_>>().as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                out.push("prefix part must be non-empty".to_owned());
            } else {
                out.extend(dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            *name
        }
        _ => {
            return vec![format!(
                "a qualified name {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        out.push(format!("name part {}", too_long(63)));
    }
    if !is_word(name) {
        out.push(format!("name part {QUALIFIED}"));
    }
    out
}

/// The value of a label, at most 63 bytes.
pub fn label_value(text: &str) -> Complaints {
    let mut out = Vec::new();
    if text.len() > 63 {
        out.push(too_long(63));
    }
    if !text.is_empty() && !is_word(text) {
        out.push(LABEL_VALUE.to_owned());
    }
    out
}

/// A port's name (IANA_SVC_NAME), at most 15 bytes with a letter in it.
pub fn port_name(text: &str) -> Complaints {
    let mut out = Vec::new();
    if text.len() > 15 {
        out.push("must be no more than 15 characters".to_owned());
    }
    let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if !text.bytes().all(ok) {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|c| c.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}

/// A port's number.
pub fn port_number(port: i64) -> Complaints {
    if (1..=65535).contains(&port) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".to_owned()]
    }
}

/// A variable's name: any printable ASCII but `=`.
pub fn env_name(text: &str) -> Complaints {
    if !text.is_empty() && text.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'=') {
        Vec::new()
    } else {
        vec![
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        ]
    }
}

/// A key of a ConfigMap or Secret, at most 253 bytes; never a path.
pub fn config_key(text: &str) -> Complaints {
    let mut out = Vec::new();
    if text.len() > 253 {
        out.push(too_long(253));
    }
    if text.is_empty() || !text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
    {
        out.push(CONFIG_KEY.to_owned());
    }
    if text == "." {
        out.push("must not be '.'".to_owned());
    } else if text == ".." {
        out.push("must not be '..'".to_owned());
    } else if text.starts_with("..") {
        out.push("must not start with '..'".to_owned());
    }
    out
}

/// An IPv4 or IPv6 address.
pub fn ip_address(text: &str) -> Complaints {
    if text.parse::<std::net::IpAddr>().is_ok() {
        Vec::new()
    } else {
        vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()]
    }
}

/// A name as a path element of the API (any kind): not empty, no `/`, no `%`, not `.` or `..`.
pub fn path_segment(text: &str) -> Complaints {
    match text {
        "." => vec!["may not be '.'".to_owned()],
        ".." => vec!["may not be '..'".to_owned()],
        _ => ['/', '%']
            .iter()
            .filter(|c| text.contains(**c))
            .map(|c| format!("may not contain '{c}'"))
            .collect(),
    }
}

/// The first part of a generated name, cut so that five random characters fit into 63 bytes.
pub fn generate_name_base(base: &str) -> &str {
    let mut end = base.len().min(58);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    &base[..end]
}

/// The alphabet of generated suffixes: no vowels, nothing that looks like another character.
pub const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_and_refuses() {
        assert!(dns1123_subdomain("a.b-c.d0").is_empty());
        for bad in ["", "A", "-a", "a-", "a..b", "a_b", "é"] {
            assert!(!dns1123_subdomain(bad).is_empty(), "{bad}");
        }
        assert!(!dns1123_label("a.b").is_empty());
        assert!(!dns1035_label("1a").is_empty());
        assert!(dns1035_label("a1").is_empty());
        assert!(qualified_name("example.com/My_Name.x").is_empty());
        for bad in ["", "/a", "a/", "a/b/c", "-a", "A.b/c d"] {
            assert!(!qualified_name(bad).is_empty(), "{bad}");
        }
        assert!(label_value("").is_empty());
        assert!(!label_value("a b").is_empty());
        assert!(port_name("http-2").is_empty());
        for bad in ["80", "a--b", "-a", "A", "averyveryverylong"] {
            assert!(!port_name(bad).is_empty(), "{bad}");
        }
        assert!(config_key("a.B-c_1").is_empty());
        assert!(!config_key("..data").is_empty());
        assert!(!config_key("a/b").is_empty());
        assert!(path_segment("a b").is_empty());
        assert!(!path_segment("a/b").is_empty());
    }
}
