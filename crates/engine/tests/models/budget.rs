//! The budget: charge, release, wait for room.

use super::*;
use chappe_engine::{Budget, Resume, Room};

struct Count(Mutex<usize>);

impl Resume for Count {
    fn resume(self: Arc<Self>) {
        *self.0.lock() += 1;
    }
}

/// Room that comes while somebody begins to wait for it is not missed: by one release or
/// by the second of two.
#[test]
fn a_waiter_for_room_is_resumed() {
    check(|| {
        let budget = Arc::new(Budget::new(8));
        assert_eq!(budget.charge(10), Room::Exhausted);
        let count = Arc::new(Count(Mutex::new(0)));
        let releases = [1, 9].map(|bytes| {
            let budget = Arc::clone(&budget);
            loom::thread::spawn(move || budget.release(bytes))
        });
        let waiter = Arc::clone(&count) as Arc<dyn Resume>;
        let room = budget.wait_for_room(waiter);
        for release in releases {
            release.join().expect("release returns");
        }
        let expected = usize::from(room == Room::Exhausted);
        assert_eq!(*count.0.lock(), expected, "resumed exactly if it waits");
    });
}
