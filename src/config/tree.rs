//! A parsed TOML value that owns its text, with the offset of every name and value.
//!
//! The parser's own tree borrows from the file's text even after it was made owned, and settings
//! of many files and of the command line live side by side. Its depth is bounded by the parser.

use toml::de::{DeTable, DeValue};
use toml::value::Datetime;
use toml::{Spanned, Value};

/// Names and values of a table, sorted by name.
pub(super) type Branches = Vec<(Spanned<String>, Spanned<Tree>)>;

/// One TOML value.
#[derive(Debug, Clone)]
pub(super) enum Tree {
    String(String),
    /// As written, and its number if that fits into TOML's 64 bits.
    Integer(String, Option<i64>),
    Float(String),
    Boolean(bool),
    Datetime(Datetime),
    Array(Vec<Spanned<Tree>>),
    Table(Branches),
}

/// Parses one value, as it stands behind a `=`.
pub(super) fn parse_value(text: &str) -> Option<Spanned<Tree>> {
    DeValue::parse(text).ok().map(spanned)
}

pub(super) fn branches(table: DeTable<'_>) -> Branches {
    table
        .into_iter()
        .map(|(name, value)| {
            (Spanned::new(name.span(), name.into_inner().into_owned()), spanned(value))
        })
        .collect()
}

fn spanned(value: Spanned<DeValue<'_>>) -> Spanned<Tree> {
    let span = value.span();
    let tree = match value.into_inner() {
        DeValue::String(text) => Tree::String(text.into_owned()),
        DeValue::Integer(integer) => {
            let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
            Tree::Integer(integer.to_string(), number)
        }
        DeValue::Float(float) => Tree::Float(float.as_str().to_owned()),
        DeValue::Boolean(flag) => Tree::Boolean(flag),
        DeValue::Datetime(when) => Tree::Datetime(when),
        DeValue::Array(array) => Tree::Array(array.iter().cloned().map(spanned).collect()),
        DeValue::Table(table) => Tree::Table(branches(table)),
    };
    Spanned::new(span, tree)
}

impl Tree {
    pub(super) fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        if let Self::Boolean(flag) = self { Some(*flag) } else { None }
    }

    /// A number that is no integer of 0 or more is `None`.
    pub(super) fn as_u64(&self) -> Option<u64> {
        if let Self::Integer(_, number) = self { u64::try_from((*number)?).ok() } else { None }
    }

    /// How many tables and arrays are nested here; a plain value is 0 deep.
    pub(super) fn depth(&self) -> usize {
        let below = match self {
            Self::Array(array) => array.iter().map(|item| item.get_ref().depth()).max(),
            Self::Table(table) => table.iter().map(|(_, value)| value.get_ref().depth()).max(),
            _ => return 0,
        };
        below.unwrap_or(0) + 1
    }

    /// A value of the free-form table, as handlers get it.
    pub(super) fn to_value(&self) -> Result<Value, String> {
        let out_of_range = |text: &str, allowed| format!("is {text}, must be {allowed}");
        Ok(match self {
            Self::String(text) => Value::String(text.clone()),
            Self::Integer(text, number) => {
                Value::Integer(number.ok_or_else(|| out_of_range(text, "an integer of 64 bits"))?)
            }
            Self::Float(text) => match text.parse::<f64>() {
                // An `inf` that was not written is a number that is too large.
                Ok(number) if !number.is_infinite() || text.contains("inf") => Value::Float(number),
                _ => return Err(out_of_range(text, "a float of 64 bits")),
            },
            Self::Boolean(flag) => Value::Boolean(*flag),
            Self::Datetime(when) => Value::Datetime(*when),
            Self::Array(array) => Value::Array(
                array.iter().map(|item| item.get_ref().to_value()).collect::<Result<_, _>>()?,
            ),
            Self::Table(table) => Value::Table(
                table
                    .iter()
                    .map(|(name, value)| Ok((name.get_ref().clone(), value.get_ref().to_value()?)))
                    .collect::<Result<_, String>>()?,
            ),
        })
    }
}
