//! The handlers of the stock server: codes 0 to 3. All of them are quick.

use super::routes::{Handler, Route, RoutePace, Routes};
use super::{Call, Code, Outcome, Service};
use crate::protocol::{CODE_ECHO, CODE_PING, CODE_TIME, CODE_WHO};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Their codes.
pub(super) const CODES: [Code; 4] = [CODE_PING, CODE_ECHO, CODE_TIME, CODE_WHO];

/// Adds them to those of a service.
pub(super) fn add<S: Service>(routes: &mut Routes<S>) {
    let stock: [Arc<Handler<S>>; CODES.len()] = [
        Arc::new(|_, _, call| call.reply(CODE_PING, b"")),
        Arc::new(|_, _, call| call.reply(CODE_ECHO, call.body())),
        Arc::new(|_, _, call| time(call)),
        Arc::new(|_, _, call| who(call)),
    ];
    for (code, handler) in CODES.into_iter().zip(stock) {
        routes.insert(Route { code, handler, pace: RoutePace::Stock, is_before_admit: false });
    }
}

/// Answers with u64 milliseconds since the Unix epoch.
fn time<S: Service>(call: &mut Call<'_, S>) -> Outcome {
    // A clock before 1970 or after the year 584 million gives the end of the range.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    call.reply(CODE_TIME, &ms.to_be_bytes())
}

/// Answers with the worker that serves this connection, one `name=value` per line.
fn who<S: Service>(call: &mut Call<'_, S>) -> Outcome {
    let (worker, pid) = (call.worker(), std::process::id());
    let text = format!(
        "worker={}\npid={pid}\ngeneration={}\nconnection={}\npeer={}\n",
        worker.number(),
        worker.generation(),
        call.client().id(),
        call.client().peer(),
    );
    call.reply(CODE_WHO, text.as_bytes())
}
