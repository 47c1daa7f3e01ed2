//! Whom the workers become: `user`, looked up before anything is forked.

use chappe_sys::privileges::{self, Identity};

use super::Failure;
use crate::config::Loaded;

/// What comes of `user`.
#[derive(Debug)]
pub(super) enum Become {
    /// Workers become another user.
    Somebody(Identity),
    /// Workers keep the master's user.
    Nobody,
    /// Workers keep the master's user, though the operator has asked for another one.
    Ignored(String),
}

/// Looks `user` up, as this process would use it.
///
/// # Errors
/// An unknown name is a mistake in the configuration. Without root nobody is looked
/// up: one file may serve machines that have the user and those that have not.
pub(super) fn of(loaded: &Loaded) -> Result<Become, Failure> {
    let Some(user) = &loaded.config.user else { return Ok(Become::Nobody) };
    if !privileges::is_root() {
        let ignored = loaded.written("user").map(|place| {
            Become::Ignored(format!(
                "{place}: user is ignored: only root can switch users, and this is not root"
            ))
        });
        return Ok(ignored.unwrap_or(Become::Nobody));
    }
    match Identity::look_up(&user.user, user.group.as_deref()) {
        Ok(identity) => Ok(Become::Somebody(identity)),
        Err(error) => {
            let place = loaded.written("user").unwrap_or("user by default");
            let text = format!(
                "{place}: user is {:?}: {error}; must be a name of this machine, or \
                 \"\" (stay root)",
                user.to_string()
            );
            Err(crate::config::ConfigErrors::one(text).into())
        }
    }
}

/// What the log says of it at the start: otherwise the first sign is a handler's write that the
/// kernel refuses, in two words. Nothing without root, when workers keep the master's user.
pub(super) fn said(loaded: &Loaded, whom: &Become) -> Option<String> {
    match whom {
        Become::Somebody(identity) => {
            let name = loaded.config.user.as_ref().map(ToString::to_string).unwrap_or_default();
            let by = match loaded.written("user") {
                Some(place) => format!("as {place} says"),
                None => "by default, since `user` is not set".to_owned(),
            };
            Some(format!(
                "workers become user {name} {identity}, {by}: files that handlers write must be \
                 writable by this user"
            ))
        }
        Become::Nobody if privileges::is_root() => {
            Some("workers stay root: `user` is \"\"".to_owned())
        }
        Become::Nobody | Become::Ignored(_) => None,
    }
}
