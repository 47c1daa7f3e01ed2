//! What a worker gets.

use std::sync::Arc;

use chappe_shm::Slot;

use crate::channel::WorkerEnd;
use crate::config::Config;
use crate::listen::Listener;
use crate::topics::Joined;

/// What a worker is started with, all of it its own.
#[derive(Debug)]
pub struct Assignment {
    /// The worker's number, from 0. A successor has the same.
    pub number: u16,
    /// Which reload it belongs to, from 1.
    pub generation: u64,
    /// Its place in shared memory.
    pub slot: Slot,
    /// The line to the master.
    pub channel: WorkerEnd,
    /// What to accept from, once it is to serve.
    pub(crate) listeners: Vec<Listener>,
    /// The configuration of its generation.
    pub(crate) config: Arc<Config>,
    /// Its part of the topics, if there is a hub.
    pub(crate) topics: Option<Joined>,
}

impl Assignment {
    /// The `[application]` table of the configuration.
    #[must_use]
    pub fn application(&self) -> &toml::Table {
        &self.config.application
    }
}
