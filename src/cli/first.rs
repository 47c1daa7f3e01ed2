//! The frame that a connection sends before anything else: a login, mostly.

use std::str::FromStr;

use chappe_client::{BODY_BYTES_MAX, BodyTooLong, Code};

/// What a place in the body for the number of the connection looks like.
const NUMBER: &str = "{n}";

/// What each command that may have to log in takes.
#[derive(Debug, clap::Args)]
pub(crate) struct FirstArgs {
    /// A frame that each connection sends before anything else, as a login; an n in braces
    /// is the number of the connection. An error in answer to it ends the run
    #[arg(long, value_name = "CODE:BODY")]
    pub(super) first: Option<First>,
}

/// A code and a body, `CODE:BODY`. Each `{n}` in the body stands for the number of the
/// connection, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct First {
    pub(super) code: Code,
    body: String,
}

impl First {
    /// What the `number`th connection sends.
    pub(super) fn body(&self, number: u64) -> Vec<u8> {
        self.body.replace(NUMBER, &number.to_string()).into()
    }
}

impl FromStr for First {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (code, body) = text.split_once(':').ok_or("expected CODE:BODY")?;
        let code = code.parse().map_err(|error| format!("the code: {error}"))?;
        if body.len() > BODY_BYTES_MAX {
            return Err(BodyTooLong(body.len()).to_string());
        }
        Ok(Self { code, body: body.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_and_a_body_are_told_apart_at_the_first_colon() {
        let first: First = "16:user:secret".parse().unwrap();
        assert_eq!(first, First { code: 16, body: "user:secret".to_owned() });
        assert_eq!("16:".parse(), Ok(First { code: 16, body: String::new() }));
        for wrong in ["16", "", "x:body", "65536:body", "-1:"] {
            assert!(wrong.parse::<First>().is_err(), "{wrong}");
        }
        let body = "x".repeat(BODY_BYTES_MAX);
        assert!(format!("16:{body}").parse::<First>().is_ok());
        assert!(format!("16:{body}x").parse::<First>().is_err());
    }
}
