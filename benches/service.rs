//! A service with a state for each connection, for the figures of docs/PERFORMANCE.md: code 18
//! counts the message and answers with the body.

use chappe::{Call, Client, Deny, NoConfig, Outcome, Routes, Server, Service, StartError, Worker};
use std::process::ExitCode;

const ECHO: u16 = 18;

struct Counting;

impl Service for Counting {
    type Config = NoConfig;
    type State = u64;

    fn start(_worker: &Worker<Self>) -> Result<Self, StartError> {
        Ok(Self)
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.on(ECHO, echo);
    }

    fn connected(&self, _client: &Client) -> Result<u64, Deny> {
        Ok(0)
    }
}

fn echo(_service: &Counting, seen: &mut u64, call: &mut Call<'_, Counting>) -> Outcome {
    *seen += 1;
    call.reply(ECHO, call.body())
}

fn main() -> ExitCode {
    Server::of::<Counting>().main()
}
