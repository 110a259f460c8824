//! How many writes of a recorded trace the encoder takes in a second, on one core:
//! `cargo run --release -p subpage-trace --example encode -- TRACE [--json]`.

use std::fs::File;
use std::hint::black_box;
use std::io;
use std::process::ExitCode;
use std::time::Instant;

use subpage_trace::{Header, TraceError, TraceReader, TraceWriter, Write};

/// Writes that are held and encoded; of a longer trace the first ones.
const MOST: usize = 20_000_000;
const ROUNDS: usize = 5;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (trace, option) = (arguments.next(), arguments.next());
    let Some(trace) = trace else {
        eprintln!("usage: encode TRACE [--json]");
        return ExitCode::from(2);
    };
    let writes = match File::open(&trace)
        .map_err(|e| e.to_string())
        .and_then(|file| read(file).map_err(|error| error.to_string()))
    {
        Ok(writes) if !writes.is_empty() => writes,
        Ok(_) => return failed("the trace has no writes"),
        Err(error) => return failed(&error),
    };
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        if let Err(error) = encode(&writes) {
            return failed(&error.to_string());
        }
        best = best.min(began.elapsed().as_secs_f64());
    }
    #[allow(clippy::cast_precision_loss, reason = "a rate to three figures")]
    let rate = writes.len() as f64 / best / 1e6;
    if option.is_some_and(|option| option == "--json") {
        println!("{{\"writes\":{},\"million_writes_per_second\":{rate:.1}}}", writes.len());
    } else {
        println!("{} writes: {rate:.1} million a second, the best of {ROUNDS} runs", writes.len());
    }
    ExitCode::SUCCESS
}

fn failed(why: &str) -> ExitCode {
    eprintln!("encode: {why}");
    ExitCode::FAILURE
}

fn read(file: File) -> Result<Vec<Write>, TraceError> {
    let mut reader = TraceReader::new(file)?;
    let (mut all, mut block) = (Vec::new(), Vec::new());
    while all.len() < MOST && reader.next_block(&mut block)? {
        all.extend(&block);
    }
    Ok(all)
}

fn encode(writes: &[Write]) -> Result<(), TraceError> {
    let mut writer = TraceWriter::new(io::sink(), &Header::default())?;
    // As the packets of the recorder come.
    for some in writes.chunks(4064) {
        writer.write_all(black_box(some))?;
    }
    writer.finish().map(drop)
}
