//! Image references as users type them.
//!
//! Guarantees: a parsed `Reference` follows the grammar of the distribution specification; its parts can
//! be put into a URL path without quoting, and no part between slashes is `..`.
//! Docker's short forms are completed: `nginx` is `docker.io/library/nginx:latest`.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError, is_hex64};

/// A completed image reference: registry, repository, and a tag or a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a string is no image reference. Each message names the part that is wrong.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("image reference is empty")]
    Empty,
    /// The reference is 64 hex digits: an image id, which is not a name.
    #[error("image reference `{0}` is an image id, not a name; ids cannot be pulled")]
    Id(String),
    /// The registry part is not `host` or `host:port`.
    #[error("image reference `{reference}`: registry `{domain}` is not a host with an optional port")]
    Domain {
        /// The whole input.
        reference: String,
        /// The part before the first slash.
        domain: String,
    },
    /// The repository has an upper-case letter.
    #[error("image reference `{reference}`: repository `{repository}` must be lower case")]
    UpperCase {
        /// The whole input.
        reference: String,
        /// The repository part.
        repository: String,
    },
    /// The repository does not follow the grammar.
    #[error(
        "image reference `{reference}`: repository `{repository}` is malformed; each part between slashes is letters and digits, joined by `.`, `_`, `__` or dashes"
    )]
    Repository {
        /// The whole input.
        reference: String,
        /// The repository part.
        repository: String,
    },
    /// Registry and repository have more than 255 characters.
    #[error("image reference is too long: registry and repository have more than 255 characters")]
    TooLong,
    /// The tag does not follow the grammar.
    #[error(
        "image reference `{reference}`: tag `{tag}` is malformed; a tag is up to 128 letters, digits, `_`, `.` and `-`, and starts with none of the last two"
    )]
    Tag {
        /// The whole input.
        reference: String,
        /// The tag part.
        tag: String,
    },
    /// The digest is malformed.
    #[error("image reference `{reference}` has a bad digest")]
    Digest {
        /// The whole input.
        reference: String,
        /// What is wrong with the digest.
        source: DigestError,
    },
}

impl Reference {
    /// The registry's name as users know it, e.g. `docker.io` or `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry, e.g. `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Registry and repository, e.g. `docker.io/library/nginx`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.repository)
    }

    /// The tag, if one was given, or `latest` if neither tag nor digest were.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given. It decides; a tag beside it is only a remark.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository at another digest, without a tag.
    pub fn at(&self, digest: Digest) -> Reference {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// What names the manifest in the registry: the digest, else the tag.
    pub(crate) fn manifest_name(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => unreachable!("a reference has a tag or a digest"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(input: &str) -> Result<Reference, ReferenceError> {
        if input.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if input.len() > 4096 {
            return Err(ReferenceError::TooLong);
        }
        if is_hex64(input) {
            return Err(ReferenceError::Id(input.to_owned()));
        }
        let (rest, digest) = match input.split_once('@') {
            None => (input, None),
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|source| ReferenceError::Digest { reference: input.to_owned(), source })?;
                (rest, Some(digest))
            }
        };
        // A colon after the last slash starts the tag; one before it is the registry's port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ReferenceError::Tag { reference: input.to_owned(), tag: tag.to_owned() });
        }
        let (domain, repository) = split_domain(name);
        if !is_domain(domain) {
            return Err(ReferenceError::Domain { reference: input.to_owned(), domain: domain.to_owned() });
        }
        let repository = if domain == DEFAULT_DOMAIN && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        if repository.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::UpperCase { reference: input.to_owned(), repository });
        }
        if !repository.split('/').all(is_component) {
            return Err(ReferenceError::Repository { reference: input.to_owned(), repository });
        }
        if domain.len() + 1 + repository.len() > 255 {
            return Err(ReferenceError::TooLong);
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Reference { domain: domain.to_owned(), repository, tag, digest })
    }
}

const DEFAULT_DOMAIN: &str = "docker.io";

