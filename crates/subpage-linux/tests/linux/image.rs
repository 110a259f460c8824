//! Images of every packaging.

use std::io::Write as _;
use std::process::{Command, Stdio};

use subpage_linux::{Compression, ImageError, Kallsyms, KernelImage, LinkAddress, Packaging};

use crate::made::{BANNER, BUILD_ID, DATA, DEBIAN_6_1, bzimage, symbols, vmlinux, word};

fn kernel() -> Vec<u8> {
    vmlinux(&symbols(true), DEBIAN_6_1)
}

/// As the kernel's build appends it: the length of what was packed.
fn with_length(mut packed: Vec<u8>, kernel: &[u8]) -> Vec<u8> {
    packed.extend(word(kernel.len()));
    packed
}

/// LZ4's legacy frame.
fn lz4(kernel: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
    for block in kernel.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        packed.extend(word(block.len()));
        packed.extend(block);
    }
    with_length(packed, kernel)
}

fn gzip(kernel: &[u8]) -> Vec<u8> {
    // With a name in the header.
    let mut packed = b"\x1f\x8b\x08\x08\0\0\0\0\x02\x03vmlinux.bin\0".to_vec();
    packed.extend(miniz_oxide::deflate::compress_to_vec(kernel, 1));
    packed.extend([0; 4]);
    with_length(packed, kernel)
}

fn zstd(kernel: &[u8]) -> Vec<u8> {
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    with_length(ruzstd::encoding::compress_to_vec(kernel, level), kernel)
}

fn xz(kernel: &[u8]) -> Vec<u8> {
    let mut options = lzma_rust2::XzOptions::with_preset(0);
    options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).expect("options");
    writer.write_all(kernel).expect("memory");
    with_length(writer.finish().expect("memory"), kernel)
}

fn lzma(kernel: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::LzmaOptions::with_preset(0);
    let mut writer =
        lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, None).expect("options");
    writer.write_all(kernel).expect("memory");
    with_length(writer.finish().expect("memory"), kernel)
}

fn check(file: &[u8], compression: Compression) {
    let image =
        KernelImage::from_bytes(file).unwrap_or_else(|error| panic!("{compression}: {error}"));
    assert_eq!(image.packaging(), Packaging::BzImage { compression, relocatable: false });
    assert_eq!(image.banner(), BANNER);
    assert_eq!(Kallsyms::read(&image).expect("a table").count(), symbols(true).len());
}

#[test]
fn every_compression_is_unpacked() {
    let kernel = kernel();
    check(&bzimage(&with_length(kernel.clone(), &kernel)), Compression::None);
    check(&bzimage(&gzip(&kernel)), Compression::Gzip);
    check(&bzimage(&lz4(&kernel)), Compression::Lz4);
    check(&bzimage(&zstd(&kernel)), Compression::Zstd);
    check(&bzimage(&xz(&kernel)), Compression::Xz);
    check(&bzimage(&lzma(&kernel)), Compression::Lzma);
}

/// The encoders that builds of the kernel use, where this machine has them.
#[test]
fn what_the_usual_programs_pack_is_unpacked() {
    let kernel = kernel();
    for (program, arguments, compression) in [
        ("gzip", &["-n", "-9", "-c"][..], Compression::Gzip),
        ("xz", &["--check=crc32", "--x86", "--lzma2=dict=32MiB", "-c"], Compression::Xz),
        ("xz", &["--format=lzma", "-9", "-c"], Compression::Lzma),
        ("lz4", &["-l", "-9", "-c"], Compression::Lz4),
        ("zstd", &["-19", "-c"], Compression::Zstd),
    ] {
        let command = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = command else { continue };
        let mut input = child.stdin.take().expect("a pipe");
        let output = std::thread::scope(|scope| {
            scope.spawn(|| {
                input.write_all(&kernel).expect("the program reads");
                drop(input);
            });
            child.wait_with_output().expect("the program ends")
        });
        assert!(output.status.success(), "{program} {arguments:?}");
        check(&bzimage(&with_length(output.stdout, &kernel)), compression);
    }
}

#[test]
fn what_cannot_be_unpacked_says_how_to_do_it() {
    let command = |payload: &[u8]| {
        let error = KernelImage::from_bytes(&bzimage(payload)).map(|_| ()).expect_err("no decoder");
        error.to_string()
    };
    assert!(command(b"BZh91AY&SY").contains("bzip2 -dc"));
    assert!(command(b"\x89LZO\0\r\n\x1a\n").contains("lzop -dc"));
    assert!(command(b"unknown bytes").contains("not known"));
}

#[test]
fn relocations_behind_the_kernel_make_it_movable() {
    let address = 0x8100_0000_u32;
    for (words, relocatable) in [
        (&[0, 0, 0][..], false),
        (&[0, address, 0, 0, address], true),
        // Since 6.15.
        (&[0, 0, address], true),
        (&[address, 0, 0], false),
    ] {
        let mut kernel = kernel();
        kernel.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        let image = KernelImage::from_bytes(&bzimage(&gzip(&kernel))).expect("a kernel");
        assert_eq!(image.can_move(), relocatable);
    }
    assert!(!KernelImage::from_bytes(&kernel()).expect("a kernel").can_move());
}

#[test]
fn an_image_says_what_it_is() {
    let image = KernelImage::from_bytes(&kernel()).expect("a kernel");
    assert_eq!(image.packaging(), Packaging::Vmlinux);
    assert_eq!(image.release(), "6.1.0-test");
    assert_eq!(image.version(), Some((6, 1)));
    assert_eq!(image.build_id(), Some(&BUILD_ID[..]));
    assert_eq!(image.entry(), 0x100_0000);
    assert_eq!(image.segments().len(), 3);
    let path = LinkAddress::new(DATA + 0x100);
    assert_eq!(image.bytes_at(path, 14), Some(&b"/sbin/modprobe"[..]));
    assert_eq!(image.physical(path), Some(0x200_0100));
    assert_eq!(image.bytes_at(LinkAddress::new(DATA - 1), 1), None);
    assert_eq!(image.bytes_at(path, usize::MAX), None);
}

#[test]
fn other_files_are_no_kernels() {
    let refused = |bytes: &[u8]| KernelImage::from_bytes(bytes).map(|_| ()).expect_err("refused");
    assert!(matches!(refused(b""), ImageError::Neither));
    assert!(matches!(refused(b"#!/bin/sh\n"), ImageError::Neither));
    let mut other = kernel();
    let banner = other.windows(14).position(|window| window == b"Linux version ");
    other[banner.expect("a banner")] = b'x';
    assert!(matches!(refused(&other), ImageError::NotLinux));
    let mut arm = kernel();
    arm[18] = 183;
    assert!(matches!(refused(&arm), ImageError::OtherMachine));
    let path = std::env::temp_dir();
    assert!(matches!(KernelImage::open(&path).map(|_| ()), Err(ImageError::NotAFile)));
}

/// Lists are bounded before they are read: the file may be one long hole.
#[test]
fn endless_lists_of_segments_are_refused() {
    let mut image = crate::made::vmlinux(&crate::made::symbols(true), crate::made::DEBIAN_6_1);
    image[56..58].copy_from_slice(&2000_u16.to_le_bytes());
    for file in [image.clone(), crate::made::bzimage(&image)] {
        let told = KernelImage::from_bytes(&file).expect_err("2,000 segments").to_string();
        assert!(told.contains("too many segments"), "{told}");
    }
}
