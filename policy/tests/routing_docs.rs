//! The examples of docs/routing.md are routes that can be applied.

use outrider_policy::manifest::parse_resources;

#[test]
fn every_example_of_the_page_about_routes_can_be_applied() {
    let page = include_str!("../../docs/routing.md");
    let examples: Vec<&str> =
        page.split("```yaml\n").skip(1).filter_map(|rest| rest.split_once("```").map(|(yaml, _)| yaml)).collect();
    assert!(examples.len() >= 3);
    for yaml in examples {
        let file = parse_resources("docs/routing.md", yaml);
        assert!(file.diagnostics.is_empty() && file.routes.len() == 1, "{:?}\n{yaml}", file.diagnostics);
    }
}
