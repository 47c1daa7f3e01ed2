use super::*;
use proptest::prelude::*;
use std::cell::RefCell;

#[derive(Default)]
struct Cells(RefCell<HashMap<u32, usize>>);

impl Counts for Cells {
    fn set(&self, cell: u32, count: usize) {
        self.0.borrow_mut().insert(cell, count);
    }
}

fn limits() -> TableLimits {
    TableLimits {
        per_connection_max: 3,
        patterns_per_connection_max: 1,
        bytes_max: 100_000,
        names_max: 4,
    }
}

fn filter(text: &str) -> Filter {
    Filter::parse(text.as_bytes()).unwrap()
}

type OfTests = Table<char, u32>;

/// What a connection is answered: it, the number of its request, and what has come of it.
type Said = (char, u32, Came);

fn said(out: Vec<Answered<char, u32>>) -> Vec<Said> {
    out.into_iter().map(|it| (it.to, it.answer, it.came)).collect()
}

fn ask(table: &mut OfTests, cells: &Cells, id: char, number: u32, wish: Wish) -> Vec<Said> {
    let mut out = Vec::new();
    table.ask((id.into(), &id), wish, number, 0, cells, &mut out);
    said(out)
}

fn subscribe(table: &mut OfTests, cells: &Cells, id: char, text: &str) -> Vec<Said> {
    ask(table, cells, id, 7, Wish::Subscribe { filter: filter(text), flags: None, resume: None })
}

fn unsubscribe(table: &mut OfTests, cells: &Cells, id: char, text: &str) -> Vec<Said> {
    ask(table, cells, id, 8, Wish::Unsubscribe(filter(text)))
}

fn added(table: &mut OfTests, cells: &Cells, cell: (u32, u32)) -> Vec<Said> {
    let mut out = Vec::new();
    table.added(cell, 5, cells, &mut out);
    said(out)
}

fn on(id: char, text: &str, count: usize) -> Said {
    (id, 7, Came::Subscribed { filter: filter(text), count, resumed: Resumed::NotAsked })
}

fn off(id: char, text: &str, left: usize) -> Said {
    (id, 8, Came::Unsubscribed { ended: vec![(filter(text), left)], left })
}

fn refused(id: char, why: Refused) -> Vec<Said> {
    vec![(id, 7, Came::Refused(why))]
}

/// Subscribes, and has the hub know the name.
fn join(table: &mut OfTests, cells: &Cells, id: char, text: &str) {
    if subscribe(table, cells, id, text).is_empty() {
        let Some(Interest::Add { cell, turn, .. }) = table.to_tell() else { panic!("to be told") };
        table.told();
        added(table, cells, (cell, turn));
    }
}

#[test]
fn the_first_of_a_name_waits_and_the_next_does_not() {
    let (mut table, cells) = (OfTests::new(limits()), Cells::default());
    assert_eq!(subscribe(&mut table, &cells, 'a', "x"), []);
    assert_eq!(subscribe(&mut table, &cells, 'b', "x"), []);
    let add = Interest::Add { cell: 0, turn: 0, filter: filter("x") };
    assert_eq!(table.to_tell(), Some(add.clone()));
    assert_eq!(table.to_tell(), Some(add), "until it is told");
    table.told();
    assert_eq!(table.to_tell(), None, "one request for both");
    assert_eq!(cells.0.borrow()[&0], 1, "the hub is to ring for it from the beginning");
    assert_eq!(added(&mut table, &cells, (0, 0)), [on('a', "x", 1), on('b', "x", 1)]);
    assert_eq!(added(&mut table, &cells, (0, 0)), [], "once");
    assert_eq!(subscribe(&mut table, &cells, 'c', "x"), [on('c', "x", 1)]);
    assert_eq!(subscribe(&mut table, &cells, 'c', "x"), [on('c', "x", 1)], "it has it");
    assert_eq!((table.subscriptions(), cells.0.borrow()[&0]), (3, 3));
}

