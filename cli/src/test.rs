//! `outrider test`: policies as code, with tests beside them. Needs no mesh.

use std::{fs, path::PathBuf};

use jiff::Timestamp;
use outrider_policy::{StoredPolicy, testcase::PolicyTest};
use serde::Serialize;

use crate::{
    failure::{Exit, Failure},
    local::Local,
    manifest::Below,
    output::{Console, Tone, printable},
    table::{Cell, Row},
};

/// Run policy tests: given a call, expect a verdict and the rule that gives it.
///
/// All policies of all files count as one set, as if they were applied together. Needs no control plane. Exit code 1 when a
/// case fails, when a file holds a mistake, and when there is nothing to test.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outrider test policies/
  outrider test policies/ tests/ --junit report.xml

A test stands in a file of its own or beside the policies:
  apiVersion: outrider.dev/v1alpha1
  kind: PolicyTest
  metadata: { name: orders }
  spec:
    cases:
      - name: the shop front reads orders
        given:
          source: { identity: spiffe://mesh.internal/ns/shop/sa/web }
          destination: { service: shop/orders, port: 80 }
          request: { method: GET, path: /v1/orders/7 }
        expect: { effect: allow, rule: shop/orders/web-reads }")]
pub(crate) struct Test {
    /// Files, and directories with their *.yaml, *.yml and *.json files, also below them
    #[arg(required = true, value_name = "DIR|FILE")]
    paths: Vec<PathBuf>,
    /// Also write a report in JUnit's XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

/// What came of a case. The shape that programs read.
#[derive(Clone, Debug, Serialize)]
struct Case {
    source: String,
    test: String,
    case: String,
    passed: bool,
    /// Why it failed.
    failure: Option<String>,
    /// What was decided.
    effect: Option<String>,
    /// The rule that decided.
    rule: Option<String>,
}

impl Row for Case {
    const COLUMNS: &'static [&'static str] = &["RESULT", "TEST", "CASE", "WHY"];

    fn cells(&self, _: Timestamp) -> Vec<Cell> {
        let result = if self.passed { Cell::new(Tone::Good, "ok") } else { Cell::new(Tone::Bad, "FAILED") };
        vec![result, self.test.as_str().into(), self.case.as_str().into(), self.failure.clone().unwrap_or_default().into()]
    }
}

impl Test {
    /// Runs the verb.
    pub(crate) fn run(self, console: &Console) -> Result<Exit, Failure> {
        let local = Local::read(&self.paths, Below::Searched, console)?;
        let cases: Vec<Case> = local.tests.iter().flat_map(|(source, test)| run(source, test, &local.policies)).collect();
        if cases.is_empty() {
            return Err(Failure::Invalid("there is no `PolicyTest` in these files".into()));
        }
        if let Some(path) = &self.junit {
            fs::write(path, junit(&cases)).map_err(|error| Failure::Write { path: path.clone(), reason: error.to_string() })?;
        }
        let failed: Vec<Case> = cases.iter().filter(|case| !case.passed).cloned().collect();
        if console.is_for_people() {
            if !failed.is_empty() {
                console.table(&failed)?;
                console.line("")?;
            }
            let tone = if failed.is_empty() { Tone::Good } else { Tone::Bad };
            console.line(&console.paint(tone, &format!("{} passed, {} failed", cases.len() - failed.len(), failed.len())))?;
        } else {
            console.value(&cases)?;
        }
        Ok(if failed.is_empty() { Exit::Done } else { Exit::Failed })
    }
}

fn run(source: &str, test: &PolicyTest, policies: &[StoredPolicy]) -> Vec<Case> {
    let results = test.run(policies).into_iter();
    results
        .map(|result| Case {
            source: source.to_owned(),
            passed: result.passed(),
            test: result.test,
            case: result.case,
            failure: result.failure,
            effect: result.answer.as_ref().map(|answer| answer.effect.to_string()),
            rule: result.answer.and_then(|answer| answer.rule),
        })
        .collect()
}

/// The report as continuous integration servers read it: a suite for each test, a case for each case.
fn junit(cases: &[Case]) -> String {
    let count =
        |cases: &[Case]| format!("tests=\"{}\" failures=\"{}\"", cases.len(), cases.iter().filter(|case| !case.passed).count());
    let mut xml = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"outrider test\" {}>\n", count(cases));
    for suite in cases.chunk_by(|left, right| (&left.source, &left.test) == (&right.source, &right.test)) {
        let Some(first) = suite.first() else { continue };
        xml.push_str(&format!(
            "  <testsuite name=\"{}\" file=\"{}\" {}>\n",
            escape(&first.test),
            escape(&first.source),
            count(suite)
        ));
        for case in suite {
            let head = format!("    <testcase classname=\"{}\" name=\"{}\"", escape(&case.test), escape(&case.case));
            match &case.failure {
                None => xml.push_str(&format!("{head}/>\n")),
                Some(why) => xml.push_str(&format!("{head}>\n      <failure message=\"{}\"/>\n    </testcase>\n", escape(why))),
            }
        }
        xml.push_str("  </testsuite>\n");
    }
    xml + "</testsuites>\n"
}

/// Text inside of an XML attribute. Control characters cannot stand in XML 1.0 at all, not even escaped.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in printable(text).chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_xml_whatever_the_names_are() {
        let case = |test: &str, name: &str, failure: Option<&str>| Case {
            source: "a.yaml".into(),
            test: test.into(),
            case: name.into(),
            passed: failure.is_none(),
            failure: failure.map(str::to_owned),
            effect: None,
            rule: None,
        };
        let xml =
            junit(&[case("a", "x < \"y\"\u{1b}", None), case("a", "z", Some("expected allow & got deny")), case("b", "z", None)]);
        let expected = "\
<?xml version=\"1.0\" encoding=\"UTF-8\"?>
<testsuites name=\"outrider test\" tests=\"3\" failures=\"1\">
  <testsuite name=\"a\" file=\"a.yaml\" tests=\"2\" failures=\"1\">
    <testcase classname=\"a\" name=\"x &lt; &quot;y&quot;\\u{1b}\"/>
    <testcase classname=\"a\" name=\"z\">
      <failure message=\"expected allow &amp; got deny\"/>
    </testcase>
  </testsuite>
  <testsuite name=\"b\" file=\"a.yaml\" tests=\"1\" failures=\"0\">
    <testcase classname=\"b\" name=\"z\"/>
  </testsuite>
</testsuites>
";
        assert_eq!(xml, expected);
    }
}
