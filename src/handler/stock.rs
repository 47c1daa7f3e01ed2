//! The handlers of the stock server: codes 0 to 6 and 9. All of them are quick.

use super::routes::{Handler, Route, RoutePace, Routes};
use super::topics;
use super::{Call, Code, Outcome, Service};
use crate::protocol::{
    CODE_ECHO, CODE_PING, CODE_PUBLISH, CODE_PUBLISH_UNANSWERED, CODE_SUBSCRIBE, CODE_TIME,
    CODE_UNSUBSCRIBE, CODE_WHO,
};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Adds them to those of a service.
pub(super) fn add<S: Service>(routes: &mut Routes<S>) {
    let stock: Vec<(Code, Arc<Handler<S>>)> = vec![
        (CODE_PING, Arc::new(|_, _, call| call.reply(CODE_PING, b""))),
        (CODE_ECHO, Arc::new(|_, _, call| call.reply(CODE_ECHO, call.body()))),
        (CODE_TIME, Arc::new(|_, _, call| time(call))),
        (CODE_WHO, Arc::new(|_, _, call| who(call))),
        (CODE_SUBSCRIBE, Arc::new(topics::subscribe)),
        (CODE_UNSUBSCRIBE, Arc::new(topics::unsubscribe)),
        (
            CODE_PUBLISH,
            Arc::new(|service, state, call| topics::publish(service, state, call, true)),
        ),
        (
            CODE_PUBLISH_UNANSWERED,
            Arc::new(|service, state, call| topics::publish(service, state, call, false)),
        ),
    ];
    for (code, handler) in stock {
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
