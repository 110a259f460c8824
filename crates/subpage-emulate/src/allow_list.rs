//! The mnemonics of the allow list, by what they store.

use iced_x86::Mnemonic;

/// Writes of operand 0 that use general registers only.
pub(super) const fn is_general(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Mov
            | Mnemonic::Movnti
            | Mnemonic::Movbe
            | Mnemonic::Movdiri
            | Mnemonic::Add
            | Mnemonic::Or
            | Mnemonic::Adc
            | Mnemonic::Sbb
            | Mnemonic::And
            | Mnemonic::Sub
            | Mnemonic::Xor
            | Mnemonic::Inc
            | Mnemonic::Dec
            | Mnemonic::Neg
            | Mnemonic::Not
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Shl
            | Mnemonic::Sal
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Shld
            | Mnemonic::Shrd
            | Mnemonic::Bts
            | Mnemonic::Btr
            | Mnemonic::Btc
            | Mnemonic::Xchg
            | Mnemonic::Xadd
            | Mnemonic::Cmpxchg
            | Mnemonic::Cmpxchg8b
            | Mnemonic::Cmpxchg16b
            | Mnemonic::Seta
            | Mnemonic::Setae
            | Mnemonic::Setb
            | Mnemonic::Setbe
            | Mnemonic::Sete
            | Mnemonic::Setg
            | Mnemonic::Setge
            | Mnemonic::Setl
            | Mnemonic::Setle
            | Mnemonic::Setne
            | Mnemonic::Setno
            | Mnemonic::Setnp
            | Mnemonic::Setns
            | Mnemonic::Seto
            | Mnemonic::Setp
            | Mnemonic::Sets
            | Mnemonic::Aadd
            | Mnemonic::Aand
            | Mnemonic::Aor
            | Mnemonic::Axor
    )
}

/// x87 stores of a value, of a control or status word, and of all of the state.
pub(super) const fn is_x87(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Fst
            | Mnemonic::Fstp
            | Mnemonic::Fist
            | Mnemonic::Fistp
            | Mnemonic::Fisttp
            | Mnemonic::Fbstp
            | Mnemonic::Fnstcw
            | Mnemonic::Fnstsw
            | Mnemonic::Fnstenv
            | Mnemonic::Fnsave
    )
}

/// MMX, SSE, AVX and AVX-512 stores, and FXSAVE.
pub(super) const fn is_vector(mnemonic: Mnemonic) -> bool {
    // A named operand 0 in memory with the data in a register: none of these has an immediate source
    // or reads memory.
    matches!(
        mnemonic,
        Mnemonic::Movd
            | Mnemonic::Movq
            | Mnemonic::Movntq
            | Mnemonic::Movss
            | Mnemonic::Movsd
            | Mnemonic::Movups
            | Mnemonic::Movupd
            | Mnemonic::Movaps
            | Mnemonic::Movapd
            | Mnemonic::Movdqa
            | Mnemonic::Movdqu
            | Mnemonic::Movntps
            | Mnemonic::Movntpd
            | Mnemonic::Movntdq
            | Mnemonic::Movntss
            | Mnemonic::Movntsd
            | Mnemonic::Movlps
            | Mnemonic::Movlpd
            | Mnemonic::Movhps
            | Mnemonic::Movhpd
            | Mnemonic::Extractps
            | Mnemonic::Pextrb
            | Mnemonic::Pextrw
            | Mnemonic::Pextrd
            | Mnemonic::Pextrq
            | Mnemonic::Stmxcsr
            | Mnemonic::Fxsave
            | Mnemonic::Fxsave64
            | Mnemonic::Vmovd
            | Mnemonic::Vmovq
            | Mnemonic::Vmovw
            | Mnemonic::Vmovsh
            | Mnemonic::Vmovss
            | Mnemonic::Vmovsd
            | Mnemonic::Vmovups
            | Mnemonic::Vmovupd
            | Mnemonic::Vmovaps
            | Mnemonic::Vmovapd
            | Mnemonic::Vmovdqa
            | Mnemonic::Vmovdqu
            | Mnemonic::Vmovdqa32
            | Mnemonic::Vmovdqa64
            | Mnemonic::Vmovdqu8
            | Mnemonic::Vmovdqu16
            | Mnemonic::Vmovdqu32
            | Mnemonic::Vmovdqu64
            | Mnemonic::Vmovntps
            | Mnemonic::Vmovntpd
            | Mnemonic::Vmovntdq
            | Mnemonic::Vmovlps
            | Mnemonic::Vmovlpd
            | Mnemonic::Vmovhps
            | Mnemonic::Vmovhpd
            | Mnemonic::Vextractf128
            | Mnemonic::Vextracti128
            | Mnemonic::Vextractf32x4
            | Mnemonic::Vextractf32x8
            | Mnemonic::Vextractf64x2
            | Mnemonic::Vextractf64x4
            | Mnemonic::Vextracti32x4
            | Mnemonic::Vextracti32x8
            | Mnemonic::Vextracti64x2
            | Mnemonic::Vextracti64x4
            | Mnemonic::Vextractps
            | Mnemonic::Vpextrb
            | Mnemonic::Vpextrw
            | Mnemonic::Vpextrd
            | Mnemonic::Vpextrq
            | Mnemonic::Vcvtps2ph
            | Mnemonic::Vstmxcsr
            | Mnemonic::Vpmovqb
            | Mnemonic::Vpmovqw
            | Mnemonic::Vpmovqd
            | Mnemonic::Vpmovdb
            | Mnemonic::Vpmovdw
            | Mnemonic::Vpmovwb
            | Mnemonic::Vpmovsqb
            | Mnemonic::Vpmovsqw
            | Mnemonic::Vpmovsqd
            | Mnemonic::Vpmovsdb
            | Mnemonic::Vpmovsdw
            | Mnemonic::Vpmovswb
            | Mnemonic::Vpmovusqb
            | Mnemonic::Vpmovusqw
            | Mnemonic::Vpmovusqd
            | Mnemonic::Vpmovusdb
            | Mnemonic::Vpmovusdw
            | Mnemonic::Vpmovuswb
            | Mnemonic::Kmovb
            | Mnemonic::Kmovw
            | Mnemonic::Kmovd
            | Mnemonic::Kmovq
    )
}

