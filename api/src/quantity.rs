//! `resource.Quantity`: exact decimal amounts with a suffix.
//!
//! Guarantees: arithmetic is exact to a billionth (1n); finer digits are rounded away from zero when parsed; the
//! printed form is canonical and parses back to the same amount.
//! Assumes: amounts fit 2^63-1 in magnitude; larger ones are capped there, as upstream does.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

/// How an amount prefers to be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// `n`, `u`, `m`, none, `k`, `M`, `G`, `T`, `P`, `E`.
    #[default]
    DecimalSi,
    /// `Ki`, `Mi`, `Gi`, `Ti`, `Pi`, `Ei`.
    BinarySi,
    /// `e3`, `e6`, …
    DecimalExponent,
}

/// An amount. Two are equal when they are the same amount, however written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// A text that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct ParseError;

const NANO: i128 = 1_000_000_000;
const MAX_NANOS: i128 = (i64::MAX as i128) * NANO;

impl Quantity {
    /// Zero.
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    /// Whole units.
    pub const fn units(units: i64, format: Format) -> Quantity {
        Quantity { nanos: units as i128 * NANO, format }
    }

    /// Bytes, printed with binary suffixes.
    pub const fn bytes(bytes: i64) -> Quantity {
        Quantity::units(bytes, Format::BinarySi)
    }

    /// Thousandths, as for CPU.
    pub const fn millis(millis: i64) -> Quantity {
        Quantity { nanos: millis as i128 * 1_000_000, format: Format::DecimalSi }
    }

    /// Billionths, as CPU usage is measured.
    pub const fn nanos(nanos: i64) -> Quantity {
        Quantity { nanos: nanos as i128, format: Format::DecimalSi }
    }

    /// Reads a JSON string or number.
    pub fn from_value(value: &Value) -> Result<Quantity, ParseError> {
        match value {
            Value::String(s) => s.parse(),
            Value::Number(n) => n.to_string().parse(),
            _ => Err(ParseError),
        }
    }

    /// Reads a JSON string or number; anything else, or nothing, is zero. For objects that were validated.
    pub fn of(value: Option<&Value>) -> Quantity {
        value.and_then(|v| Quantity::from_value(v).ok()).unwrap_or_default()
    }

    /// Whole units, rounded away from zero.
    pub fn value(&self) -> i64 {
        saturate(div_away(self.nanos, NANO))
    }

    /// Thousandths, rounded away from zero.
    pub fn milli_value(&self) -> i64 {
        saturate(div_away(self.nanos, 1_000_000))
    }

    /// The amount as a float, for metrics and scores.
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// Whether the amount is zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether the amount is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether the amount has a fraction of a unit.
    pub fn is_fractional(&self) -> bool {
        self.nanos % NANO != 0
    }

    /// How it prefers to be printed.
    pub fn format(&self) -> Format {
        self.format
    }

    fn with(self, nanos: i128) -> Quantity {
        Quantity { nanos: nanos.clamp(-MAX_NANOS, MAX_NANOS), ..self }
    }
}

impl std::ops::Add for Quantity {
    type Output = Quantity;
    /// The sum, in the format of the left side unless that is zero.
    fn add(self, other: Quantity) -> Quantity {
        let form = if self.is_zero() { other } else { self };
        form.with(self.nanos + other.nanos)
    }
}

impl std::ops::AddAssign for Quantity {
    fn add_assign(&mut self, other: Quantity) {
        *self = *self + other;
    }
}

impl std::ops::Sub for Quantity {
    type Output = Quantity;
    /// The difference, in the format of the left side unless that is zero.
    fn sub(self, other: Quantity) -> Quantity {
        let form = if self.is_zero() { other } else { self };
        form.with(self.nanos - other.nanos)
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Quantity>>(iter: I) -> Quantity {
        iter.fold(Quantity::ZERO, |a, b| a + b)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

fn saturate(v: i128) -> i64 {
    v.clamp(i64::MIN as i128, i64::MAX as i128) as i64
}

fn div_away(v: i128, by: i128) -> i128 {
    let q = v / by;
    if v % by == 0 { q } else { q + v.signum() }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Quantity, ParseError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseError);
        }
        let (base, exponent, format) = parse_suffix(suffix).ok_or(ParseError)?;
        let nanos = scale(whole, fraction, base, exponent);
        Ok(Quantity { nanos: if negative { -nanos } else { nanos }, format })
    }
}

