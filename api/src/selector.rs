//! Label and field selectors.
//!
//! Guarantees: what parses prints back to an equal selector; matching never fails.

use serde_json::Value;

use crate::registry::Resource;
use crate::status::Failure;

/// A parsed label selector: all requirements must hold; none matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<()>,
}

impl LabelSelector {
    /// Parses the query parameter, like `a=b,c in (d,e),!f`.
    pub fn parse(_text: &str) -> Result<LabelSelector, Failure> {
        Ok(LabelSelector::default())
    }

    /// Reads a `LabelSelector` object (`matchLabels`, `matchExpressions`). Absent (null) matches nothing, empty everything.
    pub fn from_object(_object: &Value) -> Result<LabelSelector, Failure> {
        Ok(LabelSelector::default())
    }

    /// Whether the labels (an object of strings, or null) fulfil every requirement.
    pub fn matches(&self, _labels: &Value) -> bool {
        true
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
}

/// A parsed field selector; its fields are supported by the kind it was parsed for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<()>,
}

impl FieldSelector {
    /// Parses the query parameter for one kind; an unsupported field is a BadRequest.
    pub fn parse(_row: &Resource, _text: &str) -> Result<FieldSelector, Failure> {
        Ok(FieldSelector::default())
    }

    /// Whether the object fulfils every term.
    pub fn matches(&self, _object: &Value) -> bool {
        true
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that `field` must equal, when a term says so: `metadata.name=x` turns a list into a get.
    pub fn exact(&self, _field: &str) -> Option<&str> {
        None
    }
}
