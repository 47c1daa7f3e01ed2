//! How many descriptors a worker may have, and whether that is enough.

use crate::config::{Config, DESCRIPTORS_RESERVED};
use crate::sys::limits;

/// Below this a limit is low whatever the configuration says: it is the soft limit
/// that systems give to anybody.
const LOW: u64 = 1024;

/// Raises the soft limit of open descriptors of this process, the coming master;
/// workers set theirs themselves. Returns what the operator should know.
pub(super) fn raise_limit(wanted: u64) -> Option<String> {
    let error = limits::set_descriptors(wanted).err()?;
    let limit = limits::descriptors().map_or("as it was".to_owned(), |limit| limit.to_string());
    Some(format!(
        "worker_rlimit_nofile: cannot set the limit of open descriptors to {wanted} ({error}); \
         it is {limit}"
    ))
}

/// Says so if a worker can't have as many connections as are configured. It holds
/// before the limit is raised as well as after, so that `-t` can tell.
///
/// The default of `worker.max_connections` is as many as a worker can serve and not
/// a wish: that there is less room is told only for another value, or if there is
/// little room for any server.
pub(super) fn warning(config: &Config) -> Option<String> {
    let is_wish = config.worker.max_connections != Config::default().worker.max_connections;
    let descriptors = limits::target_descriptors(config.worker_rlimit_nofile).ok()?;
    shortage(config.worker.max_connections, descriptors, is_wish)
}

fn shortage(connections: u32, descriptors: u64, is_wish: bool) -> Option<String> {
    let room = descriptors.saturating_sub(DESCRIPTORS_RESERVED).max(1);
    let is_short = u64::from(connections) > room;
    (is_short && (is_wish || descriptors < LOW)).then(|| {
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
