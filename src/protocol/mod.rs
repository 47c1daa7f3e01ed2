//! Wire formats, a folder each, and nothing but pure parts: bytes become messages, replies
//! and notices become bytes. This folder alone names a wire format; what it implements is
//! [`chappe_engine::Protocol`].
//!
//! A listener chooses its protocol (`listen.protocol`), and a connection keeps the place of
//! its listener.

mod chappe;

use crate::config::{self, Config};
use chappe_engine::{Batch, BodyTooLong, Protocol};
use chappe_wire::FRAME_BYTES_MAX;
use std::sync::Arc;

pub(crate) use chappe_wire::{
    CODE_APPLICATION_MAX, CODE_APPLICATION_MIN, CODE_ECHO, CODE_PING, CODE_TIME, CODE_WHO,
};

/// The native one alone.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn all(frame_bytes_max: usize) -> Vec<Arc<dyn Protocol>> {
    vec![Arc::new(chappe::Chappe::new(frame_bytes_max))]
}

/// The protocol of each listener.
pub(crate) fn of_listeners(config: &Config) -> Vec<Arc<dyn Protocol>> {
    let chappe: Arc<dyn Protocol> = Arc::new(chappe::Chappe::new(config.frame.max_bytes));
    let of = |listen: &config::Listen| match listen.protocol {
        config::Protocol::Chappe => Arc::clone(&chappe),
    };
    config.listen.iter().map(of).collect()
}

/// A message of the native protocol by itself, to be sent to many connections.
///
/// # Errors
/// [`BodyTooLong`].
pub(crate) fn encode(code: u16, body: &[u8]) -> Result<Arc<[u8]>, BodyTooLong> {
    let mut batch = Batch::default();
    chappe::Chappe::new(FRAME_BYTES_MAX).reply(code, body, None, &mut batch)?;
    Ok(batch.take().0)
}
