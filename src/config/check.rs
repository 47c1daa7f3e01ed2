//! From what was written to a [`Config`]: every value in its range, then the values against
//! each other. All mistakes are collected; none hides another.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::model::{Address, Config, Listen};
use super::place::{Notes, Place};
use super::schema::{KEYS, LISTEN_KEYS};
use super::settings::{Listener, Settings};
use super::value;

/// Reads all settings. What is wrong goes to `faults`, what has no effect yet to `warnings`.
pub(super) fn check(
    mut settings: Settings,
    prefix: &Path,
    faults: &mut Notes,
    warnings: &mut Notes,
) -> Config {
    let mut config =
        Config { application: std::mem::take(&mut settings.application), ..Config::default() };
    let mut wrong = BTreeSet::new();
    let mut unclear = std::mem::take(&mut settings.unclear_listeners);
    for key in KEYS {
        let Some(setting) = settings.keys.get(key.name) else { continue };
        if let Err(text) = key.field.read(&mut config, &setting.value) {
            faults.add(&setting.place, format!("{} {text}", key.name));
            wrong.insert(key.name);
        }
    }
    if !settings.listeners.is_empty() {
        config.listen = settings
            .listeners
            .iter()
            .enumerate()
            .map(|(index, listener)| read_listener(index, listener, faults, &mut unclear))
            .collect();
    }
    resolve(&mut config, prefix);
    // The other value of a pair may be in the part that could not be read.
    if settings.is_partial {
        return config;
    }
    Relations {
        config: &config,
        settings: &settings,
        wrong: &wrong,
        unclear: &unclear,
        faults,
        warnings,
    }
    .check();
    config
}

fn read_listener(
    index: usize,
    settings: &Listener,
    faults: &mut Notes,
    unclear: &mut BTreeSet<usize>,
) -> Listen {
    let mut listen = Listen::default();
    for key in LISTEN_KEYS {
        let Some(setting) = settings.get(key.name) else { continue };
        let name = format!("listen.{index}.{}", key.name);
        if let Err(text) = key.field.read(&mut listen, &setting.value) {
            faults.add(&setting.place, format!("{name} {text}"));
            if key.name == "address" {
                unclear.insert(index);
            }
        }
    }
    listen
}

/// Puts relative paths under the prefix, which is absolute.
fn resolve(config: &mut Config, prefix: &Path) {
    let absolute = |path: &mut PathBuf| *path = prefix.join(&*path).components().collect();
    absolute(&mut config.pid_file);
    absolute(&mut config.control_socket);
    absolute(&mut config.log.directory);
    for listen in &mut config.listen {
        if let Address::Unix(path) = &mut listen.address {
            absolute(path);
        }
    }
}

/// The values against each other. A relation with a key that is wrong by itself is left out.
struct Relations<'a> {
    config: &'a Config,
    settings: &'a Settings,
    wrong: &'a BTreeSet<&'static str>,
    /// Listeners whose address is not known for sure.
    unclear: &'a BTreeSet<usize>,
    faults: &'a mut Notes,
    warnings: &'a mut Notes,
}

impl<'a> Relations<'a> {
    fn check(&mut self) {
        let Config { inbox, send, limits, .. } = self.config;
        let inbox_bytes = ("inbox.max_bytes", inbox.max_bytes as u64);
        let outbox_bytes = ("send.outbox_max_bytes", send.outbox_max_bytes as u64);
        self.total(("inbox.total_max_bytes", inbox.total_max_bytes as u64), inbox_bytes);
        let outbox_total = send.outbox_total_max_bytes as u64;
        self.total(("send.outbox_total_max_bytes", outbox_total), outbox_bytes);
        self.deferred_against_drain();
        if limits.messages_burst != 0 && limits.messages_per_second == 0 {
            self.fault(
                ["limits.messages_burst", "limits.messages_per_second"],
                format!(
                    "limits.messages_burst is {}, must be 0 while limits.messages_per_second is 0",
                    limits.messages_burst
                ),
            );
        }
        if self.config.pid_file == self.config.control_socket {
            let text = "control_socket is the same path as pid_file, must be a different path";
            self.fault(["control_socket", "pid_file"], text.into());
        }
        for (path, key) in self.own_files() {
            if self.is_log(path) {
                let text = format!(
                    "{key} is the path of a log in log.directory, must be a different path"
                );
                self.fault([key, "log.directory"], text);
            }
        }
        self.distinct_addresses();
        self.distinct_metrics();
    }

