//! Kernels that the tests make themselves, of every form, whole and damaged; and a real one if
//! `SUBPAGE_TEST_KERNEL` names it.

mod damage;
mod image;
mod kallsyms;
mod made;
mod real;
