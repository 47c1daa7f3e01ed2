//! Wire formats, a folder each, and nothing but pure parts: bytes become messages, replies
//! and notices become bytes. This folder alone names a wire format; what it implements is
//! [`chappe_engine::Protocol`].
//!
//! A listener chooses its protocol (`listen.protocol`), and a connection keeps the place of
//! its listener.

mod chappe;
mod encoded;
mod resp;

use crate::config::{self, Config};
use chappe_engine::Protocol;
use std::sync::Arc;

pub(crate) use chappe::FLAG_WITH_TOPIC;
pub(crate) use chappe_wire::{
    CODE_APPLICATION_MAX, CODE_APPLICATION_MIN, CODE_ECHO, CODE_PING, CODE_PUBLISH,
    CODE_PUBLISH_UNANSWERED, CODE_SUBSCRIBE, CODE_TIME, CODE_UNSUBSCRIBE, CODE_WHO,
};
pub(crate) use encoded::Encoded;

/// The native one alone.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn all(frame_bytes_max: usize) -> Vec<Arc<dyn Protocol>> {
    vec![Arc::new(chappe::Chappe::new(frame_bytes_max))]
}

/// RESP, of a listener without `resp_admin`.
#[cfg(test)]
pub(crate) fn resp() -> Arc<dyn Protocol> {
    resp::Resp::of_worker(resp::Facts::new(Vec::new()))(false)
}

/// The protocol of each listener.
pub(crate) fn of_listeners(config: &Config) -> Vec<Arc<dyn Protocol>> {
    let chappe: Arc<dyn Protocol> = Arc::new(chappe::Chappe::new(config.frame.max_bytes));
    let has_admins = config.listen.iter().any(|listen| listen.resp_admin);
    let settings = if has_admins { config.flat() } else { Vec::new() };
    let resp = resp::Resp::of_worker(resp::Facts::new(settings));
    let of = |listen: &config::Listen| match listen.protocol {
        config::Protocol::Chappe => Arc::clone(&chappe),
        config::Protocol::Resp => resp(listen.resp_admin),
    };
    config.listen.iter().map(of).collect()
}

/// A message of the native protocol by itself.
///
/// # Errors
/// [`chappe_engine::BodyTooLong`].
#[cfg(any(test, feature = "testing"))]
pub(crate) fn encode(code: u16, body: &[u8]) -> Result<Arc<[u8]>, chappe_engine::BodyTooLong> {
    Encoded::new(code, body)
        .map(|encoded| Arc::clone(encoded.form(chappe_engine::PushForm::Message)))
}