/// Compare and add: general registers, too, but encoded as vector instructions are.
pub(super) const fn is_compare_and_add(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Cmpoxadd
            | Mnemonic::Cmpnoxadd
            | Mnemonic::Cmpbxadd
            | Mnemonic::Cmpnbxadd
            | Mnemonic::Cmpzxadd
            | Mnemonic::Cmpnzxadd
            | Mnemonic::Cmpbexadd
            | Mnemonic::Cmpnbexadd
            | Mnemonic::Cmpsxadd
            | Mnemonic::Cmpnsxadd
            | Mnemonic::Cmppxadd
            | Mnemonic::Cmpnpxadd
            | Mnemonic::Cmplxadd
            | Mnemonic::Cmpnlxadd
            | Mnemonic::Cmplexadd
            | Mnemonic::Cmpnlexadd
    )
}

/// Stores of the elements of a vector register whose sign is set in another.
pub(super) const fn is_masked_move(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Maskmovq
            | Mnemonic::Maskmovdqu
            | Mnemonic::Vmaskmovdqu
            | Mnemonic::Vmaskmovps
            | Mnemonic::Vmaskmovpd
            | Mnemonic::Vpmaskmovd
            | Mnemonic::Vpmaskmovq
    )
}

/// Stores of the elements under an opmask, side by side.
pub(super) const fn is_compression(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Vpcompressb
            | Mnemonic::Vpcompressw
            | Mnemonic::Vpcompressd
            | Mnemonic::Vpcompressq
            | Mnemonic::Vcompressps
            | Mnemonic::Vcompresspd
    )
}

/// Stores of the elements under an opmask, each to an address of its own.
pub(super) const fn is_scatter(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Vpscatterdd
            | Mnemonic::Vpscatterdq
            | Mnemonic::Vpscatterqd
            | Mnemonic::Vpscatterqq
            | Mnemonic::Vscatterdps
            | Mnemonic::Vscatterdpd
            | Mnemonic::Vscatterqps
            | Mnemonic::Vscatterqpd
    )
}

/// XSAVE and its kin.
pub(super) const fn is_xsave(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Xsave
            | Mnemonic::Xsave64
            | Mnemonic::Xsavec
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaveopt
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xsaves
            | Mnemonic::Xsaves64
    )
}

/// Stores that no guest has: their features are not offered, and a processor without them gives #UD.
/// Tiles, commands to accelerators, shadow stacks, bounds.
pub(super) const fn is_not_offered(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Tilestored
            | Mnemonic::Sttilecfg
            | Mnemonic::Enqcmd
            | Mnemonic::Enqcmds
            | Mnemonic::Wrssd
            | Mnemonic::Wrssq
            | Mnemonic::Wrussd
            | Mnemonic::Wrussq
    )
}