/// Base (2 or 10) and exponent of a suffix.
fn parse_suffix(suffix: &str) -> Option<(u32, i32, Format)> {
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const DECIMAL: [(&str, i32); 10] = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    if let Some(i) = BINARY.iter().position(|b| *b == suffix) {
        return Some((2, 10 * (i as i32 + 1), Format::BinarySi));
    }
    if let Some((_, e)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Some((10, *e, Format::DecimalSi));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let e: i32 = exponent.parse().ok()?;
    Some((10, e.clamp(-1000, 1000), Format::DecimalExponent))
}

/// `whole.fraction × base^exponent` in billionths, rounded up, capped.
fn scale(whole: &str, fraction: &str, base: u32, exponent: i32) -> i128 {
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|b| b - b'0').collect();
    // Value = digits × 10^-fraction.len() × base^exponent, wanted × 10^9.
    let mut tens = 9 - fraction.len() as i64;
    let mut twos: i128 = 1;
    if base == 2 {
        twos = 1i128 << exponent;
    } else {
        tens += i64::from(exponent);
    }
    let mut value: i128 = 0;
    let mut lost = false;
    // With tens < 0 the last -tens digits are below a billionth (before the factor of two).
    if twos == 1 {
        let keep = digits.len() as i64 + tens.min(0);
        for (i, d) in digits.iter().enumerate() {
            if (i as i64) < keep {
                value = value.saturating_mul(10).saturating_add(i128::from(*d)).min(MAX_NANOS);
            } else {
                lost |= *d != 0;
            }
        }
        for _ in 0..tens.max(0) {
            value = value.saturating_mul(10).min(MAX_NANOS);
        }
        return (value + i128::from(lost)).min(MAX_NANOS);
    }
    // Binary suffixes: whole part and fraction separately, both exact enough for i128.
    for b in whole.bytes() {
        value = value.saturating_mul(10).saturating_add(i128::from(b - b'0')).min(MAX_NANOS);
    }
    value = value.saturating_mul(NANO).min(MAX_NANOS).saturating_mul(twos).min(MAX_NANOS);
    // The fraction: at most 18 digits matter at 2^60 × 10^9 within i128; further ones only round up.
    let kept = fraction.len().min(18);
    let mut numerator: i128 = 0;
    let mut denominator: i128 = 1;
    for b in fraction.bytes().take(kept) {
        numerator = numerator * 10 + i128::from(b - b'0');
        denominator *= 10;
    }
    lost = fraction.bytes().skip(kept).any(|b| b != b'0');
    // numerator × 2^60 may exceed i128 with the factor of 10^9, so divide in two steps.
    let product = numerator * twos;
    let units = product / denominator;
    let rest = product % denominator * NANO;
    let part = units.saturating_mul(NANO).saturating_add(rest / denominator);
    lost |= rest % denominator != 0;
    value.saturating_add(part).saturating_add(i128::from(lost)).min(MAX_NANOS)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let units = self.nanos / NANO;
        let exact = self.nanos % NANO == 0;
        if self.format == Format::BinarySi && exact && units.abs() >= 1024 {
            let mut mantissa = units;
            let mut power = 0;
            while mantissa % 1024 == 0 && power < 6 {
                mantissa /= 1024;
                power += 1;
            }
            return write!(f, "{mantissa}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let mut mantissa = self.nanos;
        let mut exponent = -9;
        while mantissa % 1000 == 0 && exponent < 18 {
            mantissa /= 1000;
            exponent += 3;
        }
        match self.format {
            Format::DecimalExponent if exponent == 0 => write!(f, "{mantissa}"),
            Format::DecimalExponent => write!(f, "{mantissa}e{exponent}"),
            _ => {
                let suffix = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][(exponent / 3 + 3) as usize];
                write!(f, "{mantissa}{suffix}")
            }
        }
    }
}

impl From<Quantity> for Value {
    fn from(q: Quantity) -> Value {
        Value::from(q.to_string())
    }
}

impl From<Quantity> for crate::k8s::Quantity {
    fn from(q: Quantity) -> crate::k8s::Quantity {
        crate::k8s::Quantity(q.to_string())
    }
}

impl TryFrom<&crate::k8s::Quantity> for Quantity {
    type Error = ParseError;
    fn try_from(q: &crate::k8s::Quantity) -> Result<Quantity, ParseError> {
        q.0.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, canonical: &str) {
        let q: Quantity = text.parse().unwrap_or_else(|_| panic!("{text}"));
        assert_eq!(q.to_string(), canonical, "{text}");
        assert_eq!(canonical.parse::<Quantity>(), Ok(q));
    }

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("1", "1"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("0.5", "500m"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("2048Mi", "2Gi"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("9E", "9E"),
            ("1000k", "1M"),
            ("0.1Ki", "102400m"),
            ("-1.5", "-1500m"),
            ("+5", "5"),
            (".5", "500m"),
            ("5.", "5"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("1023Ki", "1023Ki"),
            ("0.5Ki", "512"),
            ("1e0", "1"),
            ("1234567890", "1234567890"),
            ("100e-3", "100e-3"),
            ("9223372036854775807", "9223372036854775807"),
            ("99E", "9223372036854775807"),
            ("1.123456789012Ki", "1150419751949n"),
        ] {
            check(text, canonical);
        }
        for bad in ["", "-", ".", "1.2.3", "1 Gi", "Gi", "1gi", "1mm", "1e", "0x10", "१"] {
            assert_eq!(bad.parse::<Quantity>(), Err(ParseError), "{bad}");
        }
    }

    #[test]
    fn values_round_away_from_zero() {
        let q: Quantity = "1500m".parse().expect("quantity");
        assert_eq!((q.value(), q.milli_value()), (2, 1500));
        assert_eq!("-1500m".parse::<Quantity>().expect("quantity").value(), -2);
        assert_eq!((Quantity::bytes(1024) + Quantity::bytes(1024)).to_string(), "2Ki");
        assert_eq!((Quantity::ZERO + Quantity::bytes(2048)).to_string(), "2Ki");
        assert!(Quantity::millis(999) < Quantity::units(1, Format::DecimalSi));
    }

    proptest! {
        #[test]
        fn printed_parses_back(n in any::<i64>(), suffix in "(n|u|m||k|Ki|Mi|Gi|e3|e-3)") {
            let q: Quantity = format!("{}{suffix}", n / 1_000_000).parse().expect("quantity");
            let text = q.to_string();
            let again: Quantity = text.parse().expect("canonical");
            prop_assert_eq!(again, q);
            prop_assert_eq!(again.to_string(), text);
        }

        #[test]
        fn any_text_is_refused_or_stable(text in "[-+]?[0-9.]{0,25}[a-zA-Z]{0,2}[-+]?[0-9]{0,3}") {
            if let Ok(q) = text.parse::<Quantity>() {
                prop_assert_eq!(q.to_string().parse::<Quantity>(), Ok(q));
            }
        }
    }
}
