//! How many descriptors a worker may have, and whether that is enough.

use chappe_sys::limits;

use crate::config::{Config, DESCRIPTORS_RESERVED};

/// Below this a limit is low whatever the configuration says: it is the soft limit
/// that systems give to anybody.
const LOW: u64 = 1024;

/// Raises the soft limit of open descriptors of this process, the coming master, to
/// the hard one, once and for good: it needs a channel, a log and perhaps sockets for
/// each worker, whatever a worker may have. Workers set theirs themselves. Returns what
/// the operator should know.
pub(super) fn raise_limit() -> Option<String> {
    let error = limits::set_descriptors(0).err()?;
    Some(format!("the master cannot raise its limit of open descriptors: {error}"))
}

/// Says so if a worker can't have as many descriptors, or connections, as are
/// configured. `-t` can tell it as well as the master.
///
/// The default of `worker.max_connections` is as many as a worker can serve and not
/// a wish: a warning that there is less room comes only for another value, or if there is
/// little room for any server.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let wanted = config.worker_rlimit_nofile;
    let Ok(descriptors) = limits::target_descriptors(wanted) else { return Vec::new() };
    let refused = (descriptors < wanted).then(|| {
        format!(
            "worker_rlimit_nofile is {wanted}, but {descriptors} is the hard limit; using {descriptors}"
        )
    });
    let is_wish = config.worker.max_connections != Config::default().worker.max_connections;
    let short = shortage(config.worker.max_connections, descriptors, is_wish);
    refused.into_iter().chain(short).collect()
}

fn shortage(connections: u32, descriptors: u64, is_wish: bool) -> Option<String> {
    let room = descriptors.saturating_sub(DESCRIPTORS_RESERVED).max(1);
    let is_short = u64::from(connections) > room;
    (is_short && (is_wish || descriptors < LOW)).then(|| {
        format!(
            "worker.max_connections is {connections}, but {descriptors} descriptors \
             (worker_rlimit_nofile) allow {room}; using {room}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_connection_too_many_is_a_shortage() {
        assert_eq!(shortage(872, 1000, true), None);
        let text = shortage(873, 1000, true).unwrap();
        assert!(text.contains("allow 872"), "{text}");
        assert!(shortage(2, 10, true).unwrap().contains("allow 1"));
    }

    #[test]
    fn a_default_is_no_wish_unless_there_is_little_room_at_all() {
        assert_eq!(shortage(65_536, 20_000, false), None);
        assert!(shortage(65_536, 20_000, true).is_some());
        assert!(shortage(65_536, LOW - 1, false).is_some());
    }
}
