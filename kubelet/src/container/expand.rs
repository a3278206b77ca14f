//! `$(NAME)` in commands, arguments, values and sub-paths.
//!
//! Guarantees: `$$` gives `$`, a reference to a name that is not known stays as it is written, and
//! the result of an expansion is not expanded again.

/// Expands the references in `text` with what `lookup` knows.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.chars().next() {
            Some('$') => {
                out.push('$');
                rest = &rest[1..];
            }
            Some('(') => match rest.find(')') {
                Some(end) => {
                    let name = &rest[1..end];
                    match lookup(name) {
                        Some(value) => out.push_str(&value),
                        None => out.push_str(&format!("$({name})")),
                    }
                    rest = &rest[end + 1..];
                }
                None => out.push('$'),
            },
            _ => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

/// The first name that `text` refers to and `lookup` does not know.
pub fn unknown(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Option<String> {
    let missing = std::cell::RefCell::new(None);
    expand(text, |name| {
        let value = lookup(name);
        if value.is_none() {
            missing.borrow_mut().get_or_insert_with(|| name.to_owned());
        }
        value
    });
    missing.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_as_kubernetes_documents_it() {
        let know = |name: &str| (name == "A").then(|| "1$(A)".to_owned());
        for (text, want) in [
            ("x$(A)y", "x1$(A)y"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1$(A)"),
            ("$(B)", "$(B)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$()", "$()"),
            ("ü$(A)ö", "ü1$(A)ö"),
        ] {
            assert_eq!(expand(text, know), want, "{text}");
        }
        assert_eq!(unknown("$(A)/$(B)", know), Some("B".into()));
    }
}
