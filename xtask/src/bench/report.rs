//! What a bench found: samples in, median and extremes out, as a table and as JSON.

use std::{collections::BTreeMap, fs, io::Write as _, path::Path};

use anyhow::Context as _;
use serde::Serialize;

/// Samples of a bench, by contender and metric, in the order they first came.
#[derive(Debug)]
pub(crate) struct Report {
    bench: &'static str,
    samples: BTreeMap<(usize, usize), Vec<f64>>,
    contenders: Vec<String>,
    metrics: Vec<(String, &'static str)>,
    /// What the median may be, by contender and metric.
    targets: BTreeMap<(usize, usize), Target>,
}

/// What a median may be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    Most(f64),
    Least(f64),
}

/// One line of the JSON.
#[derive(Debug, PartialEq, Serialize)]
struct Row<'a> {
    contender: &'a str,
    metric: &'a str,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
    /// The most that the median may be, if there is such a bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<f64>,
    /// The least that it may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    least: Option<f64>,
}

#[derive(Serialize)]
struct Document<'a> {
    bench: &'a str,
    rows: Vec<Row<'a>>,
}

impl Report {
    /// An empty report.
    pub(crate) fn new(bench: &'static str) -> Self {
        let (samples, targets) = (BTreeMap::new(), BTreeMap::new());
        Self { bench, samples, contenders: Vec::new(), metrics: Vec::new(), targets }
    }

    /// Adds a sample.
    pub(crate) fn add(&mut self, contender: &str, metric: &str, unit: &'static str, sample: f64) {
        let key = self.key(contender, metric, unit);
        self.samples.entry(key).or_default().push(sample);
    }

    /// Sets the most that the median may be.
    pub(crate) fn target(&mut self, contender: &str, metric: &str, unit: &'static str, most: f64) {
        let key = self.key(contender, metric, unit);
        self.targets.insert(key, Target::Most(most));
    }

    /// Sets the least that the median may be.
    pub(crate) fn at_least(&mut self, contender: &str, metric: &str, unit: &'static str, least: f64) {
        let key = self.key(contender, metric, unit);
        self.targets.insert(key, Target::Least(least));
    }

    /// The median so far.
    pub(super) fn median(&self, contender: &str, metric: &str) -> Option<f64> {
        self.rows().iter().find(|row| row.contender == contender && row.metric == metric).map(|row| row.median)
    }

    fn key(&mut self, contender: &str, metric: &str, unit: &'static str) -> (usize, usize) {
        (place(&mut self.contenders, contender.to_owned()), place(&mut self.metrics, (metric.to_owned(), unit)))
    }

    fn rows(&self) -> Vec<Row<'_>> {
        let row = |(key, samples): (&(usize, usize), &Vec<f64>)| {
            let (contender, metric) = (self.contenders.get(key.0)?, self.metrics.get(key.1)?);
            let (metric, unit) = (metric.0.as_str(), metric.1);
            let mut sorted = samples.clone();
            sorted.sort_by(f64::total_cmp);
            let (min, max) = (*sorted.first()?, *sorted.last()?);
            let middle = sorted.len() / 2;
            let upper = *sorted.get(middle)?;
            let median = if sorted.len() % 2 == 1 { upper } else { (upper + *sorted.get(middle.checked_sub(1)?)?) / 2.0 };
            let (target, least) = match self.targets.get(key) {
                Some(Target::Most(most)) => (Some(*most), None),
                Some(Target::Least(least)) => (None, Some(*least)),
                None => (None, None),
            };
            Some(Row { contender, metric, unit, median, min, max, target, least })
        };
        self.samples.iter().filter_map(row).collect()
    }

    /// The table for people, on standard output.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        Ok(std::io::stdout().lock().write_all(self.table().as_bytes())?)
    }

    fn table(&self) -> String {
        let rows: Vec<[String; 3]> = self
            .rows()
            .iter()
            .map(|row| {
                let value = format!("{} [{}–{}] {}", number(row.median), number(row.min), number(row.max), row.unit);
                [row.contender.to_owned(), row.metric.to_owned(), value.trim_end().to_owned() + &verdict(row)]
            })
            .collect();
        let width =
            |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
        let (first, second) = (width(0), width(1));
        let mut text = format!("{}: median [min–max]\n", self.bench);
        for [contender, metric, value] in &rows {
            text.push_str(&format!("  {contender:<first$}  {metric:<second$}  {value}\n"));
        }
        text
    }

    /// Writes the rows as JSON.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&Document { bench: self.bench, rows: self.rows() })?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

/// How a median compares with its target, where there is one.
fn verdict(row: &Row<'_>) -> String {
    let word = |is_kept| if is_kept { "kept" } else { "MISSED" };
    let most = row.target.map(|most| format!("  (at most {}: {})", number(most), word(row.median <= most)));
    let least = row.least.map(|least| format!("  (at least {}: {})", number(least), word(row.median >= least)));
    most.or(least).unwrap_or_default()
}

/// Where a value stands, after it was put there if need be.
fn place<T: PartialEq>(list: &mut Vec<T>, value: T) -> usize {
    list.iter().position(|one| *one == value).unwrap_or_else(|| {
        list.push(value);
        list.len() - 1
    })
}

/// Three digits that matter.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_hold_median_and_extremes_in_the_order_of_arrival() {
        let mut report = Report::new("test");
        for sample in [3.0, 1.0, 2.0, 10.0] {
            report.add("direct", "requests", "1/s", sample);
        }
        report.add("agents", "requests", "1/s", 123.4);
        let rows = report.rows();
        assert_eq!(
            rows[0],
            Row {
                contender: "direct",
                metric: "requests",
                unit: "1/s",
                median: 2.5,
                min: 1.0,
                max: 10.0,
                target: None,
                least: None
            }
        );
        assert_eq!(
            report.table(),
            "test: median [min–max]\n  direct  requests  2.50 [1.00–10.0] 1/s\n  agents  requests  123 [123–123] 1/s\n"
        );
    }

    #[test]
    fn a_target_stands_beside_the_median() {
        let mut report = Report::new("test");
        report.add("10 rules", "hit", "µs", 0.5);
        report.add("1000 rules", "hit", "µs", 2.5);
        report.target("10 rules", "hit", "µs", 1.0);
        report.target("1000 rules", "hit", "µs", 2.0);
        report.add("authority", "signed", "1/s", 5200.0);
        report.at_least("authority", "signed", "1/s", 5000.0);
        let table = report.table();
        assert!(table.contains("0.50 [0.50–0.50] µs  (at most 1.00: kept)\n"), "{table}");
        assert!(table.contains("2.50 [2.50–2.50] µs  (at most 2.00: MISSED)\n"), "{table}");
        assert!(table.contains("(at least 5000: kept)\n"), "{table}");
    }

    #[test]
    fn the_file_has_the_documented_shape() {
        let path = tempfile::tempdir().unwrap().keep().join("rows.json");
        let mut report = Report::new("dataplane");
        report.add("agents", "p50", "µs", 7.0);
        report.write(&path).unwrap();
        let value: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let row =
            serde_json::json!({ "contender": "agents", "metric": "p50", "unit": "µs", "median": 7.0, "min": 7.0, "max": 7.0 });
        assert_eq!(value, serde_json::json!({ "bench": "dataplane", "rows": [row] }));
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}