#[test]
fn a_connection_is_answered_in_its_order() {
    let (mut table, cells) = (OfTests::new(limits()), Cells::default());
    join(&mut table, &cells, 'b', "y");
    assert_eq!(subscribe(&mut table, &cells, 'a', "x"), []);
    assert_eq!(subscribe(&mut table, &cells, 'a', "y"), [], "behind what waits");
    assert_eq!(unsubscribe(&mut table, &cells, 'a', "x"), []);
    assert_eq!(subscribe(&mut table, &cells, 'a', "z"), []);
    assert_eq!(subscribe(&mut table, &cells, 'a', "w"), [], "refused, in its turn");
    // The name that it waits for is not given up by the last one that has it.
    assert_eq!(unsubscribe(&mut table, &cells, 'b', "y"), [off('b', "y", 0)]);
    assert_eq!(cells.0.borrow()[&0], 1, "its worker is rung for it");
    // The other name comes first: it is answered behind.
    assert_eq!(added(&mut table, &cells, (2, 0)), []);
    let answers = [
        on('a', "x", 1),
        on('a', "y", 2),
        off('a', "x", 1),
        on('a', "z", 2),
        ('a', 7, Came::Refused(Refused::Subscriptions(3))),
    ];
    assert_eq!(added(&mut table, &cells, (1, 0)), answers);
    assert_eq!(table.subscriptions(), 2);
}

#[test]
fn only_the_last_one_that_goes_concerns_the_hub() {
    let (mut table, cells) = (OfTests::new(limits()), Cells::default());
    join(&mut table, &cells, 'a', "x");
    join(&mut table, &cells, 'b', "x");
    assert_eq!(unsubscribe(&mut table, &cells, 'a', "x"), [off('a', "x", 0)]);
    assert_eq!((table.to_tell(), cells.0.borrow()[&0]), (None, 1));
    table.gone('b'.into(), &cells);
    assert_eq!(
        (table.to_tell(), cells.0.borrow()[&0]),
        (Some(Interest::Remove { cell: 0, turn: 0 }), 0)
    );
    // The name has another cell until the hub has forgotten the first one.
    assert_eq!(subscribe(&mut table, &cells, 'c', "x"), []);
    table.told();
    assert_eq!(table.to_tell(), Some(Interest::Add { cell: 1, turn: 0, filter: filter("x") }));
    table.told();
    table.removed((0, 0));
    added(&mut table, &cells, (1, 0));
    assert_eq!(subscribe(&mut table, &cells, 'c', "y"), []);
    assert_eq!(table.to_tell(), Some(Interest::Add { cell: 0, turn: 1, filter: filter("y") }));
}

#[test]
fn who_goes_while_it_waits_leaves_nothing() {
    let (mut table, cells) = (OfTests::new(limits()), Cells::default());
    join(&mut table, &cells, 'b', "y");
    subscribe(&mut table, &cells, 'a', "x");
    subscribe(&mut table, &cells, 'a', "y");
    unsubscribe(&mut table, &cells, 'b', "y");
    table.gone('a'.into(), &cells);
    while table.to_tell().is_some() {
        table.told();
    }
    assert_eq!(added(&mut table, &cells, (1, 0)), [], "nobody has waited");
    assert_eq!(table.to_tell(), Some(Interest::Remove { cell: 1, turn: 0 }));
    assert_eq!((table.bytes(), table.subscriptions()), (0, 0));
}

#[test]
fn limits_hold_at_the_most_and_one_more() {
    let (mut table, cells) = (OfTests::new(limits()), Cells::default());
    join(&mut table, &cells, 'a', "x*");
    let answer = subscribe(&mut table, &cells, 'a', "y*");
    assert_eq!(answer, refused('a', Refused::Patterns(1)));
    join(&mut table, &cells, 'a', "x");
    assert_eq!(subscribe(&mut table, &cells, 'a', "y"), [], "it counts");
    assert_eq!(subscribe(&mut table, &cells, 'a', "z"), [], "refused, in its turn");
    table.told();
    let answers = added(&mut table, &cells, (2, 0));
    let too_many = refused('a', Refused::Subscriptions(3));
    assert_eq!(answers, [[on('a', "y", 3)].as_slice(), &too_many].concat());
    join(&mut table, &cells, 'b', "z");
    assert_eq!(subscribe(&mut table, &cells, 'b', "zz"), refused('b', Refused::Names));
    let bytes_max = table.bytes() + SUBSCRIPTION_COST;
    table.limits = TableLimits { bytes_max, ..limits() };
    assert_eq!(subscribe(&mut table, &cells, 'b', "x"), [on('b', "x", 2)]);
    assert_eq!(subscribe(&mut table, &cells, 'b', "y"), refused('b', Refused::Bytes(bytes_max)));
}

