//! Amounts of resources, as the kubelet calculates with them.

use api::quantity::Quantity;

/// The amount in thousandths, rounded up; `None` if the text is no quantity.
pub fn milli(text: &str) -> Option<i128> {
    text.parse::<Quantity>().ok().map(|q| i128::from(q.milli_value()))
}

/// The amount in whole units (bytes), rounded up; `None` if the text is no quantity.
pub fn whole(text: &str) -> Option<i64> {
    text.parse::<Quantity>().ok().map(|q| q.value())
}
