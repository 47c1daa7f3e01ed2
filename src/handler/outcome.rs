//! How a handler or a hook ends: well, with an error for the peer, or with the end of the
//! connection.

use super::SendError;
use std::error::Error;
use std::fmt;

/// What a handler returns. An error is sent to the peer in place of the replies to the
/// message (error 4, the connection stays open), a [`Deny`] ends the connection (error 8).
/// A panic is error 4 too, and ends the connection ([`crate::CloseReason::HandlerPanicked`]).
/// What was pushed through a [`crate::Handle`] stays in all three cases. A program built with
/// `panic = "abort"` loses the whole worker instead.
///
/// ```
/// # use chappe::{Call, Deny, HandlerError, Outcome, Service};
/// fn halve<S: Service>(_: &S, _: &mut S::State, call: &mut Call<'_, S>) -> Outcome {
///     let number: u32 = std::str::from_utf8(call.body())?.parse()?; // error 4
///     if number == 13 {
///         return Err(Deny::close("not that one").into()); // error 8, and the end
///     }
///     if number % 2 == 1 {
///         return Err(HandlerError::new("an even number, please")); // error 4
///     }
///     call.reply(16, (number / 2).to_string().as_bytes())
/// }
/// ```
pub type Outcome = Result<(), HandlerError>;

type AnyError = Box<dyn Error + Send + Sync>;

/// Why a handler failed. Its text is sent, up to 512 bytes of it, and logged (level debug). Any
/// error becomes one by `?`, and so do a [`Deny`], a `&str` and a `String`; it is no [`Error`]
/// itself, or these could not be told apart.
///
/// The text of *any* error that `?` meets is sent to the peer, and not its cause: map what a
/// stranger must not read.
///
/// ```
/// # use chappe::*;
/// fn percent(text: &str) -> Result<u32, HandlerError> {
///     let number: u32 = text.parse()?; // any error
///     if number > 100 { Err("100 at most")? } // a text
///     Ok(number)
/// }
///
/// assert_eq!(percent("x").unwrap_err().to_string(), "invalid digit found in string");
/// assert_eq!(percent("101").unwrap_err().to_string(), "100 at most");
/// ```
#[derive(Debug)]
pub struct HandlerError(pub(super) Failure);

#[derive(Debug)]
pub(super) enum Failure {
    /// Error 4.
    Failed(String),
    /// A limit has no room: error 4 too.
    Full(String),
    /// Error 8, and the connection ends.
    Denied(String),
    /// Error 10: topics are off, or it is not the peer's topic.
    NotAllowed(String),
}

impl HandlerError {
    /// An error with a text for people: the peer and the log get it.
    ///
    /// ```
    /// # use chappe::*;
    /// # let (wanted, left) = (3, 1);
    /// let error = HandlerError::new(format!("{wanted} seats are wanted, {left} is left"));
    /// assert_eq!(error.to_string(), "3 seats are wanted, 1 is left");
    /// ```
    pub fn new(text: impl Into<String>) -> Self {
        Self(Failure::Failed(text.into()))
    }

    /// Whether a limit had no room: there may be some later.
    ///
    /// True only for what [`SendError::Full`] has become.
    ///
    /// ```
    /// # use chappe::*;
    /// assert!(HandlerError::from(SendError::Full).is_full()); // `handle.send(…)?`
    /// assert!(!HandlerError::from(SendError::Closed).is_full());
    /// assert!(!HandlerError::new("no").is_full());
    /// ```
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.0, Failure::Full(_))
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::Failed(text)
        | Failure::Full(text)
        | Failure::Denied(text)
        | Failure::NotAllowed(text)) = &self.0;
        f.write_str(text)
    }
}

impl<E: Into<AnyError>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let error = error.into();
        let is_full = matches!(error.downcast_ref(), Some(SendError::Full));
        let text = error.to_string();
        Self(if is_full { Failure::Full(text) } else { Failure::Failed(text) })
    }
}

impl From<Deny> for HandlerError {
    fn from(deny: Deny) -> Self {
        Self(Failure::Denied(deny.text))
    }
}

/// The application does not want this peer, or what it asks for: the peer gets the text
/// (error 8), and its connection ends.
///
/// ```
/// # use chappe::*;
/// /// For `connected`, or by `?` in a handler.
/// fn let_in(guests: usize) -> Result<(), Deny> {
///     if guests < 100 { Ok(()) } else { Err(Deny::close("the room is full")) }
/// }
///
/// assert!(let_in(99).is_ok());
/// assert_eq!(let_in(100).unwrap_err().to_string(), "the room is full");
/// ```
#[derive(Debug)]
pub struct Deny {
    pub(super) text: String,
    /// The service knows no passwords at all.
    pub(super) is_for_all: bool,
}