#[test]
fn what_the_hub_refuses_leaves_nothing() {
    let (mut table, cells) = (OfTests::new(limits()), Cells::default());
    subscribe(&mut table, &cells, 'a', "x");
    subscribe(&mut table, &cells, 'b', "x");
    unsubscribe(&mut table, &cells, 'a', "x");
    table.gone('b'.into(), &cells);
    table.told();
    let mut out = Vec::new();
    table.refused((0, 0), 0, &cells, &mut out);
    let answers = [refused('a', Refused::Names), vec![off('a', "x", 0)]].concat();
    assert_eq!(said(out), answers, "the other one is gone");
    assert_eq!((table.bytes(), table.subscriptions()), (0, 0));
    assert_eq!(subscribe(&mut table, &cells, 'a', "x"), []);
}

#[test]
fn what_ends_together_is_of_one_kind() {
    let limits = TableLimits { per_connection_max: 9, names_max: 9, ..limits() };
    let (mut table, cells) = (OfTests::new(limits), Cells::default());
    let shard = Filter::from(Topic::shard(b"x").unwrap().topic());
    let wish = Wish::Subscribe { filter: shard.clone(), flags: Some(EACH), resume: None };
    assert_eq!(ask(&mut table, &cells, 'a', 7, wish), []);
    table.told();
    let came = Came::Subscribed { filter: shard.clone(), count: 1, resumed: Resumed::NotAsked };
    assert_eq!(added(&mut table, &cells, (0, 0)), [('a', 7, came)]);
    for text in ["x", "y", "x*"] {
        join(&mut table, &cells, 'a', text);
    }
    let end = |kind| Wish::UnsubscribeAll(Some(kind));
    let ended = vec![(filter("x*"), 2)];
    let came = Came::Unsubscribed { ended, left: 2 };
    assert_eq!(ask(&mut table, &cells, 'a', 1, end(Kind::Pattern)), [('a', 1, came)]);
    let ended = vec![(filter("y"), 1), (filter("x"), 0)];
    let came = Came::Unsubscribed { ended, left: 0 };
    assert_eq!(ask(&mut table, &cells, 'a', 1, end(Kind::Topic)), [('a', 1, came)]);
    let came = Came::Unsubscribed { ended: vec![(shard, 0)], left: 0 };
    assert_eq!(ask(&mut table, &cells, 'a', 1, Wish::UnsubscribeAll(None)), [('a', 1, came)]);
    let came = Came::Unsubscribed { ended: vec![], left: 0 };
    assert_eq!(ask(&mut table, &cells, 'a', 1, end(Kind::Shard)), [('a', 1, came)]);
    assert_eq!(table.bytes(), table.cells.bytes());
}

#[test]
fn a_message_comes_once_or_for_each_subscription() {
    let (mut table, cells) = (OfTests::new(limits()), Cells::default());
    for id in ['a', 'b'] {
        join(&mut table, &cells, id, "x");
        join(&mut table, &cells, id, "x*");
    }
    ask(
        &mut table,
        &cells,
        'b',
        7,
        Wish::Subscribe { filter: filter("x"), flags: Some(EACH), resume: None },
    );
    let mut matching = Vec::new();
    table.matching(Topic::new(b"x").unwrap(), &mut matching);
    let mut got = Vec::new();
    for cell in matching {
        for nth in 0..table.subscribers(cell) {
            got.extend(table.deliver(cell, nth, 1).map(|(of, by, ..)| (*of, by.clone())));
        }
    }
    let expected = [('a', filter("x")), ('b', filter("x")), ('b', filter("x*"))];
    assert_eq!(got, expected);
}

#[test]
fn a_new_hub_learns_of_all_names() {
    let (mut table, cells) = (OfTests::new(limits()), Cells::default());
    join(&mut table, &cells, 'a', "x");
    join(&mut table, &cells, 'a', "y");
    unsubscribe(&mut table, &cells, 'a', "y");
    subscribe(&mut table, &cells, 'a', "z");
    table.name_all(5);
    let told: Vec<_> = std::iter::from_fn(|| {
        let told = table.to_tell();
        table.told();
        told
    })
    .collect();
    let add = |cell, text| Interest::Add { cell, turn: 0, filter: filter(text) };
    let expected = [
        Interest::Remove { cell: 1, turn: 0 },
        add(2, "z"),
        add(0, "x"),
        Interest::AllNamed { hub: 5 },
    ];
    assert_eq!(told, expected);
}

