//! Works out an expression of numbers.

use async_trait::async_trait;
use croft_proto::v1::ContentBlock;
use serde_json::{Value, json};

use super::{Error, Invocation, Tool, text};

/// The longest expression; a longer one is refused.
const EXPRESSION_BYTES_MAX: usize = 1_000;
/// How deep brackets and signs may nest; the parser recurses.
const DEPTH_MAX: usize = 64;

/// `calculator`: `+ - * / % ^` and brackets, on decimal numbers.
pub struct Calculator;

#[async_trait]
impl Tool for Calculator {
    fn description(&self) -> &'static str {
        "Works out an arithmetic expression of numbers, + - * / % ^ and brackets, such as (2 + 3) * 4."
    }

    fn input_schema(&self) -> Value {
        json!({
            "type": "object",
            "properties": {"expression": {"type": "string", "maxLength": EXPRESSION_BYTES_MAX}},
            "required": ["expression"],
            "additionalProperties": false,
        })
    }

    async fn call(&self, invocation: Invocation) -> Result<Vec<ContentBlock>, Error> {
        let expression = invocation.arguments.get("expression").and_then(Value::as_str).unwrap_or_default();
        evaluate(expression).map(|number| text(number.to_string()))
    }
}

/// The value of an expression, or a sentence that says what is wrong with it.
fn evaluate(expression: &str) -> Result<f64, Error> {
    if expression.len() > EXPRESSION_BYTES_MAX {
        return Err(Error(format!("The expression is longer than {EXPRESSION_BYTES_MAX} bytes.")));
    }
    let mut parser = Parser { rest: expression, depth: 0 };
    let value = parser.sum()?;
    parser.blank();
    if !parser.rest.is_empty() {
        return Err(parser.unexpected());
    }
    if !value.is_finite() {
        return Err(Error("The result is not a number that can be written down.".into()));
    }
    Ok(value)
}

/// Recursive descent: a sum of products of powers of signed atoms.
struct Parser<'text> {
    rest: &'text str,
    depth: usize,
}

impl Parser<'_> {
    fn sum(&mut self) -> Result<f64, Error> {
        let mut value = self.product()?;
        loop {
            match self.operator(&['+', '-']) {
                Some('+') => value += self.product()?,
                Some(_) => value -= self.product()?,
                None => return Ok(value),
            }
        }
    }

    fn product(&mut self) -> Result<f64, Error> {
        let mut value = self.signed()?;
        loop {
            match self.operator(&['*', '/', '%']) {
                Some('*') => value *= self.signed()?,
                Some('/') => value /= self.divisor()?,
                Some(_) => value %= self.divisor()?,
                None => return Ok(value),
            }
        }
    }

    fn divisor(&mut self) -> Result<f64, Error> {
        let value = self.signed()?;
        if value == 0.0 { Err(Error("The expression divides by zero.".into())) } else { Ok(value) }
    }

    fn signed(&mut self) -> Result<f64, Error> {
        if self.depth == DEPTH_MAX {
            return Err(Error(format!("The expression nests deeper than {DEPTH_MAX}.")));
        }
        self.depth += 1;
        let value = match self.operator(&['+', '-']) {
            Some('-') => -self.signed()?,
            Some(_) => self.signed()?,
            None => self.power()?,
        };
        self.depth -= 1;
        Ok(value)
    }

    /// `2^3^2` is `2^(3^2)`, and `-2^2` is `-(2^2)`.
    fn power(&mut self) -> Result<f64, Error> {
        let base = self.atom()?;
        match self.operator(&['^']) {
            Some(_) => Ok(base.powf(self.signed()?)),
            None => Ok(base),
        }
    }

    fn atom(&mut self) -> Result<f64, Error> {
        if self.operator(&['(']).is_some() {
            let value = self.sum()?;
            return if self.operator(&[')']).is_some() { Ok(value) } else { Err(self.unexpected()) };
        }
        let digits = |character: char| character.is_ascii_digit() || character == '.';
        let end = self.rest.find(|character| !digits(character)).unwrap_or(self.rest.len());
        let value = self.rest[..end].parse().map_err(|_| self.unexpected())?;
        self.rest = &self.rest[end..];
        Ok(value)
    }

    /// The next character, if it is one of these.
    fn operator(&mut self, operators: &[char]) -> Option<char> {
        self.blank();
        let next = self.rest.chars().next().filter(|next| operators.contains(next))?;
        self.rest = &self.rest[next.len_utf8()..];
        Some(next)
    }

    fn blank(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn unexpected(&self) -> Error {
        match self.rest.chars().next() {
            Some(character) => Error(format!("There is an unexpected {character:?} in the expression.")),
            None => Error("The expression ends too early.".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precedence_is_as_at_school() {
        let cases = [
            ("1 + 2 * 3", 7.0),
            ("(1 + 2) * 3", 9.0),
            ("8 - 3 - 2", 3.0),
            ("8 / 4 / 2", 1.0),
            ("7 % 4", 3.0),
            ("2 ^ 3 ^ 2", 512.0),
            ("-2 ^ 2", -4.0),
            ("2 ^ -1", 0.5),
            ("--3", 3.0),
            (" 1.5*4 ", 6.0),
        ];
        for (expression, expected) in cases {
            assert_eq!(evaluate(expression), Ok(expected), "{expression}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_said_in_a_sentence() {
        for expression in ["", "1 +", "(1", "1)", "two", "1 / 0", "1..2", "9^9^9^9", "1 % (2-2)"] {
            assert!(evaluate(expression).unwrap_err().0.ends_with('.'), "{expression}");
        }
        assert!(evaluate(&"(".repeat(500)).unwrap_err().0.contains("deeper"));
        assert!(evaluate(&"-".repeat(500)).unwrap_err().0.contains("deeper"));
        assert!(evaluate(&"1".repeat(2_000)).unwrap_err().0.contains("longer"));
    }
}
