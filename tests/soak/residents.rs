//! As many connections of an address as it may have: what a death takes comes back, and
//! not one more.

use std::net::IpAddr;

use chappe_client::{CODE_PING, CODE_WHO, ClientError, Connection, ErrorNumber};

use crate::kills::PER_IP;
use crate::random::Random;
use crate::world::World;
use chappe_testkit::{DEADLINE, try_connect_from};

/// Connects, and counts it.
pub(crate) fn connect(world: &World, address: IpAddr) -> Result<Connection, String> {
    let failed = |errno| format!("a connect from {address} failed: {errno}");
    let client = try_connect_from(address, world.address).map_err(failed)?;
    world.note(|seen| seen.connects += 1);
    Ok(client)
}

pub(crate) struct Resident<'a> {
    world: &'a World,
    address: IpAddr,
    /// Each with the process that serves it.
    clients: Vec<(i32, Connection)>,
}

impl<'a> Resident<'a> {
    pub(crate) fn new(world: &'a World, address: IpAddr) -> Self {
        Self { world, address, clients: Vec::new() }
    }

    /// Connects until its address has all that it may have, and tries one more.
    pub(crate) fn fill(&mut self) -> Result<(), String> {
        while self.clients.len() < PER_IP {
            let mut client = connect(self.world, self.address)?;
            self.world.note(|seen| seen.asked += 1);
            let reply = client.call(CODE_WHO, b"");
            let reply = reply.map_err(|error| self.describe(&format!("{error}")))?;
            let text = String::from_utf8_lossy(&reply.body).into_owned();
            let worker = text.lines().find_map(|line| line.strip_prefix("pid=")?.parse().ok());
            let worker = worker.ok_or_else(|| self.describe(&format!("{reply:?}")))?;
            self.clients.push((worker, client));
        }
        let one_more = connect(self.world, self.address)?.receive();
        let error = one_more.as_ref().ok().and_then(chappe_client::Frame::as_error);
        let is_refused = error.is_some_and(|error| {
            error.is(ErrorNumber::Busy) && error.text.contains("connections_per_ip")
        });
        if is_refused { Ok(()) } else { Err(self.describe(&format!("one more got {one_more:?}"))) }
    }

    fn describe(&self, what: &str) -> String {
        let (count, address) = (self.clients.len(), self.address);
        format!("{address} has {count} connections of {PER_IP}: {what}")
    }

    /// Its connections to workers that were killed must have ended.
    pub(crate) fn lose(&mut self, killed: &[i32]) -> Result<(), String> {
        let is_lost = |worker: &i32| killed.contains(worker);
        for (worker, client) in self.clients.iter_mut().filter(|(worker, _)| is_lost(worker)) {
            match client.receive() {
                Err(error) if !matches!(error, ClientError::TimedOut(_)) => {}
                other => return Err(format!("worker {worker} was killed, and said {other:?}")),
            }
        }
        self.clients.retain(|(worker, _)| !is_lost(worker));
        Ok(())
    }

    /// One of its connections must still be served.
    pub(crate) fn ask_one(&mut self, random: &mut Random) -> Result<(), String> {
        let nth = random.size(0, self.clients.len() - 1);
        let (worker, client) = &mut self.clients[nth];
        self.world.note(|seen| seen.asked += 1);
        match client.call(CODE_PING, b"") {
            Ok(reply) if reply.code == CODE_PING => Ok(()),
            other => Err(format!("worker {worker} lives, and said {other:?} within {DEADLINE:?}")),
        }
    }

    pub(crate) fn leave(&mut self) {
        self.clients.clear();
    }
}
