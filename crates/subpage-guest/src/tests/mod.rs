//! The tests. Each is a function of its own machine: it starts with no rule and no map, and need not
//! undo what it did.

mod access_maps;
mod delivery;
mod events;
mod large_pages;
mod modes;
mod page_ends;
mod page_tables;
mod processors;
mod rules;
mod slots;
mod stops;
mod stores;
mod tracking;
mod user;
// Passes addresses of all sorts to the hypervisor.
mod hostile;
