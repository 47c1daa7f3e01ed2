//! The call list: threads change a state and call, the loop is woken and looks.

use super::*;
use chappe_engine::{CallList, Called};

/// Whatever is changed, before or behind a call: the loop sees the last state of each
/// connection.
#[test]
fn the_loop_sees_each_change() {
    check(|| {
        let calls = Arc::new(CallList::new().expect("a model"));
        let connections = [1, 2].map(|token| (token, Arc::new((Called::new(), Mutex::new(0)))));
        let threads = connections.clone().map(|(token, connection)| {
            let calls = Arc::clone(&calls);
            loom::thread::spawn(move || {
                let (called, state) = &*connection;
                for change in 1..=token {
                    *state.lock() = change;
                    calls.call(called, token);
                }
            })
        });
        let mut seen = [0, 0];
        while seen != [1, 2] {
            calls.waker().wait();
            let mut taken = Vec::new();
            calls.take(&mut taken);
            for token in taken {
                let nth = usize::try_from(token - 1).expect("1 or 2");
                let (called, state) = &*connections[nth].1;
                called.clear();
                seen[nth] = *state.lock();
            }
        }
        for thread in threads {
            thread.join().expect("a call returns");
        }
    });
}
