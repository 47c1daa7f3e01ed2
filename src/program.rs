//! Which program this is: the server's own binary, or an application's. Set once, before
//! anything else happens; a worker inherits it.

use std::sync::OnceLock;

/// What a program calls itself.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// In messages, titles and the help.
    pub(crate) name: String,
    /// `-v`.
    pub(crate) version: String,
    /// The first line of the help.
    pub(crate) about: String,
    /// The server's own binary, which alone makes new projects.
    pub(crate) is_stock: bool,
}

impl Default for Program {
    fn default() -> Self {
        Self {
            name: "chappe".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            about: "A pre-forked message server.".to_owned(),
            is_stock: false,
        }
    }
}

static PROGRAM: OnceLock<Program> = OnceLock::new();

/// Says which program this is. Only the first call has an effect.
pub(crate) fn set(program: Program) {
    let _ = PROGRAM.set(program);
}

/// Which program this is.
pub(crate) fn get() -> &'static Program {
    PROGRAM.get_or_init(Program::default)
}

/// Shows what this process does, in the place of its command line.
pub(crate) fn set_title(what: &str) {
    chappe_sys::set_title(&format!("{}: {what}", get().name));
}
