//! A message that answers nothing, encoded once for each form that a connection may want.

use super::{chappe, resp};
use chappe_engine::{Batch, BodyTooLong, Protocol, PushForm};
use chappe_wire::{FRAME_BYTES_MAX, HEADER_BYTES};
use std::sync::{Arc, OnceLock};

/// Code and body of a message, and its bytes on the wire.
#[derive(Debug)]
pub(crate) struct Encoded {
    code: u16,
    message: Arc<[u8]>,
    /// When the first connection wants it.
    resp3: OnceLock<Arc<[u8]>>,
}

impl Encoded {
    /// # Errors
    /// [`BodyTooLong`].
    pub(crate) fn new(code: u16, body: &[u8]) -> Result<Self, BodyTooLong> {
        let mut batch = Batch::default();
        chappe::Chappe::new(FRAME_BYTES_MAX).reply(code, body, None, &mut batch)?;
        Ok(Self { code, message: batch.take().0, resp3: OnceLock::new() })
    }

    pub(crate) fn code(&self) -> u16 {
        self.code
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.message[HEADER_BYTES..]
    }

    /// Its bytes in this form.
    pub(crate) fn form(&self, form: PushForm) -> &Arc<[u8]> {
        match form {
            PushForm::Message => &self.message,
            PushForm::Resp3 => self.resp3.get_or_init(|| {
                let mut batch = Batch::default();
                resp::push(self.code, self.body(), &mut batch).expect("it fits a native message");
                batch.take().0
            }),
        }
    }
}
