//! The budget: charge, release, wait for room.

use super::*;
use chappe::send::{Budget, Resume, Room};

struct Told(Mutex<usize>);

impl Resume for Told {
    fn resume(self: Arc<Self>) {
        *self.0.lock() += 1;
    }
}

/// Room that comes while somebody begins to wait for it is not missed.
#[test]
fn who_waits_for_room_is_told() {
    check(|| {
        let budget = Arc::new(Budget::new(8));
        assert_eq!(budget.charge(9), Room::Exhausted);
        let told = Arc::new(Told(Mutex::new(0)));
        let releaser = {
            let budget = Arc::clone(&budget);
            loom::thread::spawn(move || budget.release(9))
        };
        let waiter = Arc::clone(&told) as Arc<dyn Resume>;
        let room = budget.wait_for_room(waiter);
        releaser.join().expect("release returns");
        let expected = usize::from(room == Room::Exhausted);
        assert_eq!(*told.0.lock(), expected, "told exactly if it waits");
    });
}
