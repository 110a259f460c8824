//! Engine and model together against a map of bytes that knows nothing of tables.
//!
//! The law: whatever the order of splits, merges, slots, rules, maps, dirty logging and tracking,
//! and however stale the processors are,
//! - a write takes effect exactly if every byte of it is permitted, wholly or not at all (C3);
//! - what the engine answers about a write is what the bytes say;
//! - no permitted write is missing from a harvest, and none is in it that was not made;
//! - state exported and imported is the same state.
//!
//! `SUBPAGE_PROPERTY_OPERATIONS` sets how many operations are made; CI makes a million.

mod naive;
mod operation;
mod world;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::operation::operations;
use crate::world::World;

/// Most operations in the life of one guest.
const LENGTH: usize = 500;

#[test]
fn engine_and_model_agree_with_a_map_of_bytes() {
    let wanted = std::env::var("SUBPAGE_PROPERTY_OPERATIONS");
    let wanted = wanted.ok().map_or(50_000, |text| text.parse().expect("a number of operations"));
    let config = Config { cases: 50, failure_persistence: None, ..Config::default() };
    let made = std::cell::Cell::new(0usize);
    while made.get() < wanted {
        // A runner counts its successes for good, so each batch has a new one (and new seeds).
        let outcome = TestRunner::new(config.clone()).run(
            &(any::<u64>(), operations(LENGTH)),
            |(seed, operations)| {
                let mut world = World::new(seed);
                for operation in &operations {
                    world.step(operation);
                }
                world.finish();
                made.set(made.get() + operations.len());
                Ok(())
            },
        );
        if let Err(error) = outcome {
            panic!("{error}");
        }
    }
    println!("{} operations", made.get());
}
