//! Lists of names, of the hub's registry.

use super::*;
use crate::record::Listed;

fn listed(world: &mut World, wanted: Listed) -> Vec<(String, u32)> {
    let worker = &mut world.workers[1];
    worker.log.seen.remove(&9);
    worker.inlet.list(&9, wanted, filter("a"));
    world.settle();
    let Some([Seen::Listed { names, .. }]) =
        world.workers[1].log.seen.get(&9).map(|seen| &seen[..])
    else {
        panic!("one list")
    };
    let mut names = names.clone();
    names.sort();
    names
}

fn like(pattern: Option<&[u8]>) -> Listed {
    Listed::Like { is_shard: false, pattern: pattern.map(Into::into) }
}

fn pairs(names: &[(&str, u32)]) -> Vec<(String, u32)> {
    names.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[test]
fn names_are_listed_with_their_subscribers_of_all_workers() {
    let mut world = world(1 << 16, 100);
    let shard = Filter::from(Topic::shard(b"a").unwrap().topic());
    for (place, of, it) in [
        (0, 1, filter("a")),
        (0, 2, filter("a")),
        (1, 1, filter("a")),
        (1, 1, filter("ab")),
        (1, 2, filter("a*")),
        (1, 2, filter("$own")),
        (1, 2, shard.clone()),
    ] {
        world.workers[place].wish(of, subscribe(it.clone()), &it);
    }
    world.settle();
    assert_eq!(listed(&mut world, like(None)), pairs(&[("a", 3), ("ab", 1)]));
    assert_eq!(listed(&mut world, like(Some(b"?b"))), pairs(&[("ab", 1)]));
    let shards = Listed::Like { is_shard: true, pattern: None };
    assert_eq!(listed(&mut world, shards), pairs(&[("a", 1)]));
    let topic = |text: &'static [u8]| Topic::new(text).unwrap().to_name();
    let named = Listed::Named(vec![topic(b"a"), topic(b"zero"), Topic::shard(b"a").unwrap()]);
    assert_eq!(listed(&mut world, named), pairs(&[("a", 1), ("a", 3), ("zero", 0)]));
    assert_eq!(listed(&mut world, Listed::Patterns), pairs(&[("", 1)]));
    // Who has asked a hub that dies is answered by the next one, once.
    world.workers[1].log.seen.remove(&9);
    world.workers[1].inlet.list(&9, like(None), filter("a"));
    world.workers[1].look();
    world.succeed();
    world.settle();
    assert_eq!(world.workers[1].log.seen[&9].len(), 1);
}

#[test]
fn a_long_list_comes_in_parts() {
    let mut world = world(1 << 16, 100);
    for nth in 0..9 {
        let it = filter(&format!("{nth}{}", "x".repeat(250)));
        world.workers[0].wish(nth, subscribe(it.clone()), &it);
    }
    world.settle();
    let many = vec![Topic::new(b"zero").unwrap().to_name(); 2000];
    assert_eq!(listed(&mut world, Listed::Named(many)).len(), 2000, "18 KB in 5 parts");
    assert_eq!(listed(&mut world, like(None)).len(), 9);
}