/// Splits off the registry if the first part looks like one: it has a dot, a colon or an upper-case
/// letter, or is `localhost`.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&tag.len())
        && word(tag.as_bytes()[0])
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let Some((v6, rest)) = rest.split_once(']') else { return false };
            if v6.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match rest.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if rest.is_empty() => (None, None),
                None => return false,
            }
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    let host_ok = host.is_none_or(|host| {
        host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
    });
    host_ok
        && port.is_none_or(|p| {
            p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

/// `[a-z0-9]+` parts joined by one `.`, one or two `_`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alnum(first) || !alnum(last) {
        return false;
    }
    bytes.split(|&b| alnum(b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-')
    })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check(input: &str, expect: Expect) {
        let text = match input.parse::<Reference>() {
            Ok(reference) => reference.to_string(),
            Err(err) => format!("error: {err}"),
        };
        expect.assert_eq(&text);
    }

    #[test]
    fn completes_short_names() {
        check("nginx", expect!["docker.io/library/nginx:latest"]);
        check("nginx:1.27", expect!["docker.io/library/nginx:1.27"]);
        check("user/app", expect!["docker.io/user/app:latest"]);
        check("index.docker.io/user/app", expect!["docker.io/user/app:latest"]);
        check("docker.io/nginx", expect!["docker.io/library/nginx:latest"]);
        check("localhost/hello:1", expect!["localhost/hello:1"]);
        check("localhost:5000/a/b/c", expect!["localhost:5000/a/b/c:latest"]);
        check("[::1]:5000/app", expect!["[::1]:5000/app:latest"]);
        check("ghcr.io/o/my__app_x--y.z:v1", expect!["ghcr.io/o/my__app_x--y.z:v1"]);
        let digest = format!("r.io/a@sha256:{}", "0".repeat(64));
        assert_eq!(digest.parse::<Reference>().map(|r| r.to_string()), Ok(digest));
    }

    #[test]
    fn brackets_hold_addresses_only() {
        for bad in ["[::1/app", "[a?b#c.d/app", "[::1]x/app", "[::g]/app", "[::1]:0/app", "[::1%eth0]/app"] {
            assert!(matches!(bad.parse::<Reference>(), Err(ReferenceError::Domain { .. })), "{bad}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        check("", expect!["error: image reference is empty"]);
        check(
            "Nginx",
            expect!["error: image reference `Nginx`: repository `library/Nginx` must be lower case"],
        );
        check(
            "a//b",
            expect![
                "error: image reference `a//b`: repository `a//b` is malformed; each part between slashes is letters and digits, joined by `.`, `_`, `__` or dashes"
            ],
        );
        check(
            "r.io/../etc",
            expect![
                "error: image reference `r.io/../etc`: repository `../etc` is malformed; each part between slashes is letters and digits, joined by `.`, `_`, `__` or dashes"
            ],
        );
        check(
            "a:b:c",
            expect![
                "error: image reference `a:b:c`: repository `library/a:b` is malformed; each part between slashes is letters and digits, joined by `.`, `_`, `__` or dashes"
            ],
        );
        check(
            "a:-x",
            expect![
                "error: image reference `a:-x`: tag `-x` is malformed; a tag is up to 128 letters, digits, `_`, `.` and `-`, and starts with none of the last two"
            ],
        );
        check(
            "r.io:x/a",
            expect![
                "error: image reference `r.io:x/a`: registry `r.io:x` is not a host with an optional port"
            ],
        );
        check("a@sha256:12", expect!["error: image reference `a@sha256:12` has a bad digest"]);
        check(
            "a b",
            expect![
                "error: image reference `a b`: repository `library/a b` is malformed; each part between slashes is letters and digits, joined by `.`, `_`, `__` or dashes"
            ],
        );
        assert!(matches!("0".repeat(64).parse::<Reference>(), Err(ReferenceError::Id(_))));
        assert_eq!("a".repeat(300).parse::<Reference>(), Err(ReferenceError::TooLong));
    }

    proptest! {
        #[test]
        fn never_panics(input in "\\PC*") {
            let _ = input.parse::<Reference>();
        }

        #[test]
        fn round_trips(input in "([a-z0-9]{1,5}(\\.[a-z]{1,3})?(:[1-9][0-9]{0,3})?/)?[a-z0-9]{1,5}([._-][a-z0-9]{1,3}){0,2}(/[a-z0-9]{1,5}){0,2}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,5})?") {
            if let Ok(reference) = input.parse::<Reference>() {
                let text = reference.to_string();
                prop_assert_eq!(text.parse::<Reference>(), Ok(reference));
                prop_assert!(!text.split("/").any(|part| part == ".."));
            }
        }
    }
}
