//! An asynchronous runtime behind the handlers: replies are deferred, and given when a task of
//! tokio has the answer.
//!
//! ```sh
//! cargo run -p chappe-examples --bin async -- --foreground
//! chappe send --code 16 --body 'where is paris'
//! ```
//!
//! Code 16 asks, and the answer takes its time: it comes over a network, from a database or
//! another server. A handler that waited for it would hold its thread, and the worker would have
//! as many questions under way as it has threads. Here the handler takes the ticket of its reply
//! ([`Call::defer`]), gives it to a task, and returns. Any number of questions is under way
//! then, `worker.deferred_max` at most, and each connection still gets its answers in the order
//! of its questions.
//!
//! The runtime is made in `start`, after the fork: threads do not survive one. Its threads
//! inherit that signals are blocked, as those of the worker are.

use chappe::{Call, Client, Deny, NoConfig, Outcome, Routes, Server, Service, StartError, Worker};
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::{self, Runtime};
use tokio::time::{Instant, error::Elapsed, sleep_until, timeout};

const ASK: u16 = 16;

/// How long an answer may take: well below `timeouts.deferred`, so that the peer gets this
/// text and not the server's.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(500);

struct Oracle {
    runtime: Runtime,
}

impl Service for Oracle {
    type Config = NoConfig;
    /// How many answers the connection has had.
    type State = u32;

    fn start(_worker: &Worker<Self>) -> Result<Self, StartError> {
        // One thread is enough for tasks that only wait.
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("oracle")
            .enable_time()
            .build()?;
        Ok(Self { runtime })
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.on(ASK, ask);
    }

    fn connected(&self, _client: &Client) -> Result<u32, Deny> {
        Ok(0)
    }
}

fn ask(oracle: &Oracle, _answered: &mut u32, call: &mut Call<'_, Oracle>) -> Outcome {
    // What is wrong at once is answered at once.
    let question = std::str::from_utf8(call.body())?.to_owned();
    let deferred = call.defer();
    oracle.runtime.spawn(async move {
        let answer = look_up(&question).await;
        // On a handler thread again, with the connection's state.
        deferred.resume(move |_oracle, answered, call| {
            let answer = answer.map_err(|_| "nobody knows in time")?;
            *answered += 1;
            call.reply(ASK, format!("{answered}: {answer}").as_bytes())
        });
    });
    Ok(())
}

/// An answer, if it comes in time.
async fn look_up(question: &str) -> Result<String, Elapsed> {
    timeout(ANSWER_TIME_MAX, query(question)).await
}

/// Stands for a query over the network.
async fn query(question: &str) -> String {
    let time = match question.strip_prefix("slow ") {
        Some(_) => 10 * ANSWER_TIME_MAX,
        None => Duration::from_millis(50),
    };
    sleep_until(Instant::now() + time).await;
    format!("{question}? yes")
}

fn main() -> ExitCode {
    Server::of::<Oracle>().name("oracle").version(env!("CARGO_PKG_VERSION")).main()
}