impl Deny {
    /// With a text for the peer, of which 512 bytes are sent at most.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct App;
    /// # impl Service for App {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) { routes.on(16, enter); }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// fn enter(_: &App, _: &mut (), _call: &mut Call<'_, App>) -> Outcome {
    ///     Err(Deny::close("not you").into())
    /// }
    ///
    /// let answer = testing::call(&App, &mut (), 16, b"");
    /// assert_eq!(answer.error, Some(testing::Refusal::Denied("not you".to_owned())));
    /// ```
    pub fn close(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_for_all: false }
    }

    /// What a service answers that has no [`super::Service::authenticate`].
    pub(super) fn without_passwords() -> Self {
        Self { text: "this service knows no passwords".to_owned(), is_for_all: true }
    }
}

impl fmt::Display for Deny {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<E: Into<AnyError>> From<E> for Deny {
    fn from(error: E) -> Self {
        Self::close(error.into().to_string())
    }
}

/// Why a service cannot start, or what is wrong with its configuration.
///
/// ```
/// # use chappe::StartError;
/// # use std::path::Path;
/// fn words(path: &Path) -> Result<Vec<String>, StartError> {
///     let text = std::fs::read_to_string(path)?; // any error becomes one
///     if text.is_empty() {
///         return Err(StartError::new(format!("{} has no words", path.display())));
///     }
///     Ok(text.lines().map(str::to_owned).collect())
/// }
/// ```
///
/// Its text is in the worker's log and, unless that is off, on
/// the terminal of the start or the reload. That of an error which became one has its causes too:
/// "cannot read the words: no disk".
#[derive(Debug)]
pub struct StartError {
    text: String,
}

impl StartError {
    /// With a text for people.
    ///
    /// ```
    /// # use chappe::*;
    /// /// For `check`.
    /// fn check(threads: usize) -> Result<(), StartError> {
    ///     match threads {
    ///         1..=64 => Ok(()),
    ///         _ => Err(StartError::new(format!("`threads` is {threads}, it must be 1 to 64"))),
    ///     }
    /// }
    ///
    /// assert_eq!(check(0).unwrap_err().to_string(), "`threads` is 0, it must be 1 to 64");
    /// ```
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<E: Into<AnyError>> From<E> for StartError {
    fn from(error: E) -> Self {
        let error: AnyError = error.into();
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            let told = cause.to_string();
            // Many errors have the text of their cause at the end of their own.
            if !text.ends_with(&told) {
                text = format!("{text}: {told}");
            }
            next = cause.source();
        }
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_a_text_and_a_denial_become_a_handlers_error() {
        let by_error = || -> Outcome { Err("x".parse::<u8>().unwrap_err())? };
        assert!(matches!(by_error().unwrap_err().0, Failure::Failed(_)));
        let by_text = || -> Outcome { Err("out of ink")? };
        assert_eq!(by_text().unwrap_err().to_string(), "out of ink");
        let by_string = || -> Outcome { Err("out of ink".to_owned().into()) };
        assert!(!by_string().unwrap_err().is_full());
        let by_denial = || -> Outcome { Err(Deny::close("not you"))? };
        assert!(matches!(by_denial().unwrap_err().0, Failure::Denied(text) if text == "not you"));
        let started = || -> Result<(), StartError> { Err(std::io::Error::other("no disk"))? };
        assert_eq!(started().unwrap_err().to_string(), "no disk");
        let full = || -> Outcome { Err(SendError::Full)? };
        assert!(full().unwrap_err().is_full());
        let denied = || -> Result<(), Deny> { Err("no")? };
        assert_eq!(denied().unwrap_err().to_string(), "no");
    }
    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the words")]
    struct NoWords(#[source] NoFile);

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct NoFile(#[source] std::io::Error);

    #[test]
    fn an_operator_is_told_the_causes_and_a_peer_is_not() {
        let error = || NoWords(NoFile(std::io::Error::other("no disk")));
        // That of the file says what its cause says: once is enough.
        assert_eq!(StartError::from(error()).to_string(), "cannot read the words: no disk");
        assert_eq!(HandlerError::from(error()).to_string(), "cannot read the words");
    }
}
