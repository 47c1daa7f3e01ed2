//! What the generations can be written down as, and read back from.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Event, Generations, History};
use crate::config::Config;
use crate::listen::Bound;

/// What can be written down. Configuration and listeners are not part of it: the one is in
/// its file, the others are descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::master) struct GenerationsState {
    /// The generation that serves.
    pub(in crate::master) number: u64,
    pub(in crate::master) last_number: u64,
    pub(in crate::master) workers: u16,
    pub(in crate::master) workers_configured: u16,
    pub(in crate::master) history: History,
}

impl Generations {
    pub(in crate::master) fn state(&self) -> GenerationsState {
        GenerationsState {
            number: self.current.number,
            last_number: self.last_number,
            workers: self.current.workers,
            workers_configured: self.workers_configured,
            history: self.history.clone(),
        }
    }

    /// Goes on where another master has written down its state, with the configuration and
    /// the listeners of the generation that serves.
    #[cfg_attr(not(test), expect(dead_code, reason = "an upgrade in place will use it"))]
    pub(in crate::master) fn restore(
        state: GenerationsState,
        config: Arc<Config>,
        listeners: Vec<Bound>,
        warnings: Vec<String>,
    ) -> Self {
        let mut restored = Self::new(config, listeners, warnings);
        restored.current.number = state.number;
        restored.current.workers = state.workers;
        restored.last_number = state.last_number;
        restored.workers_configured = state.workers_configured;
        restored.history = state.history;
        // Its workers serve already.
        restored.plan.note(Event::Started);
        restored
    }
}
