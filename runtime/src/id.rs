//! Names of sandboxes and containers.
//!
//! Guarantees: an id is 1 to 64 characters of `[a-z0-9-]`, does not start with `-`, and so is
//! one safe file name below the state directories.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A string that cannot be an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no id: 1 to 64 characters of a-z, 0-9 and '-' are wanted, the first not '-'")]
pub struct BadId {
    /// What was given (cut to 80 characters).
    pub text: String,
}

fn check(text: &str) -> Result<(), BadId> {
    let good = !text.is_empty()
        && text.len() <= 64
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if good { Ok(()) } else { Err(BadId { text: text.chars().take(80).collect() }) }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Checks the text and makes an id of it.
            pub fn new(text: &str) -> Result<Self, BadId> {
                check(text)?;
                Ok(Self(text.into()))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;

            fn try_from(text: String) -> Result<Self, BadId> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.to_string()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

id! {
    /// The id of a pod sandbox.
    SandboxId
}

id! {
    /// The id of a container.
    ContainerId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_safe_file_names_are_ids() {
        for good in ["a", "0", "web-1", &"f".repeat(64)] {
            assert!(ContainerId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a/b", "..", "a.b", "a\0", "ä", &"f".repeat(65)] {
            assert!(ContainerId::new(bad).is_err(), "{bad}");
            let json = serde_json::to_string(bad).expect("a string");
            assert!(serde_json::from_str::<SandboxId>(&json).is_err(), "{bad}");
        }
    }
}