    /// A total below what one connection may have is no mistake, but a surprise.
    fn total(&mut self, total: (&'static str, u64), one: (&'static str, u64)) {
        if total.1 >= one.1 {
            return;
        }
        let by_default = if self.settings.keys.contains_key(total.0) { "" } else { " by default" };
        let text = format!(
            "{} is {}{by_default}, less than {}, which is {}: the total decides",
            total.0,
            value::write_size(total.1),
            one.0,
            value::write_size(one.1)
        );
        if let Some(place) = self.place_of([total.0, one.0]) {
            self.warnings.add(place, text);
        }
    }

    /// A drain that ends before a deferred reply has had its time. Only where that
    /// time was set: most servers defer nothing.
    fn deferred_against_drain(&mut self) {
        const KEYS: [&str; 2] = ["timeouts.deferred", "worker_shutdown_timeout"];
        let (deferred, drain) =
            (self.config.timeouts.deferred, self.config.worker_shutdown_timeout);
        if deferred < drain || !self.settings.keys.contains_key(KEYS[0]) {
            return;
        }
        let text = format!(
            "timeouts.deferred is {}, not less than worker_shutdown_timeout, which is {}: a drain \
             does not wait for all deferred replies",
            value::write_duration(deferred),
            value::write_duration(drain)
        );
        if let Some(place) = self.place_of(KEYS) {
            self.warnings.add(place, text);
        }
    }

    /// A mistake between two keys.
    fn fault(&mut self, keys: [&'static str; 2], text: String) {
        if let Some(place) = self.place_of(keys) {
            self.faults.add(place, text);
        }
    }

    /// The first of two keys that was written; `None` if one is wrong by itself.
    /// One of them was written: the defaults agree with each other.
    fn place_of(&self, keys: [&'static str; 2]) -> Option<&'a Place> {
        if keys.iter().any(|key| self.wrong.contains(key)) {
            return None;
        }
        keys.iter().find_map(|key| self.settings.keys.get(key)).map(|setting| &setting.place)
    }

    fn distinct_addresses(&mut self) {
        let mut first: HashMap<&Address, (usize, Option<&Place>)> = HashMap::new();
        for (index, listen) in self.config.listen.iter().enumerate() {
            let address = &listen.address;
            let is_chosen = matches!(address, Address::Tcp(address) if address.port() == 0);
            if is_chosen || self.unclear.contains(&index) {
                continue;
            }
            let place = self.settings.listener_place(index);
            let is_log = matches!(address, Address::Unix(path) if self.is_log(path));
            if let (true, Some(place)) = (is_log, place) {
                let text = format!(
                    "listen.{index}.address is the path of a log in log.directory, must be a different path"
                );
                self.faults.add(place, text);
                continue;
            }
            if let (Some(name), Some(place)) = (self.own_path(address), place) {
                let text = format!(
                    "listen.{index}.address is the same path as {name}, must be a different path"
                );
                self.faults.add(place, text);
                continue;
            }
            let Some((other, other_place)) = first.get(address) else {
                first.insert(address, (index, place));
                continue;
            };
            let at = other_place.map_or(String::new(), |place| format!(" at {place}"));
            let text =
                format!("listen.{index}.address is {address}, which listen.{other} has{at} too");
            if let Some(place) = place {
                self.faults.add(place, text);
            }
        }
    }

    fn distinct_metrics(&mut self) {
        let Some(address) = self.config.metrics.address.filter(|address| address.port() != 0)
        else {
            return;
        };
        let is_same = |listen: &Listen| listen.address == Address::Tcp(address);
        let same = self.config.listen.iter().position(is_same);
        let Some(index) = same.filter(|index| !self.unclear.contains(index)) else { return };
        if let Some(setting) = self.settings.keys.get("metrics.address") {
            let text = format!("metrics.address is {address}, which listen.{index} has too");
            self.faults.add(&setting.place, text);
        }
    }

    /// Which of the master's own files a Unix socket would take the place of.
    fn own_path(&self, address: &Address) -> Option<&'static str> {
        let Address::Unix(path) = address else { return None };
        let own = self.own_files().into_iter().find(|(own, _)| *own == path);
        own.map(|(_, name)| name)
    }

    /// The master's own files but the logs, with their keys.
    fn own_files(&self) -> [(&'a PathBuf, &'static str); 2] {
        let Config { pid_file, control_socket, .. } = self.config;
        [(pid_file, "pid_file"), (control_socket, "control_socket")]
    }

    /// Whether a process logs there, or a log is moved there: `master.log`, `worker-7.log`,
    /// `worker-7.log.3`.
    fn is_log(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let (stem, is_whole) = match name.split_once(".log") {
            Some((stem, "")) => (stem, true),
            Some((stem, rest)) => (stem, rest.strip_prefix('.').is_some_and(is_number)),
            None => return false,
        };
        let is_worker = stem.strip_prefix("worker-").is_some_and(is_number);
        is_whole
            && (stem == "master" || is_worker)
            && path.parent() == Some(&self.config.log.directory)
    }
}