/// What a table has to say, kept in the simplest way.
#[derive(Default)]
struct Oracle(Vec<(char, String)>);

proptest! {
    #[test]
    fn it_agrees_with_a_list(
        steps in proptest::collection::vec((0..4_u8, 0..4_usize, 0..5_usize), 0..200),
    ) {
        let (ids, texts) = (['a', 'b', 'c', 'd'], ["x", "y", "x*", "*", "xy"]);
        let limits = TableLimits { patterns_per_connection_max: 9, per_connection_max: 9,
            bytes_max: usize::MAX, names_max: 99 };
        let (mut table, cells) = (OfTests::new(limits), Cells::default());
        let mut oracle = Oracle::default();
        for (what, id, text) in steps {
            let (id, text) = (ids[id], texts[text]);
            match what {
                0 | 1 => {
                    join(&mut table, &cells, id, text);
                    if !oracle.0.contains(&(id, text.into())) {
                        oracle.0.push((id, text.into()));
                    }
                }
                2 => {
                    let answer = unsubscribe(&mut table, &cells, id, text);
                    oracle.0.retain(|it| *it != (id, text.into()));
                    let left = oracle.0.iter().filter(|it| it.0 == id).count();
                    prop_assert_eq!(answer, [off(id, text, left)]);
                }
                _ => {
                    table.gone(id.into(), &cells);
                    oracle.0.retain(|it| it.0 != id);
                }
            }
            while let Some(interest) = table.to_tell() {
                table.told();
                if let Interest::Remove { cell, turn } = interest {
                    table.removed((cell, turn));
                }
            }
        }
        prop_assert_eq!(table.subscriptions(), oracle.0.len());
        for (offset, topic) in ["x", "y", "xy", "z"].iter().enumerate() {
            let name = Topic::new(topic.as_bytes()).unwrap();
            let (mut matching, mut got) = (Vec::new(), Vec::new());
            table.matching(name, &mut matching);
            for cell in matching {
                prop_assert_eq!(cells.0.borrow()[&cell], table.subscribers(cell));
                for nth in 0..table.subscribers(cell) {
                    got.extend(table.deliver(cell, nth, offset as u64 + 1).map(|(of, ..)| *of));
                }
            }
            let mut expected: Vec<char> =
                oracle.0.iter().filter(|it| filter(&it.1).matches(name)).map(|it| it.0).collect();
            expected.sort_unstable();
            expected.dedup();
            got.sort_unstable();
            prop_assert_eq!(got, expected, "each once, of {}", topic);
        }
        for id in ids {
            table.gone(id.into(), &cells);
        }
        prop_assert_eq!((table.bytes(), table.subscriptions()), (0, 0));
    }
}

/// Counts that were set, one after the other.
#[derive(Default)]
struct History(RefCell<Vec<usize>>);

impl Counts for History {
    fn set(&self, _: u32, count: usize) {
        self.0.borrow_mut().push(count);
    }
}

#[test]
fn a_name_that_somebody_is_to_have_counts_at_any_moment() {
    let (mut table, history) = (OfTests::new(limits()), History::default());
    let mut out = Vec::new();
    let subscribe = |resume| Wish::Subscribe { filter: filter("t"), flags: None, resume };
    table.ask(('a'.into(), &'a'), subscribe(None), 7, 0, &history, &mut out);
    table.added((0, 0), 5, &history, &mut out);
    // It waits for what it has missed, while the only subscriber leaves.
    table.ask(('b'.into(), &'b'), subscribe(Some(2)), 7, 5, &history, &mut out);
    table.ask(('a'.into(), &'a'), Wish::Unsubscribe(filter("t")), 8, 5, &history, &mut out);
    assert_eq!(out.len(), 2, "{out:?}");
    let history = history.0.into_inner();
    assert!(!history.contains(&0), "a message would concern nobody here: {history:?}");
}
