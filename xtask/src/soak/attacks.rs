//! `cargo xtask soak floods` and `slow`: what attackers cost, row by row, and whether that is within bounds.

use std::{fs, io::Write as _, path::Path};

use anyhow::{Context as _, bail};
use serde::Deserialize;

/// Frames within which a flood must end.
const FRAMES: usize = 1500;
/// How much more an agent may hold, in KiB.
const GROWTH: u64 = 10 << 10;
/// What a neighbour waits, without what the program itself takes longer meanwhile, may be so many times what it was before, or this
/// many microseconds more: what less means, a machine that does something else as well cannot tell.
const TIMES: u64 = 2;
const LITTLE: u64 = 5000;
/// What a neighbour may wait whatever the program does, in microseconds.
const MOST: u64 = 50_000;
/// Seconds after which a slow connection must be gone.
const GONE: f64 = 30.0;

/// What a flood did.
#[derive(Debug, Deserialize)]
struct Flood {
    name: String,
    way: String,
    frames: Option<usize>,
    ended: bool,
    times: usize,
    grown: u64,
    before: [u64; 2],
    during: [u64; 2],
    direct_before: [u64; 2],
    direct_during: [u64; 2],
    longer: [u64; 2],
}

impl Flood {
    fn problems(&self) -> Vec<&'static str> {
        let waits = |before: u64, during: u64, longer: u64| longer > before.max(LITTLE) || during > MOST.max(before * TIMES);
        let ([p50, p99], [p50_during, p99_during], [p50_longer, p99_longer]) = (self.before, self.during, self.longer);
        let (p50, p99) = (waits(p50, p50_during, p50_longer), waits(p99, p99_during, p99_longer));
        let all = [
            (!self.ended, "did not end"),
            (self.frames.is_some_and(|frames| frames > FRAMES), "ended late"),
            (self.grown > GROWTH, "memory"),
            (p50, "p50"),
            (p99, "p99"),
        ];
        all.into_iter().filter(|(is_so, _)| *is_so).map(|(_, word)| word).collect()
    }

    fn cells(&self) -> Vec<String> {
        let ms = |micros: u64| format!("{}.{:02}", micros / 1000, micros % 1000 / 10);
        vec![
            self.name.clone(),
            self.way.clone(),
            self.frames.map_or_else(|| "bounded".to_owned(), |frames| frames.to_string()),
            self.times.to_string(),
            format!("{:.1}", self.grown as f64 / 1024.0),
            format!("{}/{}", ms(self.before[0]), ms(self.before[1])),
            format!("{}/{}", ms(self.during[0]), ms(self.during[1])),
            format!("{}/{}", ms(self.direct_before[0]), ms(self.direct_before[1])),
            format!("{}/{}", ms(self.direct_during[0]), ms(self.direct_during[1])),
            verdict(&self.problems()),
        ]
    }
}

/// What slow connections of one kind did.
#[derive(Debug, Deserialize)]
struct Slow {
    name: String,
    connections: usize,
    refused: usize,
    gone: Option<[f64; 2]>,
    served: usize,
    failed: usize,
    slowest_ms: u64,
}

impl Slow {
    fn problems(&self) -> Vec<&'static str> {
        let all = [
            (self.gone.is_none(), "never gone"),
            (self.gone.is_some_and(|[_, last]| last > GONE), "gone late"),
            (self.failed > 0, "a call failed"),
            (self.served == 0, "nobody was served"),
        ];
        all.into_iter().filter(|(is_so, _)| *is_so).map(|(_, word)| word).collect()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.connections.to_string(),
            self.refused.to_string(),
            self.gone.map_or_else(|| "never".to_owned(), |[first, last]| format!("{first:.1}–{last:.1}")),
            self.served.to_string(),
            self.failed.to_string(),
            self.slowest_ms.to_string(),
            verdict(&self.problems()),
        ]
    }
}

fn verdict(problems: &[&str]) -> String {
    if problems.is_empty() { "kept".to_owned() } else { format!("MISSED: {}", problems.join(", ")) }
}

/// Prints the rows of floods.
///
/// # Errors
/// When a bound is broken.
pub(super) fn floods(rows: &[u8], json: Option<&Path>) -> anyhow::Result<()> {
    let rows: Vec<Flood> = read(rows, json)?;
    let heads = ["flood", "way", "frames", "times", "MiB", "p50/p99 before, ms", "during", "of the program before", "during", ""];
    print(&heads, rows.iter().map(Flood::cells))?;
    judge(rows.iter().filter(|row| !row.problems().is_empty()).count())
}

/// Prints the rows of slow connections.
///
/// # Errors
/// When a bound is broken.
pub(super) fn slow(rows: &[u8], json: Option<&Path>) -> anyhow::Result<()> {
    let rows: Vec<Slow> = read(rows, json)?;
    let heads =
        ["connections that send or take", "each", "refused", "gone after, s", "calls served", "failed", "slowest, ms", ""];
    print(&heads, rows.iter().map(Slow::cells))?;
    judge(rows.iter().filter(|row| !row.problems().is_empty()).count())
}

fn read<T: for<'a> Deserialize<'a>>(rows: &[u8], json: Option<&Path>) -> anyhow::Result<Vec<T>> {
    if let Some(path) = json {
        fs::write(path, rows).with_context(|| format!("cannot write {}", path.display()))?;
    }
    serde_json::from_slice(rows).context("outrider-soak ended early")
}

fn judge(broken: usize) -> anyhow::Result<()> {
    if broken == 0 { Ok(()) } else { bail!("{broken} rows are out of bounds") }
}

fn print(heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = std::iter::once(heads.iter().map(ToString::to_string).collect()).chain(rows).collect();
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut out = std::io::stdout().lock();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flood(change: impl FnOnce(&mut Flood)) -> Vec<&'static str> {
        let mut row = Flood {
            name: "PING".to_owned(),
            way: "mesh".to_owned(),
            frames: Some(1001),
            ended: true,
            times: 9,
            grown: 100,
            before: [400, 8000],
            during: [5500, 16_100],
            direct_before: [50, 100],
            direct_during: [150, 200],
            longer: [5000, 8000],
        };
        change(&mut row);
        row.problems()
    }

    #[test]
    fn each_bound_of_a_flood_is_judged() {
        assert!(flood(|_| ()).is_empty() && flood(|row| row.frames = None).is_empty());
        assert_eq!(flood(|row| row.frames = Some(1501)), ["ended late"]);
        assert_eq!(flood(|row| row.grown = 10_241), ["memory"]);
        assert_eq!(flood(|row| row.ended = false), ["did not end"]);
        assert_eq!(flood(|row| row.longer = [5001, 8001]), ["p50", "p99"]);
        assert_eq!(flood(|row| row.during = [9000, 50_001]), ["p99"]);
        assert!(flood(|row| (row.before, row.during) = ([400, 30_000], [400, 60_000])).is_empty());
    }

    #[test]
    fn each_bound_of_slow_connections_is_judged() {
        let slow = |gone, served, failed| {
            Slow { name: "x".to_owned(), connections: 9, refused: 0, gone, served, failed, slowest_ms: 5 }.problems()
        };
        assert!(slow(Some([9.0, 30.0]), 5, 0).is_empty());
        assert_eq!(slow(Some([9.0, 30.1]), 5, 1), ["gone late", "a call failed"]);
        assert_eq!(slow(None, 0, 0), ["never gone", "nobody was served"]);
    }
}
