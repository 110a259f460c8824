//! Kernels that the tests make themselves, of every form, whole and damaged. Real ones are read in the lab
//! (`cargo xtask test lab`).

mod banner;
mod damage;
mod image;
mod kallsyms;
mod made;
