//! `WWW-Authenticate` headers, taken apart. Pure.

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Finds the challenge that we can answer; bearer is preferred.
pub(super) fn parse(header: &str) -> Option<Challenge> {
    let mut basic = false;
    let mut rest = header.trim();
    while !rest.is_empty() {
        let (scheme, parameters) = rest.split_once(' ').unwrap_or((rest, ""));
        let (pairs, after) = pairs(parameters);
        if scheme.eq_ignore_ascii_case("bearer") {
            let find = |key: &str| {
                pairs.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, value)| value.clone())
            };
            return Some(Challenge::Bearer {
                realm: find("realm")?,
                service: find("service"),
                scope: find("scope"),
            });
        }
        basic |= scheme.eq_ignore_ascii_case("basic");
        rest = after;
    }
    basic.then_some(Challenge::Basic)
}

/// Reads `key="value"` pairs; gives what follows them: the next challenge.
fn pairs(mut text: &str) -> (Vec<(String, String)>, &str) {
    let mut pairs = Vec::new();
    loop {
        text = text.trim_start_matches([' ', ',', '\t']);
        let Some(equals) = text.find('=') else { return (pairs, text) };
        let key = text[..equals].trim_end();
        if key.contains([' ', ',']) {
            return (pairs, text);
        }
        let after = text[equals + 1..].trim_start();
        let (value, rest) = match after.strip_prefix('"') {
            Some(quoted) => {
                let mut value = String::new();
                let mut characters = quoted.char_indices();
                let end = loop {
                    match characters.next() {
                        Some((at, '"')) => break at + 1,
                        Some((_, '\\')) => value.extend(characters.next().map(|(_, c)| c)),
                        Some((_, c)) => value.push(c),
                        None => break quoted.len(),
                    }
                };
                (value, &quoted[end..])
            }
            None => {
                let end = after.find([',', ' ']).unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            }
        };
        pairs.push((key.to_owned(), value));
        text = rest;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges() {
        let bearer = Some(Challenge::Bearer {
            realm: "https://auth.docker.io/token".into(),
            service: Some("registry.docker.io".into()),
            scope: Some("repository:library/nginx:pull,push".into()),
        });
        let text = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io", scope="repository:library/nginx:pull,push""#;
        assert_eq!(parse(text), bearer);
        assert_eq!(parse(&format!("Basic realm=\"x\", {text}")), bearer);
        assert_eq!(parse("basic realm=r"), Some(Challenge::Basic));
        assert_eq!(parse("Basic"), Some(Challenge::Basic));
        assert_eq!(parse("Negotiate"), None);
        assert_eq!(parse("Bearer service=x"), None);
    }

    proptest! {
        #[test]
        fn ends(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
