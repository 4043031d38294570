//! Amounts of CPU and memory, as Kubernetes writes them: `500m`, `2`, `1.5Gi`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// An amount as it was written. In YAML a bare number is taken too: `cpu: 2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quantity(String);

impl Quantity {
    /// The text, for example `500m`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The amount in billionths, or `None` if the text is no amount. `"1"` and `"1000m"` give the same.
    pub fn nanos(&self) -> Option<i128> {
        nanos(&self.0)
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The amount that `text` names, in billionths, or `None` if it is no amount. Digits below a billionth are dropped.
///
/// The grammar is that of `k8s.io/apimachinery/pkg/api/resource`, without its exponents (`1e3`).
pub fn nanos(text: &str) -> Option<i128> {
    let split = text.find(|letter: char| !matches!(letter, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction: i128 = format!("{fraction:0<9.9}").parse().ok()?;
    let amount = whole.checked_mul(NANO)?.checked_add(fraction)?;
    let (factor, divisor): (i128, i128) = match suffix {
        "n" => (1, NANO),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "" => (1, 1),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (NANO, 1),
        "T" => (1_000 * NANO, 1),
        "P" => (1_000_000 * NANO, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        _ => return None,
    };
    let scaled = amount.checked_mul(factor)? / divisor;
    Some(if negative { -scaled } else { scaled })
}

const NANO: i128 = 1_000_000_000;

/// What the API server takes as an amount; nothing below zero, and no exponents.
const PATTERN: &str = r"^[0-9]+(\.[0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$";

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true, "pattern": PATTERN, "maxLength": 20 })
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = Quantity;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an amount, such as 2 or 500m or 4Gi")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Quantity, E> {
                Ok(Quantity(text.to_owned()))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_amount_in_two_spellings_is_the_same() {
        for (one, other) in
            [("1", "1000m"), ("0.5", "500m"), ("1.5Gi", "1536Mi"), ("1Ki", "1024"), ("2k", "2000"), ("+3", "3")]
        {
            assert_eq!(nanos(one), nanos(other), "{one} and {other}");
            assert!(nanos(one).is_some());
        }
        assert_ne!(nanos("1G"), nanos("1Gi"));
        assert_eq!(nanos("-1"), Some(-NANO));
    }

    #[test]
    fn what_is_no_amount_gives_none() {
        for text in ["", "m", "1.2.3", "one", "1mi", "1 Gi", "--1"] {
            assert_eq!(nanos(text), None, "{text:?}");
        }
    }

    #[test]
    fn numbers_and_texts_are_both_read() {
        let both: Vec<Quantity> = serde_json::from_str(r#"[2, "500m"]"#).unwrap();
        assert_eq!(both, [Quantity::from("2"), Quantity::from("500m")]);
    }
}
