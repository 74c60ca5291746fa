//! The policy on its own: runs criterion's benches and reads the samples that it leaves behind.

use std::{fs, path::Path};

use anyhow::Context as _;
use serde::Deserialize;

use super::{
    Plan,
    ground::{progress, target_directory},
    report::Report,
};
use crate::command;

/// Numbers of rules, with the name of each in tables.
const SIZES: [(u32, &str); 3] = [(10, "10 rules"), (1000, "1000 rules"), (10_000, "10 000 rules")];

/// What is decided: the name of criterion's directory, the one in tables, and whether an expression is evaluated.
const CALLS: [(&str, &str, bool); 8] = [
    ("hit", "hit", false),
    ("miss", "miss", false),
    ("worst", "worst", false),
    ("hit-cel", "hit, one CEL rule", true),
    ("miss-cel", "miss, one CEL rule", true),
    ("worst-cel", "worst, one CEL rule", true),
    ("dense", "every rule looked at", false),
    ("dense-cel", "every rule looked at, one CEL rule", true),
];

/// Texts that must be refused at once.
const REFUSED: [&str; 5] = ["100 000 rules", "regex of 1 MB", "regex (a{1000}){1000}", "nesting of 10 000", "alias bomb"];

/// One bench of criterion, as it writes it down.
#[derive(Debug, Deserialize)]
struct Samples {
    iters: Vec<f64>,
    times: Vec<f64>,
}

impl Samples {
    /// Nanoseconds of one iteration, in each sample.
    fn each(&self) -> impl Iterator<Item = f64> + '_ {
        self.times.iter().zip(&self.iters).filter(|(_, iters)| **iters > 0.0).map(|(time, iters)| time / iters)
    }
}

/// Runs all benches.
pub(super) fn run(plan: &Plan) -> anyhow::Result<Report> {
    // what an earlier run left must not pass for this one's
    let directory = target_directory()?.join("criterion");
    for group in ["decide", "compile", "refuse"] {
        let group = directory.join(group);
        if group.exists() {
            fs::remove_dir_all(&group).with_context(|| format!("cannot remove {}", group.display()))?;
        }
    }
    let bar = progress(1);
    bar.set_message("building and measuring");
    let mut bench = command::cargo();
    bench.args(["bench", "-p", "outrider-policy", "--bench", "decide", "--profile", &plan.profile, "--"]);
    bench.args(["--noplot", "--warm-up-time", "0.5", "--measurement-time", &plan.seconds.to_string()]);
    let said = command::output(&mut bench)?;
    bar.finish_and_clear();

    let mut report = Report::new("policy");
    decisions(&directory, &mut report)?;
    for (size, name) in SIZES {
        record(&directory.join("compile").join(size.to_string()), &mut report, name, "compile", "ms", 1e6)?;
        memory(&said, size, name, &mut report);
    }
    report.target("10 000 rules", "compile", "ms", 200.0);
    for text in REFUSED {
        record(&directory.join("refuse").join(text), &mut report, text, "refuse", "ms", 1e6)?;
        report.target(text, "refuse", "ms", 100.0);
    }
    Ok(report)
}

fn decisions(directory: &Path, report: &mut Report) -> anyhow::Result<()> {
    for (size, name) in SIZES {
        for (id, metric, cel) in CALLS {
            record(&directory.join("decide").join(id).join(size.to_string()), report, name, metric, "µs", 1e3)?;
            match (id.starts_with("dense"), cel, size) {
                // a rule that has to be looked at costs what it costs
                (true, ..) => {}
                (_, true, _) => report.target(name, metric, "µs", 5.0),
                (_, false, 10) => report.target(name, metric, "µs", 1.0),
                (_, false, _) => report.target(name, metric, "µs", 2.0),
            }
        }
    }
    Ok(())
}

fn record(
    bench: &Path,
    report: &mut Report,
    contender: &str,
    metric: &str,
    unit: &'static str,
    nanoseconds: f64,
) -> anyhow::Result<()> {
    let path = bench.join("new/sample.json");
    let text = fs::read_to_string(&path).with_context(|| format!("there is no {}", path.display()))?;
    let samples: Samples = serde_json::from_str(&text).with_context(|| format!("{} is not understood", path.display()))?;
    samples.each().for_each(|time| report.add(contender, metric, unit, time / nanoseconds));
    Ok(())
}

/// Reads `memory 10000 policy BYTES index BYTES`, which the bench says before it measures times.
fn memory(said: &str, size: u32, name: &str, report: &mut Report) {
    let size = size.to_string();
    for line in said.lines() {
        if let ["memory", rules, "policy", policy, "index", index] = line.split_whitespace().collect::<Vec<_>>().as_slice()
            && *rules == size
        {
            let mebibytes = |bytes: &str| bytes.parse::<u32>().map(|bytes| f64::from(bytes) / f64::from(1 << 20));
            mebibytes(policy).into_iter().for_each(|size| report.add(name, "memory of the policy", "MiB", size));
            mebibytes(index).into_iter().for_each(|size| report.add(name, "memory of its index", "MiB", size));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_criterion_left_becomes_rows() {
        let directory = tempfile::tempdir().unwrap();
        for (size, _) in SIZES {
            for (id, ..) in CALLS {
                let bench = directory.path().join("decide").join(id).join(size.to_string()).join("new");
                fs::create_dir_all(&bench).unwrap();
                let text = r#"{"sampling_mode": "Linear", "iters": [1.0, 2.0, 4.0], "times": [900.0, 1000.0, 2800.0]}"#;
                fs::write(bench.join("sample.json"), text).unwrap();
            }
        }
        let mut report = Report::new("policy");
        decisions(directory.path(), &mut report).unwrap();
        memory(
            "Benchmarking\nmemory 10000 policy 1048576 index 524288\nmemory 10 policy x index 1\n",
            10_000,
            "10 000 rules",
            &mut report,
        );
        let file = directory.path().join("rows.json");
        report.write(&file).unwrap();
        let value: serde_json::Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        let row = |contender: &str, metric: &str| {
            let rows = value["rows"].as_array().unwrap();
            rows.iter().find(|row| row["contender"] == contender && row["metric"] == metric).unwrap().clone()
        };
        let hit = row("10 rules", "hit");
        assert_eq!((hit["median"].as_f64(), hit["min"].as_f64(), hit["target"].as_f64()), (Some(0.7), Some(0.5), Some(1.0)));
        assert_eq!(row("10 000 rules", "worst, one CEL rule")["target"], 5.0);
        assert_eq!(row("10 000 rules", "every rule looked at")["target"], serde_json::Value::Null);
        assert_eq!(row("10 000 rules", "memory of its index")["median"], 0.5);
    }
}
