//! How many descriptors a worker may have, and whether that is enough.
//!
//! The limit is set before the first fork, for every worker to inherit.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use crate::config::Config;

/// What a worker needs besides its connections: listeners, log, channel, epoll, and
/// the places in which refused connections linger.
const RESERVED: rlim_t = 128;

/// Raises the soft limit of open descriptors; 0 stands for the hard limit. Returns
/// what the operator should know.
pub(super) fn raise_limit(wanted: u64) -> Option<String> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let target = target(wanted, hard);
    if target == soft {
        return None;
    }
    // Beyond the hard limit only root may go, who then raises that too.
    match setrlimit(Resource::RLIMIT_NOFILE, target, hard.max(target)) {
        Ok(()) => None,
        Err(errno) => Some(format!(
            "worker_rlimit_nofile: cannot set the limit of open descriptors to {target} \
             ({}); it stays at {soft}",
            errno.desc()
        )),
    }
}

/// Says so if a worker can't have as many connections as are configured. It holds
/// before the limit is raised as well as after, so that `-t` can tell.
pub(super) fn warning(config: &Config) -> Option<String> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    shortage(config.worker.max_connections, target(config.worker_rlimit_nofile, hard))
}

fn target(wanted: u64, hard: rlim_t) -> rlim_t {
    if wanted == 0 { hard } else { wanted }
}

fn shortage(connections: u32, descriptors: rlim_t) -> Option<String> {
    let room = descriptors.saturating_sub(RESERVED);
    (rlim_t::from(connections) > room).then(|| {
        format!(
            "worker.max_connections is {connections}, but {descriptors} descriptors \
             (worker_rlimit_nofile) allow {room}; {room} it is"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_connection_too_many_is_a_shortage() {
        assert_eq!(shortage(872, 1000), None);
        let text = shortage(873, 1000).unwrap();
        assert!(text.contains("allow 872"), "{text}");
        assert!(shortage(1, 10).unwrap().contains("allow 0"));
    }
}
