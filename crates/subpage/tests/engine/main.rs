//! Tests of the engine by itself: no processor, only tables and answers.

mod access;
mod arming;
mod bounds;
mod counters;
mod decision;
mod dirty;
mod examples;
mod exits;
mod export;
mod failures;
mod frames;
mod guest;
mod mapping;
mod names;
mod review;
mod rules;
mod slots;
mod tracking;
mod tracking_regions;
mod uapi;
