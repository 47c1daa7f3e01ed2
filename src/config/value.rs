//! The small texts inside of values: sizes, durations, addresses, users; read and written.
//!
//! Pure functions. An `Err` is a hint for a person, put behind what is allowed; it is empty
//! where there is nothing to add.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::model::{Address, User};

/// Longest path that is accepted: the kernel's `PATH_MAX` without its final zero byte.
pub(super) const PATH_BYTES_MAX: usize = 4095;

/// Longest user or group name, as `useradd` has it.
const NAME_BYTES_MAX: usize = 32;

const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// Reads a size in bytes: `4096`, `64KiB`, or `64K` as nginx users write it. Units are powers of
/// 1024 and may be written in either case. `KB`, which means 1000 to one half of the world and
/// 1024 to the other, is refused.
pub(super) fn read_size(text: &str) -> Result<u64, &'static str> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let shift = match unit.as_str() {
        "" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "kb" | "mb" | "gb" | "b" => return Err("write KiB, MiB or GiB, which are powers of 1024"),
        _ if number.is_empty() || unit.starts_with('.') => {
            return Err("write a whole number and KiB, MiB or GiB");
        }
        _ => return Err("the units are KiB, MiB and GiB"),
    };
    let number: u64 = match number.parse() {
        Ok(number) => number,
        Err(_) if number.is_empty() => return Err("write a whole number and KiB, MiB or GiB"),
        Err(_) => return Err(""),
    };
    number.checked_mul(1 << shift).ok_or("")
}

/// Writes a size with the largest unit that leaves a whole number: `64KiB`, `65535`.
pub(super) fn write_size(bytes: u64) -> String {
    let fits = |shift: u32| bytes != 0 && bytes.trailing_zeros() >= shift;
    match UNITS.iter().find(|(_, shift)| fits(*shift)) {
        Some((unit, shift)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// Reads a duration: `250ms`, `30s`, `1h 30m`, or `0`.
pub(super) fn read_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim()).map_err(|error| error.to_string())
}

/// Writes a duration so that [`read_duration`] gives the same.
pub(super) fn write_duration(duration: Duration) -> String {
    if duration.is_zero() {
        return "0".into();
    }
    humantime::format_duration(duration).to_string()
}

/// Reads `127.0.0.1:7600`, `[::1]:7600` or `unix:path`. Names are not looked up: a server that
/// waits for a name server before it can listen cannot be relied on to start.
pub(super) fn read_address(text: &str) -> Result<Address, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return read_path(path).map(Address::Unix).map_err(Into::into);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Address::Tcp(address));
    }
    if text.parse::<std::net::IpAddr>().is_ok() {
        let bracketed = if text.contains(':') { format!("[{text}]") } else { text.into() };
        return Err(format!("write the port too, such as {bracketed}:7600"));
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("write an address and a port, such as 127.0.0.1:7600".into());
    }
    if port.parse::<u16>().is_err() {
        return Err("a port is 0..=65535".into());
    }
    Err(match host {
        "" | "*" => format!("write 0.0.0.0:{port} for all IPv4 addresses, [::]:{port} for IPv6"),
        "localhost" => format!("names are not looked up: write 127.0.0.1:{port} or [::1]:{port}"),
        _ if host.contains(':') => {
            format!("write IPv6 addresses in brackets, such as [::1]:{port}")
        }
        _ => "names are not looked up: write the IP address".into(),
    })
}

/// Reads `""`, or an address as [`read_address`] does, without Unix sockets.
pub(super) fn read_tcp_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match read_address(text)? {
        Address::Tcp(address) => Ok(Some(address)),
        Address::Unix(_) => Err("a Unix socket is not allowed here".into()),
    }
}

/// Reads a path as text; [`resolve`](super::check) puts it under the prefix.
pub(super) fn read_path(text: &str) -> Result<PathBuf, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > PATH_BYTES_MAX {
        return Err("it is longer than 4095 bytes");
    }
    if text.chars().any(char::is_control) {
        return Err("it holds control characters");
    }
    Ok(PathBuf::from(text))
}

/// Reads `""`, `user` or `user:group`.
pub(super) fn read_user(text: &str) -> Result<Option<User>, &'static str> {
    if text.is_empty() {
        return Ok(None);
    }
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    for name in [Some(user), group].into_iter().flatten() {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err("a name is 1 to 32 bytes long");
        }
        if name.contains([':', '/']) || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("a name has no spaces, colons or slashes");
        }
    }
    Ok(Some(User { user: user.into(), group: group.map(Into::into) }))
}

/// Writes a user so that [`read_user`] gives the same.
pub(super) fn write_user(user: Option<&User>) -> String {
    user.map(ToString::to_string).unwrap_or_default()
}
