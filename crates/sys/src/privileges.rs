//! Who a process is: a worker of root's master becomes somebody else, for good.
//!
//! Names are looked up once, before the first fork: a name service may start
//! threads, and a worker that is replaced years later must be the user that the first was.

use std::ffi::CString;
use std::fmt;
use std::io;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{self, Gid, Group, Uid, User};

use super::process::Forked;

/// A user with groups, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
    /// All groups of the user: those of root must not stay.
    groups: Vec<Gid>,
}

/// `uid=65534 gid=65534`, for logs.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid={} gid={}", self.uid, self.gid)
    }
}

/// Which name is unknown.
#[derive(Debug, thiserror::Error)]
pub enum LookUpError {
    /// There is no such user.
    #[error("there is no user {0:?}")]
    NoUser(String),
    /// There is no such group.
    #[error("there is no group {0:?}")]
    NoGroup(String),
    /// Nobody could be asked.
    #[error("cannot look up {name:?}: {cause}")]
    System {
        /// Whom.
        name: String,
        /// What went wrong.
        cause: io::Error,
    },
}

/// Whether this process may become somebody else.
#[must_use]
pub fn is_root() -> bool {
    unistd::geteuid().is_root()
}

impl Identity {
    /// Looks up a user, and a group instead of the user's own if there is one given.
    ///
    /// # Errors
    /// [`LookUpError`], with the name that is unknown.
    pub fn look_up(user: &str, group: Option<&str>) -> Result<Self, LookUpError> {
        let system = |name: &str, cause: Errno| LookUpError::System {
            name: name.to_owned(),
            cause: cause.into(),
        };
        let found = User::from_name(user)
            .map_err(|errno| system(user, errno))?
            .ok_or_else(|| LookUpError::NoUser(user.to_owned()))?;
        let gid = match group {
            None => found.gid,
            Some(name) => {
                Group::from_name(name)
                    .map_err(|errno| system(name, errno))?
                    .ok_or_else(|| LookUpError::NoGroup(name.to_owned()))?
                    .gid
            }
        };
        let name = CString::new(user).map_err(|_| LookUpError::NoUser(user.to_owned()))?;
        let groups = unistd::getgrouplist(&name, gid).map_err(|errno| system(user, errno))?;
        Ok(Self { uid: found.uid, gid, groups })
    }

    /// Becomes this user, with no way back: supplementary groups first, since only
    /// root may set them, and the user last. Before there is a second thread.
    ///
    /// # Errors
    /// Of the call that was refused. The process may then be half of each, and must
    /// end.
    pub fn assume(&self, _forked: &Forked) -> io::Result<()> {
        let step = |name: &'static str| {
            move |errno: Errno| io::Error::other(format!("{name}: {}", errno.desc()))
        };
        unistd::setgroups(&self.groups).map_err(step("setgroups"))?;
        unistd::setresgid(self.gid, self.gid, self.gid).map_err(step("setresgid"))?;
        unistd::setresuid(self.uid, self.uid, self.uid).map_err(step("setresuid"))?;
        let root = Uid::from_raw(0);
        if !self.uid.is_root() && unistd::setresuid(root, root, root).is_ok() {
            return Err(io::Error::other("the way back to root is still open"));
        }
        Ok(())
    }
}

/// No program that this process runs can give it rights, by set-uid bits above all.
///
/// # Errors
/// None that Linux reports.
pub fn give_up_new_privileges(_forked: &Forked) -> io::Result<()> {
    Ok(prctl::set_no_new_privs()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_numbers() {
        let root = Identity::look_up("root", None).unwrap();
        assert!(root.uid.is_root());
        assert!(root.groups.contains(&root.gid));
        let mixed = Identity::look_up("nobody", Some("root")).unwrap();
        assert!(!mixed.uid.is_root());
        assert_eq!(mixed.gid, Gid::from_raw(0));
        assert!(mixed.groups.contains(&mixed.gid));
    }

    #[test]
    fn unknown_names_are_named() {
        let text = Identity::look_up("no-such-user", None).unwrap_err().to_string();
        assert_eq!(text, "there is no user \"no-such-user\"");
        let text = Identity::look_up("root", Some("no-such-group")).unwrap_err().to_string();
        assert_eq!(text, "there is no group \"no-such-group\"");
    }
}
